//! libxenctrl, libxenguest and libxencall: what dom0 does to a PV guest's page tables and frames.
//!
//! Declarations follow `xenctrl.h`, `xenguest.h` and `xencall.h` of Xen 4.17. `mmu_update` is called without libxenctrl,
//! whose `xc_flush_mmu_updates` has no way to name the owner of the tables and tells nobody how many updates were done; and
//! so is `XENMEM_exchange`, for which `xc_domain_memory_exchange_pages` hands Xen an empty list of results: the new frame
//! would have no pfn in the machine-to-phys table, which shows when the guest is saved.
#![allow(unsafe_code, reason = "Xen's toolstack libraries have a C interface")]

use super::xenctrl::{XcInterface, XenError, Xenctrl, done};
use migration::exchange_pv::{PageType, Table, Update};
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{self, NonNull};
use std::slice;
use xen_abi::grant_entry::Version;
use xen_abi::types::{Domid, Mfn, Pfn, Port};

/// `struct mmuext_op`.
#[repr(C)]
struct MmuextOp {
    cmd: c_uint,
    mfn: u64,
    arg2: u64,
}

/// `mmu_update_t`.
#[repr(C)]
struct MmuUpdate {
    ptr: u64,
    val: u64,
}

/// `struct xen_domctl` with `getpageframeinfo3`.
#[repr(C)]
struct PageFrameInfo3 {
    cmd: u32,
    interface_version: u32,
    domain: u16,
    pad: [u16; 3],
    num: u64,
    array: *mut u64,
    rest: [u64; 14],
}

/// `struct xen_memory_reservation`.
#[repr(C)]
struct MemoryReservation {
    extent_start: *mut u64,
    nr_extents: u64,
    extent_order: u32,
    mem_flags: u32,
    domid: u16,
    pad: [u16; 3],
}

/// `struct xen_memory_exchange`.
#[repr(C)]
struct MemoryExchange {
    from: MemoryReservation,
    to: MemoryReservation,
    nr_exchanged: u64,
}

/// `vcpu_guest_context_t`, as words.
type VcpuContext = [u64; 646];

const MMUEXT_PIN_L1_TABLE: c_uint = 0;
const MMUEXT_UNPIN_TABLE: c_uint = 4;
const HYPERVISOR_MMU_UPDATE: c_uint = 1;
const HYPERVISOR_DOMCTL: c_uint = 36;
const XEN_DOMCTL_INTERFACE_VERSION: u32 = 0x15;
const XEN_DOMCTL_GETPAGEFRAMEINFO3: u32 = 61;
const PFINFO_LTAB_SHIFT: u32 = 28;
const PFINFO_LPINTAB: u64 = 1 << 31;
const PFINFO_BROKEN: u64 = 0xd; // and above: frames that are not the guest's
const PAGE_BYTES: usize = 4096;

#[repr(C)]
struct XenCall {
    _opaque: [u8; 0],
}

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_domain_pause(xch: *mut XcInterface, domid: u32) -> c_int;
    fn xc_domain_unpause(xch: *mut XcInterface, domid: u32) -> c_int;
    fn xc_domain_subscribe_for_suspend(xch: *mut XcInterface, domid: u32, port: u32) -> c_int;
    fn xc_evtchn_alloc_unbound(xch: *mut XcInterface, dom: u32, remote_dom: u32) -> c_int;
    fn xc_vcpu_getcontext(xch: *mut XcInterface, domid: u32, vcpu: u32, ctxt: *mut VcpuContext) -> c_int;
    fn xc_mmuext_op(xch: *mut XcInterface, op: *mut MmuextOp, nr_ops: c_uint, dom: u32) -> c_int;
    fn xc_gnttab_get_version(xch: *mut XcInterface, domid: u32) -> c_int;
    fn xc_gnttab_map_table_v1(xch: *mut XcInterface, domid: u32, gnt_num: *mut c_int) -> *mut c_void;
    fn xc_gnttab_map_table_v2(xch: *mut XcInterface, domid: u32, gnt_num: *mut c_int) -> *mut c_void;
}

#[link(name = "xenguest")]
unsafe extern "C" {
    fn xc_domain_resume(xch: *mut XcInterface, domid: u32, fast: c_int) -> c_int;
}

