//! Marks of machine frames, and the calls to Xen that are made together with them.
//!
//! **Takes** a frame. **Gives** Xen's word on it. **Never** leaves anything half done when this process is killed: what
//! belongs together is one multicall, which Linux in dom0 sees through before a signal ends the process.
//!
//! Xen asks the owner's populate-on-demand cache whether it has the frame (`p2m_pod_offline_or_broken_hit`), also that of
//! a PV guest or dom0, whose lock nobody has initialised: all zeroes, it says that CPU 0 holds it. There the first mark
//! releases a lock that was never taken, and the next for the same owner waits for it for good, and the host with it. Seen
//! on 4.17; the source is the same up to 4.22. So frames of such owners are marked on another CPU ([`Cpu::NotFirst`]).
#![allow(unsafe_code, reason = "Xen's toolstack libraries have a C interface")]

use super::pv::{Buffer, Hypercalls};
use super::xenctrl::{XcInterface, XenError, Xenctrl, done};
use std::ffi::{c_int, c_uint};
use std::{io, mem, ptr};
use xen_abi::types::{Domid, Mfn, Pfn};

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_get_cpumap_size(xch: *mut XcInterface) -> c_int;
    fn xc_vcpu_getaffinity(
        xch: *mut XcInterface,
        domid: u32,
        vcpu: c_int,
        cpumap_hard: *mut u8,
        cpumap_soft: *mut u8,
        flags: u32,
    ) -> c_int;
}

const HYPERVISOR_MEMORY_OP: u64 = 12;
const HYPERVISOR_MULTICALL: c_uint = 13;
const HYPERVISOR_SYSCTL: u64 = 35;
const HYPERVISOR_DOMCTL: u64 = 36;
const XENMEM_EXCHANGE: u64 = 11;
const XEN_SYSCTL_INTERFACE_VERSION: u32 = 0x15;
const XEN_SYSCTL_PAGE_OFFLINE_OP: u32 = 14;
const SYSCTL_PAGE_OFFLINE: u32 = 1;
const SYSCTL_PAGE_ONLINE: u32 = 2;
const XEN_DOMCTL_INTERFACE_VERSION: u32 = 0x15;
const XEN_DOMCTL_SETVCPUAFFINITY: u32 = 9;
const XEN_VCPUAFFINITY_HARD: u32 = 1;

/// `struct multicall_entry`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MulticallEntry {
    op: u64,
    result: i64,
    args: [u64; 6],
}

/// `struct xen_sysctl` with `page_offline`.
#[repr(C)]
struct PageOffline {
    cmd: u32,
    interface_version: u32,
    op: u32,
    start: u32,
    end: u32,
    pad: u32,
    status: *mut u32,
    rest: [u64; 13],
}

/// `struct xen_domctl` with `vcpuaffinity`.
#[repr(C)]
struct VcpuAffinity {
    cmd: u32,
    interface_version: u32,
    domain: u16,
    pad: [u16; 3],
    vcpu: u32,
    flags: u32,
    hard: *mut u8,
    hard_bits: u32,
    hard_pad: u32,
    soft: *mut u8,
    soft_bits: u32,
    soft_pad: u32,
    rest: [u64; 11],
}

/// Where a frame may be marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cpu {
    /// Anywhere: its owner is no PV domain.
    Any,
    /// On any physical CPU but 0, which dom0 has to be able to leave ([`Hypercalls::can_leave_cpu_0`]).
    NotFirst,
}

/// The physical CPUs that a vCPU may run on, one bit each.
type CpuMap = Vec<u8>;

impl Hypercalls {
    /// Tells whether this thread's vCPU can be kept off physical CPU 0 for a while: not where dom0 has no other.
    pub(crate) fn can_leave_cpu_0(&self, xen: &Xenctrl) -> Result<bool, XenError> {
        let pinned = Pinned::new()?;
        let Some(trip) = Trip::new(self, xen, pinned.vcpu)? else { return Ok(true) };
        let mut entries = [trip.away(), trip.back()];
        // SAFETY: the trip's buffers live until after the call.
        unsafe { self.multicall(&mut entries) }?;
        if entries[0].result == 0 && entries[1].result != 0 {
            log::warn!("dom0's vCPU {} stays off physical CPU 0 (xl vcpu-pin)", pinned.vcpu);
        }
        Ok(entries[0].result == 0)
    }

