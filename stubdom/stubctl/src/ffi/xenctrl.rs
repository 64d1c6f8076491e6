//! libxenctrl and libxenguest: the calls that only dom0 may make, each on one named domain.
//!
//! Declarations follow `xenctrl.h` and `xenguest.h` of Xen 4.17; the sonames carry the version, so that a mismatch
//! fails at start and not in a structure.
#![allow(unsafe_code, reason = "Xen's toolstack libraries have a C interface")]

use super::pages::MachineToPhys;
use crate::xen_version::XenVersion;
use control::TscInfo;
use std::cell::OnceCell;
use std::ffi::{c_int, c_uint, c_void};
use std::fmt;
use std::ptr::{self, NonNull};
use xen_abi::types::{Domid, Gfn, Mfn};

/// `xen_domctl_getdomaininfo_t` (`xen/domctl.h`, interface version 0x15).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct GetDomainInfo {
    domain: u16,
    pad1: u16,
    flags: u32,
    tot_pages: u64,
    max_pages: u64,
    outstanding_pages: u64,
    shr_pages: u64,
    paged_pages: u64,
    shared_info_frame: u64,
    cpu_time: u64,
    nr_online_vcpus: u32,
    max_vcpu_id: u32,
    ssidref: u32,
    handle: [u8; 16],
    cpupool: u32,
    gpaddr_bits: u8,
    pad2: [u8; 7],
    arch_config: [u32; 2],
}

const XENVER_VERSION: c_int = 0;
const XENVER_EXTRAVERSION: c_int = 1;
/// Size of `xen_extraversion_t` in bytes.
const EXTRAVERSION_BYTES: usize = 16;

const XEN_DOMINF_DYING: u32 = 1 << 0;
const XEN_DOMINF_HVM_GUEST: u32 = 1 << 1;
const XEN_DOMINF_SHUTDOWN: u32 = 1 << 2;
const XEN_DOMINF_PAUSED: u32 = 1 << 3;
const XEN_DOMINF_SHUTDOWNMASK: u32 = 255;
const XEN_DOMINF_SHUTDOWNSHIFT: u32 = 16;
const SHUTDOWN_SUSPEND: u32 = 2;
const SHUTDOWN_CRASH: u32 = 3;

/// Size of `xen_cpuid_leaf_t` in bytes.
pub(crate) const CPUID_LEAF_BYTES: usize = 24;
/// Size of `xen_msr_entry_t` in bytes.
pub(crate) const MSR_ENTRY_BYTES: usize = 16;

#[repr(C)]
pub(super) struct XcInterface {
    _opaque: [u8; 0],
}

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_interface_open(
        logger: *mut c_void,
        dombuild_logger: *mut c_void,
        flags: c_uint,
    ) -> *mut XcInterface;
    fn xc_interface_close(xch: *mut XcInterface) -> c_int;
    fn xc_version(xch: *mut XcInterface, cmd: c_int, arg: *mut c_void) -> c_int;
    fn xc_domain_getinfolist(
        xch: *mut XcInterface,
        first: u32,
        max: c_uint,
        info: *mut GetDomainInfo,
    ) -> c_int;
    fn xc_domain_set_target(xch: *mut XcInterface, domid: u32, target: u32) -> c_int;
    fn xc_domain_set_tsc_info(
        xch: *mut XcInterface,
        domid: u32,
        tsc_mode: u32,
        elapsed_nsec: u64,
        gtsc_khz: u32,
        incarnation: u32,
    ) -> c_int;
    fn xc_domain_hvm_setcontext(xch: *mut XcInterface, domid: u32, ctxt: *mut u8, size: u32) -> c_int;
    fn xc_availheap(
        xch: *mut XcInterface,
        min_width: c_int,
        max_width: c_int,
        node: c_int,
        bytes: *mut u64,
    ) -> c_int;
    fn xc_domain_maximum_gpfn(xch: *mut XcInterface, domid: u32, gpfns: *mut u64) -> c_int;
}

#[link(name = "xenguest")]
unsafe extern "C" {
    fn xc_set_domain_cpu_policy(
        xch: *mut XcInterface,
        domid: u32,
        nr_leaves: u32,
        leaves: *mut c_void,
        nr_msrs: u32,
        msrs: *mut c_void,
        err_leaf: *mut u32,
        err_subleaf: *mut u32,
        err_msr: *mut u32,
    ) -> c_int;
}

/// A call into libxenctrl that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct XenError {
    /// The C function.
    pub(crate) call: &'static str,
    /// The domain it named; `None` for opening the interface.
    pub(crate) domid: Option<Domid>,
    /// Positive errno.
    pub(crate) errno: i32,
}

