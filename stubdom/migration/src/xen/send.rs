//! What a send needs: of Xen, of dom0, and of the way out.
//!
//! Sources: `xen/include/public/xen.h` (`mmu_update`), `memory.h`, `hvm/params.h`, `domctl.h` (`shadow_op`).

use super::{BlobKind, Errno, TscInfo};
use crate::send::Bits;
use alloc::vec::Vec;
use xen_abi::types::Gfn;

/// What the stub may do to its target to read it: the target may run meanwhile.
///
/// Law that the engine relies on, and that the fake keeps: a frame that a slot shows stays the target's and is not freed,
/// whatever becomes of its gfn.
pub trait XenSend {
    /// How many slots the window has. Slots are for the caller to choose; all are empty at first.
    fn nr_slots(&self) -> usize;

    /// `mmu_update`: shows, for reading, the frame behind each gfn at its slot, and leaves all other slots as they are.
    ///
    /// `errors[i]` becomes 0 or an [`Errno`]; a frame that fails leaves its slot empty. No slot stands twice in `slots`,
    /// which has at most [`super::WINDOW_FRAMES`] entries; `errors` has as many.
    fn show(&mut self, slots: &[(usize, Gfn)], errors: &mut [i32]);

    /// Looks up which gfn leads to the frame at `slot`: the slot's own page table entry, then the machine-to-phys table.
    /// `None` when the slot is empty, when no gfn leads there any more, or when there is no such table.
    fn gfn_at(&self, slot: usize) -> Option<Gfn>;

    /// Empties the window: no frame of the target is held any more.
    fn release(&mut self);

    /// Finds the pages of Xen's own that the target has at gfns: `shared_info`, the grant table, its status frames. They
    /// can be mapped like memory and are none.
    ///
    /// # Errors
    /// What Xen returned.
    fn special_pages(&mut self, found: &mut Vec<Gfn>) -> Result<(), Errno>;

    /// `HVMOP_get_param`. `index` is an `HVM_PARAM_*` number.
    ///
    /// # Errors
    /// What Xen returned.
    fn hvm_param(&mut self, index: u32) -> Result<u64, Errno>;
}

/// Where the stream goes.
pub trait Output {
    /// Returns how many bytes there is room for now.
    fn room(&mut self) -> usize;

    /// Appends `bytes`, for which there is room.
    fn put(&mut self, bytes: &[u8]);

    /// Appends `nr_bytes` bytes, for which there is room, of the frames in the window: from byte `offset` of slot `slot` on,
    /// running over into the slots that follow. The guest may write there meanwhile.
    fn put_frames(&mut self, slot: usize, offset: usize, nr_bytes: usize);

    /// Returns the time, in nanoseconds, by a clock that does not go back.
    fn now_ns(&self) -> u64;
}

/// What only dom0 knows of the target or may do to it. Each call returns when dom0 has answered.
pub trait SendBroker {
    /// `XEN_DOMCTL_getpageframeinfo3`: adds the gfns that have a page of memory, and grows `present` to the highest gfn.
    ///
    /// # Errors
    /// What dom0 answered.
    fn present(&mut self, present: &mut Bits) -> Result<(), Errno>;

    /// `XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY`: has writes to the target logged from now on, the device model's included.
    ///
    /// # Errors
    /// What dom0 answered.
    fn start_log(&mut self) -> Result<(), Errno>;

    /// `XEN_DOMCTL_SHADOW_OP_PEEK`: how many pages the log has.
    ///
    /// # Errors
    /// What dom0 answered.
    fn nr_dirty(&mut self) -> Result<u64, Errno>;

    /// `XEN_DOMCTL_SHADOW_OP_CLEAN`: adds the pages of the log to `dirty` and empties the log.
    ///
    /// # Errors
    /// What dom0 answered.
    fn dirty(&mut self, dirty: &mut Bits) -> Result<(), Errno>;

    /// libxl's suspend callback: the target has stopped, and its device model, when it returns.
    ///
    /// # Errors
    /// It does not stop.
    fn suspend(&mut self) -> Result<(), Errno>;

    /// `XEN_DOMCTL_get_cpu_policy` or `XEN_DOMCTL_gethvmcontext`: replaces `blob`; empty when there is none.
    ///
    /// # Errors
    /// What dom0 answered, or no memory.
    fn fetch(&mut self, kind: BlobKind, blob: &mut Vec<u8>) -> Result<(), Errno>;

    /// `XEN_DOMCTL_gettscinfo`.
    ///
    /// # Errors
    /// What dom0 answered.
    fn tsc_info(&mut self) -> Result<TscInfo, Errno>;
}
