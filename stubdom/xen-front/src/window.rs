//! The window: a fixed range of address space through which frames of a target are seen.
//!
//! **Takes** lists of frames. **Gives** their bytes, and the machine frame behind each. **Never** makes a Rust reference
//! to a frame of another domain: bytes are copied in and out.
//!
//! It is a virtual-linear page table: the L1 tables of the range are allocated once and stand side by side, read-only, in
//! our linear mapping, so the entry of slot `i` is `entries[i]`, one load and no walk (the idea of Xen/Arm's dirty-page
//! tracing of 2013, without a recursive entry, which some builds of Xen refuse). From there come the machine address
//! that `mmu_update` takes, and the machine frame that Xen has put in.
//!
//! A batch of any frames is one `mmu_update` (batched foreign mapping, Linux 2012) and, where slots are reused, one
//! flush of the TLB; each frame that fails costs one call more.
#![allow(unsafe_code, reason = "maps frames of another domain and copies their bytes")]

use alloc::vec::Vec;
use core::ops::Range;

use crate::hypercall::mmu;
use crate::mem;
use crate::memory::{Error, Memory, Region};
use crate::shared_mem::SharedMem;
use crate::target::Target;
use xen_abi::abi::{MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_NO_TRANSLATE, MmuUpdate};
use xen_abi::errno::Errno;
use xen_abi::pte::{self, Flags, NR_ENTRIES, Pte};
use xen_abi::types::{Gfn, Mfn, PAGE_SIZE};

/// What may be done to a frame through the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    Write,
}

impl Access {
    const fn flags(self) -> Flags {
        match self {
            Self::Read => Flags::RO,
            Self::Write => Flags::DATA,
        }
    }
}

/// A range of slots, each empty or showing one frame of the target.
pub struct Window {
    target: Target,
    region: Region,
    nr_slots: usize,
    /// Slots from the first that may show something.
    nr_used: usize,
    /// Arguments of the next `mmu_update`; never grows past its first capacity.
    updates: Vec<MmuUpdate>,
    /// The same for emptying slots whose new frames were refused.
    emptying: Vec<MmuUpdate>,
}

impl Window {
    /// Makes a window of `nr_slots` empty slots on the target; allocates all that it will ever need.
    ///
    /// # Errors
    /// Pages or addresses have run out, or Xen refuses the page tables.
    pub fn new(memory: &mut Memory, target: Target, nr_slots: usize) -> Result<Self, Error> {
        let region = memory.region(nr_slots)?;
        let [updates, emptying] = [Vec::with_capacity(nr_slots), Vec::with_capacity(nr_slots)];
        Ok(Self { target, region, nr_slots, nr_used: 0, updates, emptying })
    }

    /// Shows the frame behind `gfns[i]` in slot `i`, and empties all other slots.
    ///
    /// `errors[i]` becomes 0 or an [`Errno`]; a frame that fails leaves its slot empty. `gfns` has at most as many entries
    /// as there are slots, `errors` as many as `gfns`.
    pub fn map(&mut self, access: Access, gfns: &[Gfn], errors: &mut [i32]) {
        self.show(MMU_NORMAL_PT_UPDATE, access, gfns.iter().map(|gfn| gfn.raw()), errors);
    }

    /// As [`map`](Self::map), from slot `first` on; all other slots stay as they are.
    pub fn map_at(&mut self, first: usize, access: Access, gfns: &[Gfn], errors: &mut [i32]) {
        let end = first + gfns.len();
        assert!(end <= self.nr_slots && gfns.len() == errors.len(), "more frames than slots");
        let nr_reused = self.nr_used.saturating_sub(first);
        self.updates.clear();
        for (slot, gfn) in (first..).zip(gfns) {
            let pte = Pte::new(gfn.raw(), access.flags());
            self.updates.push(entry(&self.region.tables, slot, MMU_NORMAL_PT_UPDATE, pte));
        }
        self.nr_used = self.nr_used.max(end);
        self.commit(nr_reused, errors);
    }

    /// Shows the frame behind each gfn in its slot; all other slots stay as they are. No slot stands twice in `slots`; errors
    /// as with [`map`](Self::map).
    pub fn map_each(&mut self, access: Access, slots: &[(usize, Gfn)], errors: &mut [i32]) {
        assert!(slots.len() == errors.len() && slots.len() <= self.nr_slots, "more frames than slots");
        assert!(slots.iter().all(|(slot, _)| *slot < self.nr_slots), "a slot outside the window");
        let is_reused = slots.iter().any(|(slot, _)| self.mfn(*slot).is_some());
        self.updates.clear();
        for &(slot, gfn) in slots {
            let pte = Pte::new(gfn.raw(), access.flags());
            self.updates.push(entry(&self.region.tables, slot, MMU_NORMAL_PT_UPDATE, pte));
            self.nr_used = self.nr_used.max(slot + 1);
        }
        self.commit(if is_reused { slots.len() } else { 0 }, errors);
    }