impl fmt::Display for XenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = std::io::Error::from_raw_os_error(self.errno);
        match self.domid {
            Some(domid) => write!(f, "{} on {domid} failed: {reason}", self.call),
            None => write!(f, "{} failed: {reason} (is this dom0, and are you root?)", self.call),
        }
    }
}

impl std::error::Error for XenError {}

/// What Xen refused in a CPU policy; fields are all-ones where they do not apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PolicyError {
    /// Positive errno.
    pub(crate) errno: i32,
    /// The CPUID leaf.
    pub(crate) leaf: u32,
    /// The CPUID subleaf.
    pub(crate) subleaf: u32,
    /// The MSR index.
    pub(crate) msr: u32,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = std::io::Error::from_raw_os_error(self.errno);
        write!(f, "this host refuses the guest's CPU policy ({reason}): ")?;
        write!(f, "CPUID leaf {:#010x}, subleaf {:#010x}, MSR {:#010x}", self.leaf, self.subleaf, self.msr)
    }
}

impl std::error::Error for PolicyError {}

/// What Xen says about a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DomainInfo {
    /// HVM or PVH.
    pub(crate) hvm: bool,
    /// Being destroyed.
    pub(crate) dying: bool,
    /// Has shut down, for whatever reason.
    pub(crate) shutdown: bool,
    /// Has shut down by crashing.
    pub(crate) crashed: bool,
    /// Has suspended itself, as it was asked to.
    pub(crate) suspended: bool,
    /// Paused by the toolstack.
    pub(crate) paused: bool,
    /// 4 KiB pages it owns.
    pub(crate) tot_pages: u64,
    /// The most 4 KiB pages it may own.
    pub(crate) max_pages: u64,
    /// Where a PV guest has its `shared_info`; of an HVM or PVH guest the number is a gfn.
    pub(crate) shared_info: Mfn,
    /// Highest number of a vCPU.
    pub(crate) max_vcpu: u32,
    /// Time on processors so far, Xen's work on its behalf included, in nanoseconds.
    pub(crate) cpu_ns: u64,
}

#[cfg(test)]
impl DomainInfo {
    /// A running PV domain without memory.
    pub(crate) fn example() -> Self {
        GetDomainInfo::default().into()
    }
}

/// An open interface to the hypervisor.
pub(crate) struct Xenctrl {
    handle: NonNull<XcInterface>,
    machine_to_phys: OnceCell<MachineToPhys>,
}

impl Xenctrl {
    /// Opens it.
    ///
    /// # Errors
    /// Not in dom0, not root, or the privcmd driver is missing.
    pub(crate) fn open() -> Result<Self, XenError> {
        // SAFETY: null loggers are allowed and mean standard error; the handle is used from this thread only.
        let handle = unsafe { xc_interface_open(ptr::null_mut(), ptr::null_mut(), 0) };
        let failed = XenError { call: "xc_interface_open", domid: None, errno: super::last_errno() };
        let handle = NonNull::new(handle).ok_or(failed)?;
        Ok(Self { handle, machine_to_phys: OnceCell::new() })
    }

    /// The handle for the calls of the other modules of this room; it is open as long as `self` lives.
    pub(super) fn raw(&self) -> *mut XcInterface {
        self.handle.as_ptr()
    }

    /// Where the machine-to-phys table is kept once it is mapped.
    pub(super) fn machine_to_phys(&self) -> &OnceCell<MachineToPhys> {
        &self.machine_to_phys
    }

    /// Looks a domain up; `None` when there is no domain of that number.
    pub(crate) fn domain_info(&self, domid: Domid) -> Result<Option<DomainInfo>, XenError> {
        let mut info = GetDomainInfo::default();
        // SAFETY: the handle is open; `info` has room for the one entry asked for.
        let nr = unsafe { xc_domain_getinfolist(self.handle.as_ptr(), domid.raw().into(), 1, &raw mut info) };
        if nr < 0 {
            return Err(XenError {
                call: "xc_domain_getinfolist",
                domid: Some(domid),
                errno: super::last_errno(),
            });
        }
        // The list starts at the first domain that is not below the number asked for.
        Ok((nr == 1 && info.domain == domid.raw()).then(|| info.into()))
    }

    /// The domain that was made with this handle, which its toolstack chose (`uuid` in xl's configuration).
    pub(crate) fn domain_made_as(&self, handle: [u8; 16]) -> Result<Option<Domid>, XenError> {
        let infos = self.domain_infos()?;
        Ok(infos.iter().find(|info| info.handle == handle).map(|info| Domid::new(info.domain)))
    }

    /// All domains.
    pub(crate) fn domains(&self) -> Result<Vec<(Domid, DomainInfo)>, XenError> {
        let infos = self.domain_infos()?;
        Ok(infos.into_iter().map(|info| (Domid::new(info.domain), info.into())).collect())
    }

