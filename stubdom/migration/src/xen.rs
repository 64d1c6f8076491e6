//! XEN: the door to the hypervisor and to dom0, as this crate sees them.
//!
//! **Takes** lists already shaped like hypercall arguments. **Gives** counts and per-frame errors. **Never** decides:
//! an implementor issues the hypercall that the method's first line names and reports what Xen answered.
//!
//! All methods act on the one target that the implementor is paired with. Sources: `xen/include/public/memory.h`,
//! `xen.h` (`mmu_update`), `hvm/hvm_op.h`, `grant_table.h`.

mod send;

pub use crate::session::Missing;
pub use crate::stream::{BlobKind, Piece, TscInfo};
use alloc::vec::Vec;
pub use send::{Output, SendBroker, XenSend};
pub use xen_abi::errno::Errno;
use xen_abi::types::{Domid, Gfn, Gref, Mfn, Order, PAGE_SIZE};

/// How many frames the window holds, in 4 KiB pages: one batch of the stream (libxc's `MAX_BATCH_SIZE`).
pub const WINDOW_FRAMES: usize = 1024;

/// How many frames an exchange needs: a superpage's old ones, their copies, and a place to look at others.
pub const EXCHANGE_FRAMES: usize = 3 << 9;

/// What may be done to a frame through the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    Write,
}

/// What the stub may do to its target by itself.
///
/// Laws that the engine relies on, and that the fake keeps:
/// - a returned count is the length of the prefix of `extents` that is done; the rest is untouched;
/// - a frame that is mapped in the window stays allocated until it is unmapped, whatever else happens to its gfn.
pub trait Xen {
    /// `XENMEM_populate_physmap`: gives the target one extent of `order` at each gfn of `extents`.
    ///
    /// Returns how many were done: Xen stops at the first that it has no memory for, that would pass the target's
    /// `max_pages`, or whose order it does not allow to this caller. A gfn of `extents` must be a hole: Xen would
    /// replace the frame and leave the old one allocated without a gfn.
    fn populate_physmap(&mut self, order: Order, extents: &[Gfn]) -> usize;

    /// `XENMEM_decrease_reservation`: takes the extents of `order` at `extents` from the target and frees them.
    ///
    /// Returns how many were done.
    fn decrease_reservation(&mut self, order: Order, extents: &[Gfn]) -> usize;

    /// `mmu_update`: maps the frame behind `gfns[i]` at slot `i` of the window, for every `i`.
    ///
    /// Replaces all that the window held before; slots past `gfns.len()` end up empty. `errors[i]` becomes 0 or
    /// an [`Errno`]; a frame that fails leaves its slot empty and does not keep the others from being mapped. A gfn may
    /// stand in several slots.
    ///
    /// `gfns` has at most [`WINDOW_FRAMES`] entries and `errors` as many as `gfns`.
    fn map(&mut self, access: Access, gfns: &[Gfn], errors: &mut [i32]);

    /// `mmu_update`: empties the window and flushes the TLB, so that no frame of the target is held any more.
    /// Does nothing when the window is empty.
    fn unmap(&mut self);

    /// Copies `bytes` into the window from byte `offset` of slot `slot` on, running over into the slots that follow.
    ///
    /// Every slot touched is mapped for [`Access::Write`]. `offset` is less than a page.
    fn fill(&mut self, slot: usize, offset: usize, bytes: &[u8]);

    /// Tells whether the window holds `bytes` from byte `offset` of slot `slot` on. Every slot touched is mapped.
    fn matches(&self, slot: usize, offset: usize, bytes: &[u8]) -> bool;

    /// Fills the frame at `slot` with zero bytes; it is mapped for [`Access::Write`].
    fn zero(&mut self, slot: usize);

    /// Reads back, from the window's own page table, which machine frame stands at `slot`; `None` when empty.
    fn mfn(&self, slot: usize) -> Option<Mfn>;

    /// `HVMOP_set_param`. `index` is an `HVM_PARAM_*` number.
    ///
    /// # Errors
    /// What Xen returned.
    fn set_param(&mut self, index: u32, value: u64) -> Result<(), Errno>;

    /// `XENMEM_acquire_resource` (grant table, frame 0): writes entry `gref` of the target's grant table, version 1,
    /// as a permanent read-write grant of `frame` to `domid`.
    ///
    /// # Errors
    /// What Xen returned.
    fn seed_grant(&mut self, gref: Gref, domid: Domid, frame: Gfn) -> Result<(), Errno>;

    /// `XENMEM_current_reservation`: how many pages the target owns, in 4 KiB pages.
    ///
    /// # Errors
    /// What Xen returned.
    fn current_reservation(&mut self) -> Result<u64, Errno>;
}