#[link(name = "xencall")]
unsafe extern "C" {
    fn xencall_open(logger: *mut c_void, open_flags: c_uint) -> *mut XenCall;
    fn xencall_close(xcall: *mut XenCall) -> c_int;
    fn xencall1(xcall: *mut XenCall, op: c_uint, arg1: u64) -> c_int;
    fn xencall2(xcall: *mut XenCall, op: c_uint, arg1: u64, arg2: u64) -> c_int;
    fn xencall4(xcall: *mut XenCall, op: c_uint, arg1: u64, arg2: u64, arg3: u64, arg4: u64) -> c_int;
    fn xencall_alloc_buffer(xcall: *mut XenCall, size: usize) -> *mut c_void;
    fn xencall_free_buffer(xcall: *mut XenCall, p: *mut c_void);
}

/// What of a suspended vCPU leads to frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VcpuFrames {
    /// `start_info`, if this is the vCPU that suspended the guest.
    pub(crate) start_info: Mfn,
    /// The descriptor table's frames.
    pub(crate) gdt: Vec<Mfn>,
    /// Kernel's and user's page table.
    pub(crate) roots: [Mfn; 2],
}

impl Xenctrl {
    /// Stops all vCPUs of a domain; returns when they stand (`XEN_DOMCTL_pausedomain`). Pauses are counted.
    pub(crate) fn pause(&self, domid: Domid) -> Result<(), XenError> {
        // SAFETY: the handle is open; the call takes numbers only.
        let rc = unsafe { xc_domain_pause(self.raw(), domid.raw().into()) };
        done(rc, "xc_domain_pause", domid)
    }

    /// Takes a pause back (`XEN_DOMCTL_unpausedomain`).
    pub(crate) fn unpause(&self, domid: Domid) -> Result<(), XenError> {
        // SAFETY: the handle is open; the call takes numbers only.
        let rc = unsafe { xc_domain_unpause(self.raw(), domid.raw().into()) };
        done(rc, "xc_domain_unpause", domid)
    }

    /// Lets a suspended guest go on where it suspended, as after a cancelled suspension.
    pub(crate) fn resume(&self, domid: Domid) -> Result<(), XenError> {
        // SAFETY: the handle is open; the call takes numbers only.
        let rc = unsafe { xc_domain_resume(self.raw(), domid.raw().into(), 1) };
        done(rc, "xc_domain_resume", domid)
    }

    /// Has Xen send an event through this port of the guest when it has suspended, *instead of* telling xenstored of the
    /// shutdown (`XEN_DOMCTL_subscribe`); `None` has it tell xenstored again.
    pub(crate) fn subscribe_for_suspend(&self, domid: Domid, port: Option<Port>) -> Result<(), XenError> {
        let port = port.map_or(0, Port::raw);
        // SAFETY: the handle is open; the call takes numbers only.
        let rc = unsafe { xc_domain_subscribe_for_suspend(self.raw(), domid.raw().into(), port) };
        done(rc, "xc_domain_subscribe_for_suspend", domid)
    }

    /// Makes a port of the guest to which dom0 may bind.
    pub(crate) fn alloc_unbound(&self, domid: Domid) -> Result<Port, XenError> {
        // SAFETY: the handle is open; the call takes numbers only.
        let port = unsafe { xc_evtchn_alloc_unbound(self.raw(), domid.raw().into(), 0) };
        done(port, "xc_evtchn_alloc_unbound", domid)?;
        Ok(Port::new(port.unsigned_abs()))
    }

    /// Reads the frames that a vCPU refers to; `None` for one that was never started.
    pub(crate) fn vcpu_frames(&self, domid: Domid, vcpu: u32) -> Result<Option<VcpuFrames>, XenError> {
        let mut context: Box<VcpuContext> = Box::new([0; 646]);
        // SAFETY: the handle is open; `context` has the size of the union (5168 bytes) that libxenctrl fills.
        let rc = unsafe { xc_vcpu_getcontext(self.raw(), domid.raw().into(), vcpu, &raw mut *context) };
        match done(rc, "xc_vcpu_getcontext", domid) {
            Err(error) if error.errno == libc::ENODATA => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Ok(Some(frames_of(&context))),
        }
    }

