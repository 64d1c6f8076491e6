//! Marking a frame offline, and where that must not be done.
//!
//! **Takes** a frame. **Gives** Xen's word on it. **Never** lets Xen do it on physical CPU 0 where there is another.
//!
//! Xen asks the owner's populate-on-demand cache whether it has the frame (`p2m_pod_offline_or_broken_hit`), also that of
//! a PV guest or dom0, whose lock nobody has initialised: all zeroes, it says that CPU 0 holds it. There the first mark
//! releases a lock that was never taken, and the next for the same owner waits for it for good, and the host with it. Seen
//! on 4.17; the source is the same up to 4.22.
#![allow(unsafe_code, reason = "Xen's toolstack libraries have a C interface")]

use super::xenctrl::{XcInterface, XenError, Xenctrl, done};
use std::ffi::{c_int, c_ulong};
use std::{io, mem, ptr};
use xen_abi::types::{Domid, Mfn};

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_get_online_cpus(xch: *mut XcInterface) -> c_int;
    fn xc_get_cpumap_size(xch: *mut XcInterface) -> c_int;
    fn xc_vcpu_getaffinity(
        xch: *mut XcInterface,
        domid: u32,
        vcpu: c_int,
        cpumap_hard: *mut u8,
        cpumap_soft: *mut u8,
        flags: u32,
    ) -> c_int;
    fn xc_vcpu_setaffinity(
        xch: *mut XcInterface,
        domid: u32,
        vcpu: c_int,
        cpumap_hard_inout: *mut u8,
        cpumap_soft_inout: *mut u8,
        flags: u32,
    ) -> c_int;
}

#[link(name = "xenguest")]
unsafe extern "C" {
    fn xc_mark_page_offline(xch: *mut XcInterface, start: c_ulong, end: c_ulong, status: *mut u32) -> c_int;
}

const XEN_VCPUAFFINITY_HARD: u32 = 1;

/// The physical CPUs that a vCPU may run on, one bit each.
type CpuMap = Vec<u8>;

impl Xenctrl {
    /// Marks a frame offline; gives the status word (`PG_OFFLINE_*`).
    ///
    /// Never for a frame that is broken and has an owner: Xen crashes the owner then. Dom0's vCPU leaves physical CPU 0 for
    /// the time of the call, whoever the owner is: only this call tells.
    pub(crate) fn mark_offline(&self, mfn: Mfn) -> Result<u32, XenError> {
        let _elsewhere = Elsewhere::go(self)?;
        let mut status = 0;
        // SAFETY: the handle is open; `status` has room for the one frame.
        let rc = unsafe { xc_mark_page_offline(self.raw(), mfn.raw(), mfn.raw(), &raw mut status) };
        done(rc, "xc_mark_page_offline", Domid::DOM0).map(|()| status)
    }

    fn hard_affinity(&self, vcpu: c_int) -> Result<CpuMap, XenError> {
        // SAFETY: the handle is open; the call takes nothing else.
        let nr_bytes = unsafe { xc_get_cpumap_size(self.raw()) };
        done(nr_bytes.min(0), "xc_get_cpumap_size", Domid::DOM0)?;
        let mut map = vec![0; usize::try_from(nr_bytes).unwrap_or_default()];
        let (domid, flags) = (Domid::DOM0.raw().into(), XEN_VCPUAFFINITY_HARD);
        // SAFETY: the handle is open; `map` has the size that libxenctrl asks for, and the other map is not asked for.
        let rc =
            unsafe { xc_vcpu_getaffinity(self.raw(), domid, vcpu, map.as_mut_ptr(), ptr::null_mut(), flags) };
        done(rc, "xc_vcpu_getaffinity", Domid::DOM0).map(|()| map)
    }