    fn domain_infos(&self) -> Result<Vec<GetDomainInfo>, XenError> {
        const BATCH: c_uint = 64;
        let mut infos = Vec::new();
        let mut first = 0;
        loop {
            let mut batch = [GetDomainInfo::default(); BATCH as usize];
            // SAFETY: the handle is open; `batch` has room for the entries asked for.
            let nr = unsafe { xc_domain_getinfolist(self.handle.as_ptr(), first, BATCH, batch.as_mut_ptr()) };
            let failed =
                |_| XenError { call: "xc_domain_getinfolist", domid: None, errno: super::last_errno() };
            let found = batch.get(..usize::try_from(nr).map_err(failed)?).unwrap_or_default();
            infos.extend_from_slice(found);
            match found {
                [.., last] if found.len() == batch.len() => first = u32::from(last.domain) + 1,
                _ => return Ok(infos),
            }
        }
    }

    /// Gives `stub` its rights over `target` (`XEN_DOMCTL_set_target`): once in the stub's life.
    pub(crate) fn set_target(&self, stub: Domid, target: Domid) -> Result<(), XenError> {
        // SAFETY: the handle is open; the call takes numbers only.
        let rc =
            unsafe { xc_domain_set_target(self.handle.as_ptr(), stub.raw().into(), target.raw().into()) };
        done(rc, "xc_domain_set_target", stub)
    }

    /// Sets TSC mode, elapsed nanoseconds, frequency in kHz and incarnation (`XEN_DOMCTL_settscinfo`).
    pub(crate) fn set_tsc_info(&self, domid: Domid, info: TscInfo) -> Result<(), XenError> {
        let (xch, TscInfo { mode, khz, nsec, incarnation }) = (self.handle.as_ptr(), info);
        // SAFETY: the handle is open; the call takes numbers only.
        let rc = unsafe { xc_domain_set_tsc_info(xch, domid.raw().into(), mode, nsec, khz, incarnation) };
        done(rc, "xc_domain_set_tsc_info", domid)
    }

    /// Loads the HVM context (`XEN_DOMCTL_sethvmcontext`): vCPU registers, interrupt controllers, timers.
    pub(crate) fn hvm_setcontext(&self, domid: Domid, context: &mut [u8]) -> Result<(), XenError> {
        let error = |errno| XenError { call: "xc_domain_hvm_setcontext", domid: Some(domid), errno };
        let size = u32::try_from(context.len()).map_err(|_| error(libc::E2BIG))?;
        let (xch, start) = (self.handle.as_ptr(), context.as_mut_ptr());
        // SAFETY: the handle is open; `start` and `size` describe one exclusively borrowed buffer, which libxc only
        // copies from.
        let rc = unsafe { xc_domain_hvm_setcontext(xch, domid.raw().into(), start, size) };
        if rc < 0 { Err(error(super::last_errno())) } else { Ok(()) }
    }

    /// Sets the CPUID leaves and MSRs (`XEN_DOMCTL_set_cpu_policy`); either may be empty and then stays as it is.
    ///
    /// Both are arrays as they stand in the stream: `xen_cpuid_leaf_t` of 24 bytes, `xen_msr_entry_t` of 16 bytes.
    pub(crate) fn set_cpu_policy(
        &self,
        domid: Domid,
        leaves: &mut [u8],
        msrs: &mut [u8],
    ) -> Result<(), PolicyError> {
        let (mut leaf, mut subleaf, mut msr) = (u32::MAX, u32::MAX, u32::MAX);
        let too_big =
            |_| PolicyError { errno: libc::E2BIG, leaf: u32::MAX, subleaf: u32::MAX, msr: u32::MAX };
        let nr_leaves = u32::try_from(leaves.len() / CPUID_LEAF_BYTES).map_err(too_big)?;
        let nr_msrs = u32::try_from(msrs.len() / MSR_ENTRY_BYTES).map_err(too_big)?;
        // SAFETY: the handle is open; each count times its entry size lies within its exclusively borrowed buffer,
        // which libxc copies bytewise into a hypercall buffer, so that alignment does not matter; the three error
        // words outlive the call.
        let rc = unsafe {
            xc_set_domain_cpu_policy(
                self.handle.as_ptr(),
                domid.raw().into(),
                nr_leaves,
                leaves.as_mut_ptr().cast(),
                nr_msrs,
                msrs.as_mut_ptr().cast(),
                &raw mut leaf,
                &raw mut subleaf,
                &raw mut msr,
            )
        };
        if rc == 0 { Ok(()) } else { Err(PolicyError { errno: super::last_errno(), leaf, subleaf, msr }) }
    }

