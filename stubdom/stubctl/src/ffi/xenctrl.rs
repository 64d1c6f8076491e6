//! What only dom0 may do with the hypervisor, each on one named domain.
#![allow(unsafe_code, reason = "hypercalls with buffers; each block names them")]

use super::hypercalls::{Buffer, Hypercalls, OpenError};
use crate::xen_version::XenVersion;
use control::TscInfo;
use std::fmt;
use xen_abi::abi::*;
use xen_abi::types::{Domid, Gfn, Mfn};

/// How many domains are looked up in one call.
const LIST_DOMAINS: usize = 64;

/// A call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct XenError {
    /// The hypercall, or the library's function.
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
        DomctlGetdomaininfo::default().into()
    }
}

/// An open interface to the hypervisor.
pub(crate) struct Xenctrl {
    calls: Hypercalls,
}

impl Xenctrl {
    /// Opens it.
    ///
    /// # Errors
    /// [`Hypercalls::open`].
    pub(crate) fn open() -> Result<Self, OpenError> {
        Ok(Self { calls: Hypercalls::open()? })
    }

    /// The hypercalls, for the other modules of this room.
    pub(super) const fn calls(&self) -> &Hypercalls {
        &self.calls
    }

    /// Which Xen runs.
    pub(crate) fn version(&self) -> Result<XenVersion, XenError> {
        self.calls.version()
    }