    /// `MMUEXT_PIN_Ln_TABLE`; `Err` is a positive errno.
    pub(crate) fn pin(&self, domid: Domid, mfn: Mfn, level: u8) -> Result<(), i32> {
        self.mmuext(domid, MMUEXT_PIN_L1_TABLE + c_uint::from(level).saturating_sub(1), mfn)
    }

    /// `MMUEXT_UNPIN_TABLE`; `Err` is a positive errno.
    pub(crate) fn unpin(&self, domid: Domid, mfn: Mfn) -> Result<(), i32> {
        self.mmuext(domid, MMUEXT_UNPIN_TABLE, mfn)
    }

    fn mmuext(&self, domid: Domid, cmd: c_uint, mfn: Mfn) -> Result<(), i32> {
        let mut op = MmuextOp { cmd, mfn: mfn.raw(), arg2: 0 };
        // SAFETY: the handle is open; `op` is the one operation announced.
        let rc = unsafe { xc_mmuext_op(self.raw(), &raw mut op, 1, domid.raw().into()) };
        if rc < 0 { Err(super::last_errno()) } else { Ok(()) }
    }

    /// Copies a guest's grant table.
    pub(crate) fn grant_table(&self, domid: Domid) -> Result<(Version, Vec<u8>), XenError> {
        let (xch, id) = (self.raw(), domid.raw().into());
        // SAFETY: the handle is open; the call takes numbers only.
        let version = unsafe { xc_gnttab_get_version(xch, id) };
        done(version, "xc_gnttab_get_version", domid)?;
        let mut nr_entries: c_int = 0;
        let (version, size, table) = if version == 2 {
            // SAFETY: the handle is open; `nr_entries` is written.
            (Version::V2, 16, unsafe { xc_gnttab_map_table_v2(xch, id, &raw mut nr_entries) })
        } else {
            // SAFETY: the handle is open; `nr_entries` is written.
            (Version::V1, 8, unsafe { xc_gnttab_map_table_v1(xch, id, &raw mut nr_entries) })
        };
        let error =
            || XenError { call: "xc_gnttab_map_table", domid: Some(domid), errno: super::last_errno() };
        let table = NonNull::new(table).ok_or_else(error)?;
        let nr_bytes = usize::try_from(nr_entries).unwrap_or(0) * size;
        let mut copy = vec![0; nr_bytes];
        // SAFETY: libxenctrl has mapped that many entries for reading; `copy` is ours and as long.
        unsafe { ptr::copy_nonoverlapping(table.as_ptr().cast::<u8>(), copy.as_mut_ptr(), nr_bytes) };
        // SAFETY: the mapping is of whole pages from `table` on; nothing points there any more.
        unsafe { libc::munmap(table.as_ptr(), nr_bytes.next_multiple_of(PAGE_BYTES)) };
        Ok((version, copy))
    }
}

/// Offsets in `vcpu_guest_context_t`, in words; tests/abi.c has them in bytes.
fn frames_of(context: &VcpuContext) -> VcpuFrames {
    const RDX: usize = 616 / 8;
    const GDT_FRAMES: usize = 4832 / 8;
    const GDT_ENTS: usize = 4960 / 8;
    const CTRLREG: usize = 4984 / 8;
    let gdt_bytes = context[GDT_ENTS].min(16 * 512).div_ceil(512);
    let gdt = context[GDT_FRAMES..].iter().zip(0..gdt_bytes).map(|(mfn, _)| Mfn::new(*mfn)).collect();
    let root = |register: usize| Mfn::new(context[CTRLREG + register] >> 12);
    VcpuFrames { start_info: Mfn::new(context[RDX]), gdt, roots: [root(3), root(1)] }
}

/// Hypercalls that libxenctrl offers no door to.
pub(crate) struct Hypercalls(NonNull<XenCall>);

impl Hypercalls {
    /// Opens the way.
    pub(crate) fn open() -> Result<Self, XenError> {
        // SAFETY: a null logger means standard error; no flags; the handle is used from this thread only.
        let handle = unsafe { xencall_open(ptr::null_mut(), 0) };
        let error = || XenError { call: "xencall_open", domid: None, errno: super::last_errno() };
        NonNull::new(handle).map(Self).ok_or_else(error)
    }