    /// Marks a frame offline; gives the status word (`PG_OFFLINE_*`).
    ///
    /// Never for a frame that is broken and has an owner: Xen crashes the owner then.
    pub(crate) fn mark_offline(&self, xen: &Xenctrl, mfn: Mfn, cpu: Cpu) -> Result<u32, XenError> {
        let mark = Mark::new(self, mfn, SYSCTL_PAGE_OFFLINE)?;
        // SAFETY: the buffers of the mark live until after the call.
        let results = unsafe { self.together(xen, cpu, &[mark.entry()]) }?;
        mark.status(results[0])
    }

    /// Marks a frame offline and takes the mark back, in one call; gives the status word of the mark, which names the owner.
    /// Nothing else does that for a frame of an HVM or PVH guest.
    ///
    /// Never for a frame that is marked already, or is broken and has an owner.
    pub(crate) fn peek(&self, xen: &Xenctrl, mfn: Mfn, cpu: Cpu) -> Result<u32, XenError> {
        let mark = Mark::new(self, mfn, SYSCTL_PAGE_OFFLINE)?;
        let back = Mark::new(self, mfn, SYSCTL_PAGE_ONLINE)?;
        // SAFETY: the buffers of both live until after the call.
        let results = unsafe { self.together(xen, cpu, &[mark.entry(), back.entry()]) }?;
        let status = mark.status(results[0])?;
        back.status(results[1]).map(|_| status)
    }

    /// Marks a frame of a PV guest offline and exchanges it, in one call: freed, it is out of use. The mark of one that Xen does
    /// not exchange is taken back; `Err` is a positive errno.
    pub(crate) fn mark_and_exchange(
        &self,
        xen: &Xenctrl,
        domid: Domid,
        old: Mfn,
        pfn: Pfn,
        cpu: Cpu,
    ) -> Result<Mfn, i32> {
        let mark = Mark::new(self, old, SYSCTL_PAGE_OFFLINE).map_err(|error| error.errno)?;
        let mut exchange = self.exchange_of(domid, old, pfn)?;
        let args = [XENMEM_EXCHANGE, exchange.address(), 0, 0, 0, 0];
        let calls = [mark.entry(), MulticallEntry { op: HYPERVISOR_MEMORY_OP, result: 0, args }];
        // SAFETY: the buffers of both live until after the call.
        let results = unsafe { self.together(xen, cpu, &calls) }.map_err(|error| error.errno)?;
        let errno = match (errno_of(results[0]), errno_of(results[1])) {
            (None, None) => return Ok(exchange.new_frame()),
            // It is out of the guest, unmarked: in use again one day, and no harm to the guest.
            (Some(errno), None) => {
                log::warn!("{old} was not marked ({}): it is free now", io::Error::from_raw_os_error(errno));
                return Ok(exchange.new_frame());
            }
            (_, Some(errno)) => errno,
        };
        if let Err(error) = xen.mark_online(old) {
            log::warn!("{old} stays marked: {error}");
        }
        Err(errno)
    }

    /// Makes these calls one after another, on a CPU of that kind; gives their results.
    ///
    /// # Safety
    /// The calls name memory that Xen may read and write until this returns.
    unsafe fn together(
        &self,
        xen: &Xenctrl,
        cpu: Cpu,
        calls: &[MulticallEntry],
    ) -> Result<Vec<i64>, XenError> {
        let pinned = if cpu == Cpu::NotFirst { Some(Pinned::new()?) } else { None };
        let trip = match &pinned {
            Some(pinned) => Trip::new(self, xen, pinned.vcpu)?,
            None => None,
        };
        let nr_before = usize::from(trip.is_some());
        let mut entries: Vec<_> = trip.iter().map(Trip::away).collect();
        entries.extend_from_slice(calls);
        entries.extend(trip.iter().map(Trip::back));
        // SAFETY: the caller vouches for its calls; the trip's buffers live until after this.
        unsafe { self.multicall(&mut entries) }?;
        Ok(entries.iter().skip(nr_before).map(|entry| entry.result).collect())
    }

