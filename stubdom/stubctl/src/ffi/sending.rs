//! libxenctrl and libxenguest: what dom0 knows of a guest that is to be sent, and the log of its writes.
//!
//! The declarations of `xenctrl.h`; `xc_get_pfn_type_batch` is exported by libxenctrl and stands in none of its installed
//! headers (`tools/libs/ctrl/xc_private.h`).
#![allow(unsafe_code, reason = "Xen's toolstack libraries have a C interface")]

use super::xenctrl::{CPUID_LEAF_BYTES, MSR_ENTRY_BYTES, XcInterface, XenError, Xenctrl, done};
use control::TscInfo;
use std::ffi::{c_int, c_uint, c_ulong, c_void};
use std::ptr::{self, NonNull};
use xen_abi::types::{Domid, Gfn, PAGE_SIZE};

/// `struct xc_hypercall_buffer`.
#[repr(C)]
struct HypercallBuffer {
    hbuf: *mut c_void,
    param_shadow: *mut Self,
    dir: c_int,
    ubuf: *mut c_void,
    sz: usize,
}

/// `xc_shadow_op_stats_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ShadowStats {
    fault_count: u32,
    dirty_count: u32,
}

/// `xc_cpu_policy_t`.
#[repr(C)]
struct CpuPolicy {
    _opaque: [u8; 0],
}

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc__hypercall_buffer_alloc_pages(
        xch: *mut XcInterface,
        buffer: *mut HypercallBuffer,
        nr_pages: c_int,
    ) -> *mut c_void;
    fn xc__hypercall_buffer_free_pages(xch: *mut XcInterface, buffer: *mut HypercallBuffer, nr_pages: c_int);
    fn xc_logdirty_control(
        xch: *mut XcInterface,
        domid: u32,
        sop: c_uint,
        dirty_bitmap: *mut HypercallBuffer,
        pages: c_ulong,
        mode: c_uint,
        stats: *mut ShadowStats,
    ) -> i64;
    fn xc_get_pfn_type_batch(xch: *mut XcInterface, dom: u32, num: c_uint, arr: *mut u64) -> c_int;
    fn xc_domain_get_tsc_info(
        xch: *mut XcInterface,
        domid: u32,
        tsc_mode: *mut u32,
        elapsed_nsec: *mut u64,
        gtsc_khz: *mut u32,
        incarnation: *mut u32,
    ) -> c_int;
    fn xc_domain_hvm_getcontext(xch: *mut XcInterface, domid: u32, ctxt: *mut u8, size: u32) -> c_int;
    fn xc_domain_get_pod_target(
        xch: *mut XcInterface,
        domid: u32,
        tot_pages: *mut u64,
        pod_cache_pages: *mut u64,
        pod_entries: *mut u64,
    ) -> c_int;
}

#[link(name = "xenguest")]
unsafe extern "C" {
    fn xc_cpu_policy_init() -> *mut CpuPolicy;
    fn xc_cpu_policy_destroy(policy: *mut CpuPolicy);
    fn xc_cpu_policy_get_domain(xch: *mut XcInterface, domid: u32, policy: *mut CpuPolicy) -> c_int;
    fn xc_cpu_policy_get_size(xch: *mut XcInterface, nr_leaves: *mut u32, nr_msrs: *mut u32) -> c_int;
    fn xc_cpu_policy_serialise(
        xch: *mut XcInterface,
        policy: *const CpuPolicy,
        leaves: *mut c_void,
        nr_leaves: *mut u32,
        msrs: *mut c_void,
        nr_msrs: *mut u32,
    ) -> c_int;
}

// `XEN_DOMCTL_SHADOW_OP_*` (`xen/domctl.h`).
const SHADOW_OP_OFF: c_uint = 0;
const SHADOW_OP_ENABLE_LOGDIRTY: c_uint = 2;
const SHADOW_OP_CLEAN: c_uint = 11;
const SHADOW_OP_PEEK: c_uint = 12;
/// `XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL`: the guest has stopped, so frames that Xen itself has mapped count too.
const SHADOW_LOGDIRTY_FINAL: c_uint = 1;