    /// As [`map`](Self::map), for machine frames: those of the target that have no gfn.
    pub fn map_mfns(&mut self, access: Access, mfns: &[Mfn], errors: &mut [i32]) {
        self.show(MMU_PT_UPDATE_NO_TRANSLATE, access, mfns.iter().map(|mfn| mfn.raw()), errors);
    }

    /// Empties all slots.
    pub fn unmap(&mut self) {
        self.map(Access::Read, &[], &mut []);
    }

    /// Empties one slot; all others stay as they are.
    pub fn unmap_at(&mut self, slot: usize) {
        assert!(slot < self.nr_slots, "a slot outside the window");
        self.updates.clear();
        self.updates.push(entry(&self.region.tables, slot, MMU_NORMAL_PT_UPDATE, Pte::EMPTY));
        self.commit(1, &mut []);
    }

    /// Returns which machine frame a slot shows; `None` when it is empty.
    pub fn mfn(&self, slot: usize) -> Option<Mfn> {
        assert!(slot < self.nr_slots, "a slot outside the window");
        shown_at(&self.region, slot)
    }

    /// Copies `bytes` into the window from byte `offset` of `slot` on, running over into the slots that follow.
    ///
    /// All of these must show something; those mapped for reading only fault.
    pub fn write(&mut self, slot: usize, offset: usize, bytes: &[u8]) {
        let to = self.shown(slot, offset, bytes.len());
        // SAFETY: `to` is mapped for all the bytes (`shown`), in address space of the window alone; `bytes` is private.
        unsafe { mem::copy(to, bytes.as_ptr(), bytes.len()) };
    }

    /// As [`write`](Self::write), with the `len` bytes at `at` of memory that another domain may write.
    pub fn write_shared(&mut self, slot: usize, offset: usize, from: &SharedMem, at: usize, len: usize) {
        let to = self.shown(slot, offset, len);
        // SAFETY: `to` is mapped for all the bytes (`shown`), in address space of the window alone.
        unsafe { from.copy_to(at, to, len) };
    }

    /// Copies from byte `offset` of `slot` on into `out`.
    pub fn read(&self, slot: usize, offset: usize, out: &mut [u8]) {
        let from = self.shown(slot, offset, out.len());
        // SAFETY: `from` is mapped for all the bytes (`shown`); `out` is private and writable.
        unsafe { mem::copy(out.as_mut_ptr(), from, out.len()) };
    }

    /// As [`read`](Self::read), of `len` bytes to `at` of memory that another domain reads.
    pub fn read_shared(&self, slot: usize, offset: usize, to: &mut SharedMem, at: usize, len: usize) {
        let from = self.shown(slot, offset, len);
        // SAFETY: `from` is mapped for all the bytes (`shown`), in address space of the window alone.
        unsafe { to.copy_from(at, from, len) };
    }

    /// Copies the frame in slot `from` over the one in slot `to`.
    pub fn copy_frame(&mut self, from: usize, to: usize) {
        let (from, to) = (self.shown(from, 0, PAGE_SIZE), self.shown(to, 0, PAGE_SIZE));
        // SAFETY: both are mapped for a page (`shown`) and page-aligned: equal or apart.
        unsafe { mem::copy(to, from, PAGE_SIZE) };
    }

    /// Tells whether `bytes` stand from byte `offset` of `slot` on.
    pub fn matches(&self, slot: usize, offset: usize, bytes: &[u8]) -> bool {
        let left = self.shown(slot, offset, bytes.len());
        // SAFETY: `left` is mapped for all the bytes (`shown`); `bytes` is readable.
        unsafe { mem::compare(left, bytes.as_ptr(), bytes.len()) == 0 }
    }

    /// Tells whether two slots hold the same bytes.
    pub fn frames_match(&self, left: usize, right: usize) -> bool {
        let (left, right) = (self.shown(left, 0, PAGE_SIZE), self.shown(right, 0, PAGE_SIZE));
        // SAFETY: both are mapped for a page (`shown`).
        unsafe { mem::compare(left, right, PAGE_SIZE) == 0 }
    }