    /// # Safety
    /// As [`Hypercalls::together`].
    unsafe fn multicall(&self, entries: &mut [MulticallEntry]) -> Result<(), XenError> {
        let failed = |errno| XenError { call: "multicall", domid: None, errno };
        let mut list = Buffer::<MulticallEntry>::new(self, entries.len()).map_err(failed)?;
        list.words().copy_from_slice(entries);
        // SAFETY: the list is a hypercall buffer of as many entries; the caller vouches for what they name.
        let rc = unsafe { self.call2(HYPERVISOR_MULTICALL, list.address(), entries.len() as u64) };
        if rc < 0 {
            return Err(failed(super::last_errno()));
        }
        entries.copy_from_slice(list.words());
        Ok(())
    }
}

fn errno_of(result: i64) -> Option<i32> {
    (result < 0).then(|| i32::try_from(-result).unwrap_or(libc::EIO))
}

/// A call that marks a frame, or takes its mark back.
struct Mark<'a> {
    sysctl: Buffer<'a, PageOffline>,
    status: Buffer<'a, u32>,
}

impl<'a> Mark<'a> {
    fn new(calls: &'a Hypercalls, mfn: Mfn, op: u32) -> Result<Self, XenError> {
        let failed = |errno| XenError { call: "page_offline_op", domid: None, errno };
        let frame = u32::try_from(mfn.raw()).map_err(|_| failed(libc::EINVAL))?;
        let status = Buffer::<u32>::new(calls, 1).map_err(failed)?;
        let mut sysctl = Buffer::<PageOffline>::new(calls, 1).map_err(failed)?;
        sysctl.words()[0] = PageOffline {
            cmd: XEN_SYSCTL_PAGE_OFFLINE_OP,
            interface_version: XEN_SYSCTL_INTERFACE_VERSION,
            op,
            start: frame,
            end: frame,
            pad: 0,
            status: status.start(),
            rest: [0; 13],
        };
        Ok(Self { sysctl, status })
    }

    fn entry(&self) -> MulticallEntry {
        MulticallEntry { op: HYPERVISOR_SYSCTL, result: 0, args: [self.sysctl.address(), 0, 0, 0, 0, 0] }
    }

    /// The status word, after the call.
    fn status(mut self, result: i64) -> Result<u32, XenError> {
        match errno_of(result) {
            Some(errno) => Err(XenError { call: "page_offline_op", domid: None, errno }),
            None => Ok(self.status.words()[0]),
        }
    }
}

/// Two calls: dom0's vCPU leaves physical CPU 0, and may come back. Xen moves the vCPU between two calls of a multicall,
/// since it looks for a reason to before each.
struct Trip<'a> {
    calls: [(Buffer<'a, VcpuAffinity>, Buffer<'a, u8>); 2],
}

impl<'a> Trip<'a> {
    /// `None` for a vCPU that is not on CPU 0 anyway.
    fn new(calls: &'a Hypercalls, xen: &Xenctrl, vcpu: c_int) -> Result<Option<Self>, XenError> {
        let before = xen.hard_affinity(vcpu)?;
        let Some(rest) = without_cpu_0(&before) else { return Ok(None) };
        Ok(Some(Self { calls: [affinity(calls, vcpu, &rest)?, affinity(calls, vcpu, &before)?] }))
    }

    fn away(&self) -> MulticallEntry {
        self.entry(0)
    }

    fn back(&self) -> MulticallEntry {
        self.entry(1)
    }