/// Most gfns of one call (`XEN_DOMCTL_getpageframeinfo3`).
const MAX_TYPES: u64 = 1024;

/// What a gfn has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Memory of the guest's.
    Memory,
    /// None, or a page of Xen's own.
    None,
    /// Memory that has failed.
    Broken,
}

impl Backing {
    /// `XEN_DOMCTL_PFINFO_BROKEN`.
    const PFINFO_BROKEN: u64 = 0xd << 28;

    fn new(raw: u64) -> Self {
        match raw {
            0 => Self::Memory, // XEN_DOMCTL_PFINFO_NOTAB
            Self::PFINFO_BROKEN => Self::Broken,
            _ => Self::None,
        }
    }
}

/// The CPUID and MSR policies, as they stand in a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policies {
    /// `xen_cpuid_leaf_t[]`.
    pub(crate) leaves: Vec<u8>,
    /// `xen_msr_entry_t[]`.
    pub(crate) msrs: Vec<u8>,
}

impl Xenctrl {
    /// Has Xen log which pages are written to. A log that somebody left behind, who died, is replaced.
    pub(crate) fn start_log(&self, domid: Domid) -> Result<(), XenError> {
        let start = || self.log_control(domid, SHADOW_OP_ENABLE_LOGDIRTY);
        start().or_else(|error| {
            if error.errno != libc::EINVAL {
                return Err(error);
            }
            self.end_log(domid)?;
            start()
        })
    }

    /// Ends the log.
    pub(crate) fn end_log(&self, domid: Domid) -> Result<(), XenError> {
        self.log_control(domid, SHADOW_OP_OFF)
    }

    /// How many pages the log has.
    pub(crate) fn nr_logged(&self, domid: Domid) -> Result<u64, XenError> {
        let mut stats = ShadowStats::default();
        let xch = self.raw();
        // SAFETY: the handle is open; without a bitmap and pages Xen writes to `stats` alone.
        let rc = unsafe {
            xc_logdirty_control(
                xch,
                domid.raw().into(),
                SHADOW_OP_PEEK,
                ptr::null_mut(),
                0,
                0,
                &raw mut stats,
            )
        };
        log_result(rc, domid)?;
        Ok(stats.dirty_count.into())
    }

    fn log_control(&self, domid: Domid, op: c_uint) -> Result<(), XenError> {
        let xch = self.raw();
        // SAFETY: the handle is open; these operations take neither a bitmap nor a place for statistics.
        let rc = unsafe {
            xc_logdirty_control(xch, domid.raw().into(), op, ptr::null_mut(), 0, 0, ptr::null_mut())
        };
        log_result(rc, domid)
    }

    /// What the gfns from `first` on have; at most 1,024 are looked at, those below `end`.
    pub(crate) fn backings(&self, domid: Domid, first: Gfn, end: Gfn) -> Result<Vec<Backing>, XenError> {
        let mut types: Vec<u64> = (first.raw()..end.raw().min(first.raw() + MAX_TYPES)).collect();
        let nr = c_uint::try_from(types.len()).unwrap_or(0);
        // SAFETY: the handle is open; libxenctrl reads and writes `nr` words of `types`.
        let rc = unsafe { xc_get_pfn_type_batch(self.raw(), domid.raw().into(), nr, types.as_mut_ptr()) };
        done(rc, "xc_get_pfn_type_batch", domid)?;
        Ok(types.into_iter().map(Backing::new).collect())
    }

    /// The TSC information (`XEN_DOMCTL_gettscinfo`).
    pub(crate) fn tsc_info(&self, domid: Domid) -> Result<TscInfo, XenError> {
        let mut info = TscInfo { mode: 0, khz: 0, nsec: 0, incarnation: 0 };
        let TscInfo { mode, khz, nsec, incarnation } = &mut info;
        // SAFETY: the handle is open; each pointer is to a value of its own that outlives the call.
        let rc =
            unsafe { xc_domain_get_tsc_info(self.raw(), domid.raw().into(), mode, nsec, khz, incarnation) };
        done(rc, "xc_domain_get_tsc_info", domid)?;
        Ok(info)
    }