/// What may be done with a page of the target (`hvmmem_type_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageType {
    /// Ordinary memory (`HVMMEM_ram_rw`).
    Ram,
    /// Memory that the guest cannot write (`HVMMEM_ram_ro`): ROM, or memory whose writes are being logged.
    ReadOnly,
    /// No memory (`HVMMEM_mmio_dm`): a hole, a device's registers, or a frame that has failed.
    None,
    /// Writes go to an ioreq server (`HVMMEM_ioreq_server`).
    Ioreq,
}

/// What the stub may do to its target besides, to exchange pages of it.
pub trait XenExchange: Xen {
    /// As [`Xen::map`], from slot `first` on, and leaves all other slots as they are; there are [`EXCHANGE_FRAMES`].
    fn map_at(&mut self, first: usize, access: Access, gfns: &[Gfn], errors: &mut [i32]);

    /// Empties one slot, which shows something, and leaves all others as they are.
    fn unmap_at(&mut self, slot: usize);

    /// Copies the frame at slot `from` to the one at slot `to`; that is mapped for [`Access::Write`].
    fn copy(&mut self, from: usize, to: usize);

    /// Copies the frame at `slot` out; it is mapped. The guest may write to it meanwhile.
    fn read(&self, slot: usize, page: &mut [u8; PAGE_SIZE]);

    /// Tells whether the frames at two slots hold the same bytes.
    fn equal(&self, left: usize, right: usize) -> bool;

    /// Looks up, in the machine-to-phys table, which frame of its owner `mfn` is. Says nothing of who the owner is.
    fn gfn(&self, mfn: Mfn) -> Option<Gfn>;

    /// Keeps those of at most [`EXCHANGE_FRAMES`] frames that the target owns though no gfn of it leads there: they can be
    /// mapped as its, and the machine-to-phys table has no gfn for them. Empties the window.
    fn retain_orphans(&mut self, frames: &mut Vec<Mfn>);

    /// `XENMEM_add_to_physmap` (`XENMAPSPACE_gmfn`): moves the frame behind `from` to `to`, whose own frame is freed.
    ///
    /// # Errors
    /// What Xen returned. Usually nothing has changed then; in rare cases `to` is a hole and the frame has no gfn.
    fn move_page(&mut self, from: Gfn, to: Gfn) -> Result<(), Errno>;

    /// `HVMOP_get_mem_type`.
    ///
    /// # Errors
    /// What Xen returned.
    fn page_type(&mut self, gfn: Gfn) -> Result<PageType, Errno>;

    /// `XEN_DMOP_set_mem_type` to `HVMMEM_ram_ro`.
    ///
    /// # Errors
    /// What Xen returned.
    fn set_read_only(&mut self, gfn: Gfn) -> Result<(), Errno>;

    /// `XEN_DMOP_modified_memory`: has a log of dirty pages, if one is kept, take these up.
    ///
    /// # Errors
    /// What Xen returned.
    fn note_modified(&mut self, first: Gfn, nr_frames: u64) -> Result<(), Errno>;

    /// `HVMOP_get_param`. `index` is an `HVM_PARAM_*` number.
    ///
    /// # Errors
    /// What Xen returned.
    fn param(&mut self, index: u32) -> Result<u64, Errno>;

    /// Looks in the target's grant table for an entry in force that names one of these gfns, whether or not anybody has it
    /// mapped.
    ///
    /// # Errors
    /// Why the table cannot be read.
    fn grant_in_force(&mut self, first: Gfn, nr_frames: u64) -> Result<Option<(Gfn, Gref)>, Errno>;

    /// `XENMEM_acquire_resource`: tells whether the frame is one of the target's grant table, or of its status. Those are
    /// Xen's, at a gfn of the guest's choice: to exchange one would move the gfn away from the table that Xen goes on with.
    ///
    /// # Errors
    /// Why Xen does not tell.
    fn is_grant_table(&mut self, mfn: Mfn) -> Result<bool, Errno>;
}

/// What only dom0 may do to the target. Each call returns when dom0 has answered.
pub trait Broker {
    /// Hands on a piece of a blob that a later call names.
    ///
    /// # Errors
    /// Why it could not be handed on.
    fn blob(&mut self, piece: Piece<'_>) -> Result<(), Errno>;

    /// `XEN_DOMCTL_set_cpu_policy` with the policy blobs sent before, then the toolstack's `static_data_done`.
    ///
    /// # Errors
    /// What dom0 answered.
    fn static_data_done(&mut self, missing: Missing) -> Result<(), Errno>;

    /// `XEN_DOMCTL_settscinfo`.
    ///
    /// # Errors
    /// What dom0 answered.
    fn set_tsc_info(&mut self, info: TscInfo) -> Result<(), Errno>;

    /// `XEN_DOMCTL_sethvmcontext` with the HVM context blob sent before.
    ///
    /// # Errors
    /// What dom0 answered.
    fn set_hvm_context(&mut self) -> Result<(), Errno>;
}