    /// `mmu_update` of page tables that `domid` owns and that map its own frames; `Err` tells how many updates were done
    /// and a positive errno.
    pub(crate) fn mmu_update(&self, domid: Domid, updates: &[Update]) -> Result<(), (usize, i32)> {
        let nothing_done = |errno| (0, errno);
        let nr = u64::try_from(updates.len()).map_err(|_| (0, libc::E2BIG))?;
        let mut list = Buffer::<MmuUpdate>::new(self, updates.len()).map_err(nothing_done)?;
        for (slot, update) in list.words().iter_mut().zip(updates) {
            *slot =
                MmuUpdate { ptr: update.table.raw() << 12 | (update.index as u64) << 3, val: update.value };
        }
        let mut nr_done = Buffer::<u32>::new(self, 1).map_err(nothing_done)?;
        // Owner of the frames in the lower half, owner of the tables plus one in the upper.
        let foreigndom = u64::from(domid.raw()) | (u64::from(domid.raw()) + 1) << 16;
        let (list, handle) = (list.address(), self.0.as_ptr());
        // SAFETY: the handle is open; both buffers hold what Xen reads and writes, `nr` updates and one count.
        let rc = unsafe { xencall4(handle, HYPERVISOR_MMU_UPDATE, list, nr, nr_done.address(), foreigndom) };
        if rc < 0 { Err((nr_done.words()[0] as usize, super::last_errno())) } else { Ok(()) }
    }

    /// A hypercall of two arguments.
    ///
    /// # Safety
    /// The arguments name memory that Xen may read and write until this returns.
    pub(super) unsafe fn call2(&self, op: c_uint, first: u64, second: u64) -> c_int {
        // SAFETY: the handle is open; the caller vouches for the arguments.
        unsafe { xencall2(self.0.as_ptr(), op, first, second) }
    }

    /// What `XENMEM_exchange` takes for one frame, for which Xen chooses another and calls it `pfn`; `Err` is a positive
    /// errno.
    pub(super) fn exchange_of(&self, domid: Domid, old: Mfn, pfn: Pfn) -> Result<Exchange<'_>, i32> {
        let mut from = Buffer::<u64>::new(self, 1)?;
        from.words()[0] = old.raw();
        let mut to = Buffer::<u64>::new(self, 1)?;
        to.words()[0] = pfn.raw();
        let one = |extent_start: &Buffer<u64>| MemoryReservation {
            extent_start: extent_start.start.as_ptr(),
            nr_extents: 1,
            extent_order: 0,
            mem_flags: 0,
            domid: domid.raw(),
            pad: [0; 3],
        };
        let mut exchange = Buffer::<MemoryExchange>::new(self, 1)?;
        exchange.words()[0] = MemoryExchange { from: one(&from), to: one(&to), nr_exchanged: 0 };
        Ok(Exchange { call: exchange, _from: from, to })
    }

    /// `XEN_DOMCTL_getpageframeinfo3` for at most 1024 frames; `Err` is a positive errno.
    pub(crate) fn page_types(&self, domid: Domid, mfns: &[Mfn], types: &mut [PageType]) -> Result<(), i32> {
        let mut array = Buffer::<u64>::new(self, mfns.len())?;
        for (slot, mfn) in array.words().iter_mut().zip(mfns) {
            *slot = mfn.raw();
        }
        let mut domctl = Buffer::<PageFrameInfo3>::new(self, 1)?;
        domctl.words()[0] = PageFrameInfo3 {
            cmd: XEN_DOMCTL_GETPAGEFRAMEINFO3,
            interface_version: XEN_DOMCTL_INTERFACE_VERSION,
            domain: domid.raw(),
            pad: [0; 3],
            num: mfns.len() as u64,
            array: array.start.as_ptr(),
            rest: [0; 14],
        };
        // SAFETY: the handle is open; the structure and the array that it names are hypercall buffers.
        let rc = unsafe { xencall1(self.0.as_ptr(), HYPERVISOR_DOMCTL, domctl.address()) };
        if rc < 0 {
            return Err(super::last_errno());
        }
        for (page_type, word) in types.iter_mut().zip(array.words()) {
            *page_type = page_type_of(*word);
        }
        Ok(())
    }
}

impl Drop for Hypercalls {
    fn drop(&mut self) {
        // SAFETY: the handle is open, every buffer borrowed `self` and is gone.
        unsafe { xencall_close(self.0.as_ptr()) };
    }
}