    /// The HVM context (`XEN_DOMCTL_gethvmcontext`).
    pub(crate) fn hvm_context(&self, domid: Domid) -> Result<Vec<u8>, XenError> {
        let call = "xc_domain_hvm_getcontext";
        // SAFETY: the handle is open; without a buffer the call only asks for the size.
        let size = unsafe { xc_domain_hvm_getcontext(self.raw(), domid.raw().into(), ptr::null_mut(), 0) };
        done(size, call, domid)?;
        let mut context = vec![0; usize::try_from(size).unwrap_or(0)];
        let room = u32::try_from(size).unwrap_or(0);
        // SAFETY: the handle is open; `context` has `room` bytes, which libxenctrl copies to.
        let size =
            unsafe { xc_domain_hvm_getcontext(self.raw(), domid.raw().into(), context.as_mut_ptr(), room) };
        done(size, call, domid)?;
        context.truncate(usize::try_from(size).unwrap_or(0));
        Ok(context)
    }

    /// The CPU policies (`XEN_DOMCTL_get_cpu_policy`).
    pub(crate) fn cpu_policies(&self, domid: Domid) -> Result<Policies, XenError> {
        let call = "xc_cpu_policy_serialise";
        let (xch, policy) = (self.raw(), OwnedPolicy::of(self, domid)?);
        let (mut nr_leaves, mut nr_msrs) = (0, 0);
        // SAFETY: the handle is open; both counts outlive the call.
        let rc = unsafe { xc_cpu_policy_get_size(xch, &raw mut nr_leaves, &raw mut nr_msrs) };
        done(rc, "xc_cpu_policy_get_size", domid)?;
        let mut leaves = vec![0; nr_leaves as usize * CPUID_LEAF_BYTES];
        let mut msrs = vec![0; nr_msrs as usize * MSR_ENTRY_BYTES];
        let (leaf, msr) = (leaves.as_mut_ptr().cast(), msrs.as_mut_ptr().cast());
        // SAFETY: the handle is open and the policy alive; the two buffers have room for as many entries as the counts say,
        // which the call replaces by how many there are. It writes entries bytewise, so alignment does not matter.
        let rc = unsafe {
            xc_cpu_policy_serialise(xch, policy.0.as_ptr(), leaf, &raw mut nr_leaves, msr, &raw mut nr_msrs)
        };
        done(rc, call, domid)?;
        leaves.truncate(nr_leaves as usize * CPUID_LEAF_BYTES);
        msrs.truncate(nr_msrs as usize * MSR_ENTRY_BYTES);
        Ok(Policies { leaves, msrs })
    }

    /// How many gfns are populated on demand and have no page yet (`XENMEM_get_pod_target`).
    pub(crate) fn nr_populated_on_demand(&self, domid: Domid) -> Result<u64, XenError> {
        let (mut total, mut cached, mut nr_entries) = (0, 0, 0);
        let (total, cached, entries) = (&raw mut total, &raw mut cached, &raw mut nr_entries);
        // SAFETY: the handle is open; the three values outlive the call.
        let rc = unsafe { xc_domain_get_pod_target(self.raw(), domid.raw().into(), total, cached, entries) };
        done(rc, "xc_domain_get_pod_target", domid)?;
        Ok(nr_entries)
    }
}

fn log_result(rc: i64, domid: Domid) -> Result<(), XenError> {
    done(if rc < 0 { -1 } else { 0 }, "xc_logdirty_control", domid)
}

/// A guest's CPU policy as libxenguest holds it.
struct OwnedPolicy(NonNull<CpuPolicy>);

impl OwnedPolicy {
    fn of(xen: &Xenctrl, domid: Domid) -> Result<Self, XenError> {
        let call = "xc_cpu_policy_get_domain";
        let no_memory = XenError { call, domid: Some(domid), errno: libc::ENOMEM };
        // SAFETY: the call takes nothing and gives a new policy or null.
        let policy = Self(NonNull::new(unsafe { xc_cpu_policy_init() }).ok_or(no_memory)?);
        // SAFETY: the handle is open and the policy is alive.
        let rc = unsafe { xc_cpu_policy_get_domain(xen.raw(), domid.raw().into(), policy.0.as_ptr()) };
        done(rc, call, domid)?;
        Ok(policy)
    }
}