    /// How many bytes of the host's memory no domain has.
    pub(crate) fn free_bytes(&self) -> Result<u64, XenError> {
        let mut bytes = 0;
        // SAFETY: the handle is open; widths of 0 and node -1 mean all memory; `bytes` outlives the call.
        let rc = unsafe { xc_availheap(self.raw(), 0, 0, -1, &raw mut bytes) };
        let failed = || XenError { call: "xc_availheap", domid: None, errno: super::last_errno() };
        if rc < 0 { Err(failed()) } else { Ok(bytes) }
    }

    /// Which Xen runs.
    pub(crate) fn version(&self) -> Result<XenVersion, XenError> {
        let mut extra = [0_u8; EXTRAVERSION_BYTES];
        // SAFETY: the handle is open; this command takes no argument.
        let version = unsafe { xc_version(self.raw(), XENVER_VERSION, ptr::null_mut()) };
        // SAFETY: the handle is open; this command writes an `xen_extraversion_t`, which is as large as `extra`.
        let rc = unsafe { xc_version(self.raw(), XENVER_EXTRAVERSION, extra.as_mut_ptr().cast()) };
        let version = u32::try_from(version).ok().filter(|_| rc >= 0);
        let failed = || XenError { call: "xc_version", domid: None, errno: super::last_errno() };
        let version = version.ok_or_else(failed)?;
        let end = extra.iter().position(|byte| *byte == 0).unwrap_or(extra.len());
        Ok(XenVersion::new(version, &String::from_utf8_lossy(&extra[..end])))
    }

    /// One past the highest gfn that the domain has ever used.
    pub(crate) fn end_gfn(&self, domid: Domid) -> Result<Gfn, XenError> {
        let mut highest = 0;
        // SAFETY: the handle is open; `highest` is an `unsigned long`, as xen_pfn_t is on x86-64.
        let rc =
            unsafe { xc_domain_maximum_gpfn(self.handle.as_ptr(), domid.raw().into(), &raw mut highest) };
        done(rc, "xc_domain_maximum_gpfn", domid)?;
        Ok(Gfn::new(highest.saturating_add(1)))
    }
}

impl Drop for Xenctrl {
    fn drop(&mut self) {
        // SAFETY: the handle is open and nothing uses it after this.
        unsafe { xc_interface_close(self.handle.as_ptr()) };
    }
}

impl From<GetDomainInfo> for DomainInfo {
    fn from(info: GetDomainInfo) -> Self {
        let shutdown = info.flags & XEN_DOMINF_SHUTDOWN != 0;
        let reason = info.flags >> XEN_DOMINF_SHUTDOWNSHIFT & XEN_DOMINF_SHUTDOWNMASK;
        Self {
            hvm: info.flags & XEN_DOMINF_HVM_GUEST != 0,
            dying: info.flags & XEN_DOMINF_DYING != 0,
            shutdown,
            crashed: shutdown && reason == SHUTDOWN_CRASH,
            suspended: shutdown && reason == SHUTDOWN_SUSPEND,
            paused: info.flags & XEN_DOMINF_PAUSED != 0,
            tot_pages: info.tot_pages,
            max_pages: info.max_pages,
            shared_info: Mfn::new(info.shared_info_frame),
            max_vcpu: info.max_vcpu_id,
            cpu_ns: info.cpu_time,
        }
    }
}

pub(super) fn done(rc: c_int, call: &'static str, domid: Domid) -> Result<(), XenError> {
    if rc < 0 { Err(XenError { call, domid: Some(domid), errno: super::last_errno() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    // The same numbers stand as static assertions against Xen's header in tests/abi.c.
    #[test]
    fn the_domain_info_has_the_layout_of_the_header() {
        assert_eq!(size_of::<GetDomainInfo>(), 112);
        assert_eq!(offset_of!(GetDomainInfo, flags), 4);
        assert_eq!(offset_of!(GetDomainInfo, tot_pages), 8);
        assert_eq!(offset_of!(GetDomainInfo, max_pages), 16);
        assert_eq!(offset_of!(GetDomainInfo, shared_info_frame), 48);
        assert_eq!(offset_of!(GetDomainInfo, cpu_time), 56);
        assert_eq!(offset_of!(GetDomainInfo, max_vcpu_id), 68);
        assert_eq!(offset_of!(GetDomainInfo, handle), 76);
        assert_eq!(offset_of!(GetDomainInfo, arch_config), 104);
    }

    #[test]
    fn a_crash_is_a_shutdown_with_reason_three() {
        let flags = |flags| DomainInfo::from(GetDomainInfo { flags, ..Default::default() });
        assert!(flags(XEN_DOMINF_SHUTDOWN | 3 << 16).crashed);
        assert!(!flags(XEN_DOMINF_SHUTDOWN).crashed);
        assert!(!flags(3 << 16).crashed);
    }
}