    /// Fills the frame in `slot` with zero bytes.
    pub fn zero(&mut self, slot: usize) {
        let to = self.shown(slot, 0, PAGE_SIZE);
        // SAFETY: `to` is mapped for a page (`shown`), in address space of the window alone.
        unsafe { mem::fill(to, 0, PAGE_SIZE) };
    }

    /// Returns the address of a byte range in the window, all of whose slots show something.
    fn shown(&self, slot: usize, offset: usize, len: usize) -> *mut u8 {
        let end_slot = slot + (offset + len).div_ceil(PAGE_SIZE);
        assert!((slot..end_slot).all(|slot| self.mfn(slot).is_some()), "an empty slot is accessed");
        self.region.base.as_ptr().wrapping_add(slot * PAGE_SIZE + offset)
    }

    /// One `mmu_update` for all, one more for each frame that fails, one flush if slots are reused.
    fn show(
        &mut self,
        command: u64,
        access: Access,
        frames: impl ExactSizeIterator<Item = u64>,
        errors: &mut [i32],
    ) {
        let nr_frames = frames.len();
        assert!(nr_frames <= self.nr_slots && nr_frames == errors.len(), "more frames than slots");
        let (nr_used, tables) = (self.nr_used, &self.region.tables);
        let shown = frames.enumerate();
        let shown = shown.map(|(slot, frame)| entry(tables, slot, command, Pte::new(frame, access.flags())));
        // Of a large window that is used here and there most slots are empty.
        let is_shown = |slot: &usize| shown_at(&self.region, *slot).is_some();
        let emptied = (nr_frames..nr_used)
            .filter(is_shown)
            .map(|slot| entry(tables, slot, MMU_NORMAL_PT_UPDATE, Pte::EMPTY));
        self.updates.clear();
        self.updates.extend(shown.chain(emptied));
        self.nr_used = nr_frames;
        self.commit(nr_used, errors);
    }

    /// Sends the updates, the first `nr_reused` of which are of slots that may show something; flushes the TLB then.
    fn commit(&mut self, nr_reused: usize, errors: &mut [i32]) {
        self.send(nr_reused, errors);
        if nr_reused > 0 {
            // PANIC: flushing our own TLB has no way to fail; going on without it would write to the wrong frame.
            mmu::tlb_flush_local().expect("TLB flush");
        }
    }

    /// Sends the updates; where one fails, notes it, empties its slot and all behind it that were used, and goes on behind
    /// it: where one frame is missing, more often are.
    fn send(&mut self, mut nr_reused: usize, errors: &mut [i32]) {
        errors.fill(0);
        let mut first = 0;
        nr_reused = nr_reused.min(self.updates.len());
        while first < self.updates.len() {
            let (nr_done, result) = self.update(&self.updates[first..]);
            let failed = first + nr_done;
            let Err(errno) = result else { return };
            if let Some(error) = errors.get_mut(failed) {
                *error = errno.raw();
            }
            first = failed + 1;
            if failed < nr_reused {
                self.empty(failed..nr_reused);
                nr_reused = 0;
            }
        }
    }

    /// Empties the slots of some of the updates: they still show what they did.
    fn empty(&mut self, updates: Range<usize>) {
        self.emptying.clear();
        let emptied = |update: &MmuUpdate| MmuUpdate {
            ptr: update.ptr & !MMU_PT_UPDATE_NO_TRANSLATE,
            val: Pte::EMPTY.raw(),
        };
        self.emptying.extend(self.updates[updates].iter().map(emptied));
        let (_, result) = self.update(&self.emptying);
        // PANIC: Xen takes an empty entry for a table of our own whatever it held before.
        result.expect("emptying a slot");
    }

    fn update(&self, updates: &[MmuUpdate]) -> (usize, Result<(), Errno>) {
        // SAFETY: the entries are those of the window's own address space, where no Rust value ever lives, and name
        // frames of another domain (`Target`), so no memory of ours is mapped a second time.
        unsafe { mmu::mmu_update(updates, self.target.domid()) }
    }
}

/// The frame that a slot's page table entry names.
fn shown_at(region: &Region, slot: usize) -> Option<Mfn> {
    Pte::from_raw(region.entries.read::<u64>(slot * size_of::<u64>())).mfn()
}

/// The update of one slot.
fn entry(tables: &[Mfn], slot: usize, command: u64, pte: Pte) -> MmuUpdate {
    MmuUpdate { ptr: pte::entry_maddr(tables[slot / NR_ENTRIES], slot) | command, val: pte.raw() }
}