    fn entry(&self, nr: usize) -> MulticallEntry {
        MulticallEntry { op: HYPERVISOR_DOMCTL, result: 0, args: [self.calls[nr].0.address(), 0, 0, 0, 0, 0] }
    }
}

/// A call that sets where a vCPU of dom0's may run, and its map, which Xen overwrites.
fn affinity<'a>(
    calls: &'a Hypercalls,
    vcpu: c_int,
    map: &[u8],
) -> Result<(Buffer<'a, VcpuAffinity>, Buffer<'a, u8>), XenError> {
    let failed = |errno| XenError { call: "setvcpuaffinity", domid: Some(Domid::DOM0), errno };
    let too_many = |_| failed(libc::E2BIG);
    let mut bits = Buffer::<u8>::new(calls, map.len()).map_err(failed)?;
    bits.words().copy_from_slice(map);
    let mut domctl = Buffer::<VcpuAffinity>::new(calls, 1).map_err(failed)?;
    domctl.words()[0] = VcpuAffinity {
        cmd: XEN_DOMCTL_SETVCPUAFFINITY,
        interface_version: XEN_DOMCTL_INTERFACE_VERSION,
        domain: Domid::DOM0.raw(),
        pad: [0; 3],
        vcpu: vcpu.unsigned_abs(),
        flags: XEN_VCPUAFFINITY_HARD,
        hard: bits.start(),
        hard_bits: u32::try_from(map.len() * 8).map_err(too_many)?,
        hard_pad: 0,
        soft: ptr::null_mut(),
        soft_bits: 0,
        soft_pad: 0,
        rest: [0; 11],
    };
    Ok((domctl, bits))
}

impl Xenctrl {
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
}

/// This thread keeps to the vCPU that it is on, as long as this lives.
struct Pinned {
    vcpu: c_int,
    /// Where this thread may run otherwise.
    thread: libc::cpu_set_t,
}

impl Pinned {
    fn new() -> Result<Self, XenError> {
        let thread = thread_affinity().map_err(|error| failed("sched_getaffinity", &error))?;
        // SAFETY: the call takes nothing.
        let vcpu = unsafe { libc::sched_getcpu() };
        set_thread_affinity(&only(vcpu)).map_err(|error| failed("sched_setaffinity", &error))?;
        Ok(Self { vcpu, thread })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
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
    use std::mem::{offset_of, size_of};

    #[test]
    fn a_vcpu_leaves_cpu_0_and_keeps_to_the_others_it_may_have() {
        assert_eq!(without_cpu_0(&[0b111, 0]), Some(vec![0b110, 0]));
        assert_eq!(without_cpu_0(&[1, 0]), Some(vec![0xfe, 0xff]), "pinned to CPU 0");
        assert_eq!(without_cpu_0(&[0b10, 1]), None, "not on CPU 0");
    }

    // The same numbers stand as static assertions against Xen's header in tests/abi.c.
    #[test]
    fn structures_have_the_layout_of_the_header() {
        assert_eq!((size_of::<MulticallEntry>(), offset_of!(MulticallEntry, args)), (64, 16));
        assert_eq!((size_of::<PageOffline>(), offset_of!(PageOffline, op)), (136, 8));
        assert_eq!((offset_of!(PageOffline, start), offset_of!(PageOffline, end)), (12, 16));
        assert_eq!(offset_of!(PageOffline, status), 24);
        assert_eq!((size_of::<VcpuAffinity>(), offset_of!(VcpuAffinity, vcpu)), (144, 16));
        assert_eq!((offset_of!(VcpuAffinity, flags), offset_of!(VcpuAffinity, hard)), (20, 24));
        assert_eq!((offset_of!(VcpuAffinity, hard_bits), offset_of!(VcpuAffinity, soft)), (32, 40));
    }

    #[test]
    fn a_negative_result_is_an_errno() {
        assert_eq!((errno_of(0), errno_of(7), errno_of(-22)), (None, None, Some(libc::EINVAL)));
    }
}