impl Drop for OwnedPolicy {
    fn drop(&mut self) {
        // SAFETY: the policy is alive, and nothing uses it after this.
        unsafe { xc_cpu_policy_destroy(self.0.as_ptr()) };
    }
}

/// Memory that Xen writes the log to: locked, so that no bit is lost on the way.
pub(crate) struct LogBuffer<'a> {
    xen: &'a Xenctrl,
    buffer: Box<HypercallBuffer>,
    bitmap: NonNull<u8>,
    nr_pages: c_int,
    end: Gfn,
}

impl<'a> LogBuffer<'a> {
    /// Allocates room for the gfns below `end`.
    pub(crate) fn new(xen: &'a Xenctrl, end: Gfn) -> Result<Self, XenError> {
        let no_memory =
            XenError { call: "xc_hypercall_buffer_alloc_pages", domid: None, errno: libc::ENOMEM };
        let nr_pages = end.raw().div_ceil(8).div_ceil(PAGE_SIZE as u64).max(1);
        let nr_pages = c_int::try_from(nr_pages).map_err(|_| no_memory)?;
        let mut buffer = Box::new(HypercallBuffer {
            hbuf: ptr::null_mut(),
            param_shadow: ptr::null_mut(),
            dir: 0,
            ubuf: ptr::without_provenance_mut(usize::MAX), // HYPERCALL_BUFFER_INIT_NO_BOUNCE
            sz: 0,
        });
        // SAFETY: the handle is open; `buffer` is initialised as DECLARE_HYPERCALL_BUFFER does and stays where it is.
        let bitmap = unsafe { xc__hypercall_buffer_alloc_pages(xen.raw(), &raw mut *buffer, nr_pages) };
        let bitmap = NonNull::new(bitmap.cast::<u8>()).ok_or(no_memory)?;
        Ok(Self { xen, buffer, bitmap, nr_pages, end })
    }

    /// One past the highest gfn that there is room for.
    pub(crate) fn end(&self) -> Gfn {
        self.end
    }

    /// Takes the log, which is empty then, as a bitmap with the lowest bit first. `is_final`: the guest has stopped.
    pub(crate) fn take(&mut self, domid: Domid, is_final: bool) -> Result<&[u8], XenError> {
        let nr_bytes = self.nr_pages as usize * PAGE_SIZE;
        // SAFETY: the buffer has `nr_pages` pages, mapped and writable while `self` lives; nobody else has a reference. It
        // is cleared because Xen 4.17 writes nothing for a guest that is dying.
        unsafe { self.bitmap.write_bytes(0, nr_bytes) };
        let mode = if is_final { SHADOW_LOGDIRTY_FINAL } else { 0 };
        let (xch, buffer, mut stats) = (self.xen.raw(), &raw mut *self.buffer, ShadowStats::default());
        // SAFETY: the handle is open; `buffer` is an allocated hypercall buffer with a bit for each gfn below `end`;
        // `stats` outlives the call.
        let rc = unsafe {
            xc_logdirty_control(
                xch,
                domid.raw().into(),
                SHADOW_OP_CLEAN,
                buffer,
                self.end.raw(),
                mode,
                &raw mut stats,
            )
        };
        log_result(rc, domid)?;
        // SAFETY: as above; Xen has written the buffer and does not any more, and the borrow of `self` keeps us from it.
        Ok(unsafe { std::slice::from_raw_parts(self.bitmap.as_ptr(), nr_bytes) })
    }
}

impl Drop for LogBuffer<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is open, the buffer was allocated with so many pages, and nothing uses it after this.
        unsafe {
            xc__hypercall_buffer_free_pages(self.xen.raw(), &raw mut *self.buffer, self.nr_pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_has_no_type_of_its_own() {
        assert_eq!(
            [0, 0xf << 28, 0xd << 28].map(Backing::new),
            [Backing::Memory, Backing::None, Backing::Broken]
        );
    }
}
