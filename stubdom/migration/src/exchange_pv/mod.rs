//! Exchange of frames of a suspended PV guest for healthy ones.
//!
//! **Takes** frames that were marked offline, and what dom0 knows of their guest ([`Facts`]). **Gives** the same guest on
//! other frames. **Never** touches a frame before it is known by name that it may move; **never** leaves an entry
//! cleared: a step that fails is undone, or the guest must not run on ([`Error::Lost`]).
//!
//! The way is that of the original page exchange for PV guests (libxc, 2009): all entries of page tables that map the
//! frame are cleared, so that nobody refers to it; `XENMEM_exchange` puts a new frame in its place; contents, p2m and
//! entries follow. What differs, and why:
//! - Entries are cleared to 0. A not-present entry that still names a frame gets a PV guest crashed on a processor with
//!   L1TF and a Xen without shadow paging (`pv_l1tf_check_pte`).
//! - Updates name the guest as owner of the tables (PFD in `foreigndom`); without that Xen looks for them in dom0.
//! - `XENMEM_exchange` takes the pfn of the new frame from its list of results, so it has to stand there before. (libxenctrl
//!   hands over an empty list: the guest could not be saved any more.)
//! - The guest is paused as well as suspended. A vCPU that slept may still be loaded on its processor with its TLB; Xen
//!   expects that the owner of foreign tables has no such processor (`do_mmu_update`).
//!
//! Page tables move as data do: they are unpinned, unhooked, copied (with entries that name themselves corrected), hooked
//! in again, whereby Xen validates them, and pinned. One survey and one scan serve all frames of a call.

mod engine;
mod error;
pub mod grants;
mod p2m;
mod survey;
#[cfg(test)]
mod tests;

use crate::xen::Errno;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use xen_abi::pte::Pte;
use xen_abi::types::{Gref, Mfn, Pfn};

pub use engine::{Exchanged, Exchanger};
pub use error::{Error, Refusal, Role, Step};
pub use p2m::Root;
pub use survey::MAX_ENTRIES;

/// Words of a frame: entries of a page table or of the p2m.
pub const WORDS: usize = 512;

/// A frame, as words.
pub type Words = [u64; WORDS];

/// Frames that are read in one go.
pub const BATCH_FRAMES: usize = 64;

/// Entries that are updated in one go.
pub const BATCH_UPDATES: usize = 1024;

/// What may be done to a suspended and paused PV guest from dom0.
pub trait PvGuest {
    /// Copies frames of the guest; `pages` has as many entries as `mfns`, at most [`BATCH_FRAMES`].
    ///
    /// # Errors
    /// One of them is not the guest's or cannot be mapped.
    fn read(&mut self, mfns: &[Mfn], pages: &mut [Words]) -> Result<(), Errno>;

    /// Writes a whole frame of the guest that is no page table.
    ///
    /// # Errors
    /// It is not the guest's or cannot be mapped.
    fn write(&mut self, mfn: Mfn, page: &Words) -> Result<(), Errno>;

    /// Writes one word of a frame of the guest that is no page table; `index` is less than [`WORDS`].
    ///
    /// # Errors
    /// It is not the guest's or cannot be mapped.
    fn write_word(&mut self, mfn: Mfn, index: usize, word: u64) -> Result<(), Errno>;

    /// `XEN_DOMCTL_getpageframeinfo3`: what Xen takes each frame for; as many results as frames.
    ///
    /// # Errors
    /// What Xen returned.
    fn page_types(&mut self, mfns: &[Mfn], types: &mut [PageType]) -> Result<(), Errno>;

    /// `mmu_update` of the guest's own tables, in this order; at most [`BATCH_UPDATES`].
    ///
    /// # Errors
    /// How many were done, and what Xen returned for the next.
    fn mmu_update(&mut self, updates: &[Update]) -> Result<(), (usize, Errno)>;

    /// `MMUEXT_PIN_Ln_TABLE` for level 1 to 4.
    ///
    /// # Errors
    /// What Xen returned.
    fn pin(&mut self, mfn: Mfn, level: u8) -> Result<(), Errno>;

    /// `MMUEXT_UNPIN_TABLE`.
    ///
    /// # Errors
    /// What Xen returned.
    fn unpin(&mut self, mfn: Mfn) -> Result<(), Errno>;

    /// `XENMEM_exchange`: frees `old` and gives the guest another frame, which the machine-to-phys table calls `pfn`.
    ///
    /// # Errors
    /// What Xen returned; nothing has changed. `EINVAL` when anything still refers to the frame.
    fn exchange(&mut self, old: Mfn, pfn: Pfn) -> Result<Mfn, Errno>;
}

/// What Xen takes a frame for (`XEN_DOMCTL_PFINFO_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageType {
    /// Data.
    #[default]
    Data,
    /// A page table.
    Table(Table),
    /// Not the guest's, or broken.
    Foreign,
}

/// A page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// 1 to 4.
    pub level: u8,
    /// Xen keeps it validated whether or not another table refers to it.
    pub is_pinned: bool,
}

/// A new value for an entry of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// The table.
    pub table: Mfn,
    /// Which entry, below [`WORDS`].
    pub index: usize,
    /// Its value.
    pub value: u64,
}

/// What dom0 knows of the guest besides its memory. All but `max_frames` comes from the guest and is not to be trusted:
/// a guest that lies gets a refusal, or harms nobody but itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where its p2m is.
    pub p2m: Option<Root>,
    /// How many entries it says that the p2m has.
    pub max_pfn: u64,
    /// How many pages it may own, in 4 KiB pages.
    pub max_frames: u64,
    /// Frames that somebody outside of its page tables knows.
    pub reserved: Vec<(Mfn, Role)>,
    /// Frames that its grant table names.
    pub granted: BTreeMap<Mfn, Gref>,
}

/// The frame that an entry of a page table maps, if it maps any.
pub(crate) fn mapped(entry: u64) -> Option<Mfn> {
    Pte::from_raw(entry).mfn()
}

/// The same entry with another frame.
pub(crate) fn with_frame(entry: u64, mfn: Mfn) -> u64 {
    Pte::from_raw(entry).with_frame(mfn).raw()
}