fn page_type_of(word: u64) -> PageType {
    match (word >> PFINFO_LTAB_SHIFT) & 0xf {
        PFINFO_BROKEN.. => PageType::Foreign,
        // The lower three bits are 1 to 4.
        nibble if nibble & 7 != 0 => {
            let level = (nibble & 7) as u8;
            PageType::Table(Table { level, is_pinned: word & PFINFO_LPINTAB != 0 })
        }
        _ => PageType::Data,
    }
}

/// An exchange of one frame, with its two lists of one entry.
pub(super) struct Exchange<'a> {
    call: Buffer<'a, MemoryExchange>,
    _from: Buffer<'a, u64>,
    to: Buffer<'a, u64>,
}

impl Exchange<'_> {
    pub(super) fn address(&self) -> u64 {
        self.call.address()
    }

    /// The frame that Xen has put there, once it has.
    pub(super) fn new_frame(&mut self) -> Mfn {
        Mfn::new(self.to.words()[0])
    }
}

/// Memory that Xen may read and write while a hypercall runs; zero at first. `T` is plain words.
pub(super) struct Buffer<'a, T> {
    owner: &'a Hypercalls,
    start: NonNull<T>,
    len: usize,
}

impl<'a, T> Buffer<'a, T> {
    pub(super) fn new(owner: &'a Hypercalls, len: usize) -> Result<Self, i32> {
        let size = len.checked_mul(size_of::<T>()).ok_or(libc::E2BIG)?;
        // SAFETY: the handle is open; the buffer is page aligned and zeroed.
        let start = unsafe { xencall_alloc_buffer(owner.0.as_ptr(), size.max(1)) };
        Ok(Self { owner, start: NonNull::new(start.cast()).ok_or_else(super::last_errno)?, len })
    }

    pub(super) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// The address, for a structure that Xen follows.
    pub(super) fn start(&self) -> *mut T {
        self.start.as_ptr()
    }

    pub(super) fn words(&mut self) -> &mut [T] {
        // SAFETY: the buffer has room for `len` values, is aligned, zeroed at first (all bits zero is a value of every `T`
        // used here), exclusively borrowed, and Xen writes only during a hypercall.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Buffer<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the buffer came from this handle and nothing points there after this.
        unsafe { xencall_free_buffer(self.owner.0.as_ptr(), self.start.as_ptr().cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    // The same numbers stand as static assertions against Xen's header in tests/abi.c.
    #[test]
    fn structures_have_the_layout_of_the_header() {
        assert_eq!((size_of::<MmuextOp>(), offset_of!(MmuextOp, mfn)), (24, 8));
        assert_eq!(size_of::<MmuUpdate>(), 16);
        assert_eq!((size_of::<MemoryReservation>(), offset_of!(MemoryReservation, domid)), (32, 24));
        assert_eq!((size_of::<MemoryExchange>(), offset_of!(MemoryExchange, nr_exchanged)), (72, 64));
        assert_eq!((size_of::<PageFrameInfo3>(), offset_of!(PageFrameInfo3, array)), (144, 24));
        assert_eq!(offset_of!(PageFrameInfo3, num), 16);
        assert_eq!(size_of::<VcpuContext>(), 5168);
    }

    #[test]
    fn a_page_type_word_has_its_level_and_its_pin() {
        let table = |level, is_pinned| PageType::Table(Table { level, is_pinned });
        assert_eq!(page_type_of(0), PageType::Data);
        assert_eq!(page_type_of(1 << 28), table(1, false));
        assert_eq!(page_type_of(4 << 28 | 1 << 31), table(4, true));
        assert_eq!(page_type_of(0xf << 28), PageType::Foreign);
        assert_eq!(page_type_of(0xd << 28), PageType::Foreign);
    }

    #[test]
    fn a_context_names_its_frames() {
        let mut context = [0; 646];
        (context[616 / 8], context[4960 / 8]) = (0x77, 16);
        (context[4832 / 8], context[4984 / 8 + 3]) = (0x55, 0x1234_5000);
        let frames = frames_of(&context);
        assert_eq!((frames.start_info, frames.gdt), (Mfn::new(0x77), vec![Mfn::new(0x55)]));
        assert_eq!(frames.roots, [Mfn::new(0x12345), Mfn::new(0)]);
    }
}