    /// Looks a domain up; `None` when there is no domain of that number.
    pub(crate) fn domain_info(&self, domid: Domid) -> Result<Option<DomainInfo>, XenError> {
        match self.calls.domctl(XEN_DOMCTL_getdomaininfo, domid, DomctlGetdomaininfo::default()) {
            // Xen 4.17 answers with the next domain when there is none of that number.
            Ok(info) => Ok((info.domain == domid.raw()).then(|| info.into())),
            Err(libc::ESRCH) => Ok(None),
            Err(errno) => Err(XenError { call: "XEN_DOMCTL_getdomaininfo", domid: Some(domid), errno }),
        }
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

    /// Looks all domains up (`XEN_SYSCTL_getdomaininfolist`).
    fn domain_infos(&self) -> Result<Vec<DomctlGetdomaininfo>, XenError> {
        let failed = |errno| XenError { call: "XEN_SYSCTL_getdomaininfolist", domid: None, errno };
        let mut all = Vec::<DomctlGetdomaininfo>::new();
        loop {
            let first = all.last().map_or(Some(0), |last| last.domain.checked_add(1));
            let Some(first) = first else { return Ok(all) };
            let some = self.domain_infos_from(first).map_err(failed)?;
            all.extend_from_slice(&some);
            if some.len() < LIST_DOMAINS {
                return Ok(all);
            }
        }
    }

    /// The first domains that are not below `first`; fewer than [`LIST_DOMAINS`] only if there are no more.
    fn domain_infos_from(&self, first: u16) -> Result<Vec<DomctlGetdomaininfo>, i32> {
        let mut list = Buffer::<DomctlGetdomaininfo>::new(&self.calls, LIST_DOMAINS)?;
        let mut op = SysctlGetdomaininfolist {
            first_domain: first,
            max_domains: u32::try_from(LIST_DOMAINS).unwrap_or(u32::MAX),
            buffer: list.address(),
            ..Default::default()
        };
        // SAFETY: the list has room for as many as are asked for, and lives until after the call.
        unsafe { self.calls.sysctl_with(XEN_SYSCTL_getdomaininfolist, &mut op) }?;
        Ok(list.words().iter().take(op.num_domains as usize).copied().collect())
    }

    /// Gives `stub` its rights over `target` (`XEN_DOMCTL_set_target`): once in the stub's life.
    pub(crate) fn set_target(&self, stub: Domid, target: Domid) -> Result<(), XenError> {
        let op = DomctlSetTarget { target: target.raw() };
        done(self.calls.domctl(XEN_DOMCTL_set_target, stub, op), "XEN_DOMCTL_set_target", stub).map(drop)
    }

    /// Sets TSC mode, elapsed nanoseconds, frequency in kHz and incarnation (`XEN_DOMCTL_settscinfo`).
    pub(crate) fn set_tsc_info(&self, domid: Domid, info: TscInfo) -> Result<(), XenError> {
        let TscInfo { mode, khz, nsec, incarnation } = info;
        let op = DomctlTscInfo { tsc_mode: mode, gtsc_khz: khz, incarnation, pad: 0, elapsed_nsec: nsec };
        done(self.calls.domctl(XEN_DOMCTL_settscinfo, domid, op), "XEN_DOMCTL_settscinfo", domid).map(drop)
    }

    /// Loads the HVM context (`XEN_DOMCTL_sethvmcontext`): vCPU registers, interrupt controllers, timers.
    pub(crate) fn hvm_setcontext(&self, domid: Domid, context: &[u8]) -> Result<(), XenError> {
        let set = || {
            let size = u32::try_from(context.len()).map_err(|_| libc::E2BIG)?;
            let buffer = Buffer::of(&self.calls, context)?;
            let mut op = DomctlHvmcontext { size, pad: 0, buffer: buffer.address() };
            // SAFETY: `size` bytes are in the buffer, which lives until after the call.
            unsafe { self.calls.domctl_with(XEN_DOMCTL_sethvmcontext, domid, &mut op) }
        };
        done(set(), "XEN_DOMCTL_sethvmcontext", domid)
    }

    /// Sets the CPUID leaves and MSRs (`XEN_DOMCTL_set_cpu_policy`); either may be empty and then stays as it is.
    ///
    /// Both are arrays as they stand in the stream: `xen_cpuid_leaf_t` of 24 bytes, `xen_msr_entry_t` of 16 bytes.
    pub(crate) fn set_cpu_policy(&self, domid: Domid, leaves: &[u8], msrs: &[u8]) -> Result<(), PolicyError> {
        let none = u32::MAX;
        let failed = |errno| PolicyError { errno, leaf: none, subleaf: none, msr: none };
        let too_big = |_| failed(libc::E2BIG);
        let leaves_in = Buffer::of(&self.calls, leaves).map_err(failed)?;
        let msrs_in = Buffer::of(&self.calls, msrs).map_err(failed)?;
        let mut op = DomctlCpuPolicy {
            nr_leaves: u32::try_from(leaves.len() / XEN_CPUID_LEAF_BYTES).map_err(too_big)?,
            nr_msrs: u32::try_from(msrs.len() / XEN_MSR_ENTRY_BYTES).map_err(too_big)?,
            leaves: leaves_in.address(),
            msrs: msrs_in.address(),
            err_leaf: none,
            err_subleaf: none,
            err_msr: none,
            pad: 0,
        };
        // SAFETY: each count times its entry's size lies within its buffer, and both live until after the call.
        let done = unsafe { self.calls.domctl_with(XEN_DOMCTL_set_cpu_policy, domid, &mut op) };
        let DomctlCpuPolicy { err_leaf, err_subleaf, err_msr, .. } = op;
        done.map_err(|errno| PolicyError { errno, leaf: err_leaf, subleaf: err_subleaf, msr: err_msr })
    }

    /// How many bytes of the host's memory no domain has (`XEN_SYSCTL_availheap`).
    pub(crate) fn free_bytes(&self) -> Result<u64, XenError> {
        // Widths of 0 and node -1 mean all memory.
        let op = SysctlAvailheap { node: -1, ..Default::default() };
        let heap = self.calls.sysctl(XEN_SYSCTL_availheap, op);
        let failed = |errno| XenError { call: "XEN_SYSCTL_availheap", domid: None, errno };
        heap.map(|heap| heap.avail_bytes).map_err(failed)
    }

    /// One past the highest gfn that the domain has ever used.
    pub(crate) fn end_gfn(&self, domid: Domid) -> Result<Gfn, XenError> {
        let mut arg = domid.raw();
        // SAFETY: the argument is a domain's number.
        let highest = unsafe { self.calls.memory_op(XENMEM_maximum_gpfn, &mut arg) };
        done(highest, "XENMEM_maximum_gpfn", domid).map(|highest| Gfn::new(highest.saturating_add(1)))
    }
}

impl From<DomctlGetdomaininfo> for DomainInfo {
    fn from(info: DomctlGetdomaininfo) -> Self {
        let shutdown = info.flags & XEN_DOMINF_shutdown != 0;
        let reason = info.flags >> XEN_DOMINF_shutdownshift & XEN_DOMINF_shutdownmask;
        Self {
            hvm: info.flags & XEN_DOMINF_hvm_guest != 0,
            dying: info.flags & XEN_DOMINF_dying != 0,
            shutdown,
            crashed: shutdown && reason == SHUTDOWN_crash,
            suspended: shutdown && reason == SHUTDOWN_suspend,
            paused: info.flags & XEN_DOMINF_paused != 0,
            tot_pages: info.tot_pages,
            max_pages: info.max_pages,
            shared_info: Mfn::new(info.shared_info_frame),
            max_vcpu: info.max_vcpu_id,
            cpu_ns: info.cpu_time,
        }
    }
}

/// Names the call that failed.
pub(super) fn done<T>(result: Result<T, i32>, call: &'static str, domid: Domid) -> Result<T, XenError> {
    result.map_err(|errno| XenError { call, domid: Some(domid), errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_a_shutdown_with_reason_three() {
        let flags = |flags| DomainInfo::from(DomctlGetdomaininfo { flags, ..Default::default() });
        assert!(flags(XEN_DOMINF_shutdown | 3 << 16).crashed);
        assert!(!flags(XEN_DOMINF_shutdown).crashed);
        assert!(!flags(3 << 16).crashed);
    }
}