    /// Xen moves the vCPU before the call returns.
    fn set_hard_affinity(&self, vcpu: c_int, mut map: CpuMap) -> Result<(), XenError> {
        let (domid, flags) = (Domid::DOM0.raw().into(), XEN_VCPUAFFINITY_HARD);
        // SAFETY: the handle is open; `map` has the size that libxenctrl asks for (`hard_affinity`), and the other map is
        // not asked for.
        let rc =
            unsafe { xc_vcpu_setaffinity(self.raw(), domid, vcpu, map.as_mut_ptr(), ptr::null_mut(), flags) };
        done(rc, "xc_vcpu_setaffinity (to keep dom0 off physical CPU 0)", Domid::DOM0)
    }
}

/// This thread is on one vCPU of dom0, and that off physical CPU 0 if there is another, as long as this lives.
struct Elsewhere<'a> {
    xen: &'a Xenctrl,
    vcpu: c_int,
    /// Where the vCPU may run otherwise; `None` if it need not move.
    before: Option<CpuMap>,
    /// Where this thread may run otherwise.
    thread: libc::cpu_set_t,
}

impl<'a> Elsewhere<'a> {
    fn go(xen: &'a Xenctrl) -> Result<Self, XenError> {
        let thread = thread_affinity().map_err(|error| failed("sched_getaffinity", &error))?;
        // SAFETY: the call takes nothing.
        let vcpu = unsafe { libc::sched_getcpu() };
        set_thread_affinity(&only(vcpu)).map_err(|error| failed("sched_setaffinity", &error))?;
        // From here on dropping it puts things back.
        let mut elsewhere = Self { xen, vcpu, before: None, thread };
        let before = xen.hard_affinity(vcpu)?;
        // SAFETY: the handle is open; the call takes nothing else.
        let has_other = unsafe { xc_get_online_cpus(xen.raw()) } > 1;
        if let Some(map) = without_cpu_0(&before).filter(|_| has_other) {
            xen.set_hard_affinity(vcpu, map)?;
            elsewhere.before = Some(before);
        }
        Ok(elsewhere)
    }
}

impl Drop for Elsewhere<'_> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take()
            && let Err(error) = self.xen.set_hard_affinity(self.vcpu, before)
        {
            log::warn!("dom0's vCPU {} stays off physical CPU 0 (xl vcpu-pin): {error}", self.vcpu);
        }
        if let Err(error) = set_thread_affinity(&self.thread) {
            log::warn!("this thread stays on CPU {}: {error}", self.vcpu);
        }
    }
}

/// The map without CPU 0, or all others where it names no other; `None` if it does not name CPU 0.
fn without_cpu_0(map: &[u8]) -> Option<CpuMap> {
    map.first().filter(|byte| *byte & 1 == 1)?;
    let mut rest = map.to_vec();
    rest[0] &= !1;
    if rest.iter().all(|byte| *byte == 0) {
        rest.fill(0xff);
        rest[0] = 0xfe;
    }
    Some(rest)
}

fn failed(call: &'static str, error: &io::Error) -> XenError {
    XenError { call, domid: None, errno: error.raw_os_error().unwrap_or_default() }
}

/// Linux in dom0 numbers its CPUs as Xen does dom0's vCPUs.
fn only(cpu: c_int) -> libc::cpu_set_t {
    // SAFETY: a set of CPUs is bits, all of which may be zero.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `CPU_SET` checks the number against the size of the set.
    unsafe { libc::CPU_SET(usize::try_from(cpu).unwrap_or_default(), &mut set) };
    set
}

fn thread_affinity() -> io::Result<libc::cpu_set_t> {
    let mut set = only(0);
    // SAFETY: `set` has the size that is given.
    let rc = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(set) }
}

fn set_thread_affinity(set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: `set` has the size that is given.
    let rc = unsafe { libc::sched_setaffinity(0, size_of_val(set), set) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_leaves_cpu_0_and_keeps_to_the_others_it_may_have() {
        assert_eq!(without_cpu_0(&[0b111, 0]), Some(vec![0b110, 0]));
        assert_eq!(without_cpu_0(&[1, 0]), Some(vec![0xfe, 0xff]), "pinned to CPU 0");
        assert_eq!(without_cpu_0(&[0b10, 1]), None, "not on CPU 0");
    }
}
