//! Marks of machine frames, and the calls to Xen that are made together with them.
//!
//! **Takes** a frame. **Gives** Xen's word on it. **Never** leaves anything half done when this process is killed: what
//! belongs together is one multicall, which Linux in dom0 sees through before a signal ends the process.
//!
//! Xen asks the owner's populate-on-demand cache whether it has the frame (`p2m_pod_offline_or_broken_hit`), also that of
//! a PV guest or dom0, whose lock nobody has initialised: all zeroes, it says that CPU 0 holds it. There the first mark
//! releases a lock that was never taken, and the next for the same owner waits for it for good, and the host with it. Seen
//! on 4.17; the source is the same up to 4.22. So frames of such owners are marked on another CPU ([`Cpu::NotFirst`]).
#![allow(unsafe_code, reason = "system calls, and hypercalls with buffers; each block names them")]

use super::hypercalls::{Buffer, Hypercalls};
use super::xenctrl::{XenError, Xenctrl, done};
use std::ffi::c_int;
use std::{io, mem};
use xen_abi::abi::*;
use xen_abi::types::{Domid, Mfn, Pfn};

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
        unsafe { self.multicall(&mut entries) }.map_err(multicall_failed)?;
        if entries[0].result == 0 && entries[1].result != 0 {
            log::warn!("dom0's vCPU {} stays off physical CPU 0 (xl vcpu-pin)", pinned.vcpu);
        }
        Ok(entries[0].result == 0)
    }

    /// Marks a frame offline; gives the status word (`PG_OFFLINE_*`).
    ///
    /// Never for a frame that is broken and has an owner: Xen crashes the owner then.
    pub(crate) fn mark_offline(&self, xen: &Xenctrl, mfn: Mfn, cpu: Cpu) -> Result<u32, XenError> {
        let mark = Mark::new(self, mfn, sysctl_page_offline)?;
        // SAFETY: the buffers of the mark live until after the call.
        let results = unsafe { self.together(xen, cpu, &[mark.entry()]) }?;
        mark.status(results[0])
    }

    /// Marks a frame offline and takes the mark back, in one call; gives the status word of the mark, which names the owner.
    /// Nothing else does that for a frame of an HVM or PVH guest.
    ///
    /// Never for a frame that is marked already, or is broken and has an owner.
    pub(crate) fn peek(&self, xen: &Xenctrl, mfn: Mfn, cpu: Cpu) -> Result<u32, XenError> {
        let mark = Mark::new(self, mfn, sysctl_page_offline)?;
        let back = Mark::new(self, mfn, sysctl_page_online)?;
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
        let mark = Mark::new(self, old, sysctl_page_offline).map_err(|error| error.errno)?;
        let mut exchange = self.exchange_of(domid, old, pfn)?;
        let args = [XENMEM_exchange, exchange.address(), 0, 0, 0, 0];
        let calls = [mark.entry(), MulticallEntry { op: __HYPERVISOR_memory_op, result: 0, args }];
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
        unsafe { self.multicall(&mut entries) }.map_err(multicall_failed)?;
        Ok(entries.iter().skip(nr_before).map(|entry| entry.result).collect())
    }
}

fn multicall_failed(errno: i32) -> XenError {
    XenError { call: "multicall", domid: None, errno }
}

fn errno_of(result: i64) -> Option<i32> {
    (result < 0).then(|| i32::try_from(-result).unwrap_or(libc::EIO))
}

/// A call that marks a frame, or takes its mark back.
struct Mark<'a> {
    sysctl: Buffer<'a, Sysctl>,
    status: Buffer<'a, u32>,
}

impl<'a> Mark<'a> {
    fn new(calls: &'a Hypercalls, mfn: Mfn, op: u32) -> Result<Self, XenError> {
        let failed = |errno| XenError { call: "XEN_SYSCTL_page_offline_op", domid: None, errno };
        let frame = u32::try_from(mfn.raw()).map_err(|_| failed(libc::EINVAL))?;
        let status = Buffer::new(calls, 1).map_err(failed)?;
        let op = SysctlPageOfflineOp { cmd: op, start: frame, end: frame, pad: 0, status: status.address() };
        let sysctl = calls.sysctl_of(XEN_SYSCTL_page_offline_op, &op);
        Ok(Self { sysctl: Buffer::of(calls, &[sysctl]).map_err(failed)?, status })
    }

    fn entry(&self) -> MulticallEntry {
        MulticallEntry { op: __HYPERVISOR_sysctl, result: 0, args: [self.sysctl.address(), 0, 0, 0, 0, 0] }
    }

    /// The status word, after the call.
    fn status(mut self, result: i64) -> Result<u32, XenError> {
        match errno_of(result) {
            Some(errno) => Err(XenError { call: "XEN_SYSCTL_page_offline_op", domid: None, errno }),
            None => Ok(self.status.words()[0]),
        }
    }
}

/// Two calls: dom0's vCPU leaves physical CPU 0, and may come back. Xen moves the vCPU between two calls of a multicall,
/// since it looks for a reason to before each.
struct Trip<'a> {
    calls: [(Buffer<'a, Domctl>, Buffer<'a, u8>); 2],
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
        MulticallEntry {
            op: __HYPERVISOR_domctl,
            result: 0,
            args: [self.calls[nr].0.address(), 0, 0, 0, 0, 0],
        }
    }
}

/// A call that sets where a vCPU of dom0's may run, and its map, which Xen overwrites.
fn affinity<'a>(
    calls: &'a Hypercalls,
    vcpu: c_int,
    map: &[u8],
) -> Result<(Buffer<'a, Domctl>, Buffer<'a, u8>), XenError> {
    let affinity = || {
        let bits = Buffer::of(calls, map)?;
        let op = hard_affinity_op(vcpu, &bits, map.len())?;
        Ok((Buffer::of(calls, &[calls.domctl_of(XEN_DOMCTL_setvcpuaffinity, Domid::DOM0, &op)])?, bits))
    };
    done(affinity(), "XEN_DOMCTL_setvcpuaffinity", Domid::DOM0)
}

/// Where a vCPU may run, in a map of so many bytes; `Err` is a positive errno.
fn hard_affinity_op(vcpu: c_int, bits: &Buffer<'_, u8>, nr_bytes: usize) -> Result<DomctlVcpuaffinity, i32> {
    let nr_bits = u32::try_from(nr_bytes * 8).map_err(|_| libc::E2BIG)?;
    Ok(DomctlVcpuaffinity {
        vcpu: vcpu.unsigned_abs(),
        flags: XEN_VCPUAFFINITY_HARD,
        cpumap_hard: XenctlBitmap { bitmap: bits.address(), nr_bits, pad: 0 },
        cpumap_soft: XenctlBitmap::default(),
    })
}

impl Xenctrl {
    fn hard_affinity(&self, vcpu: c_int) -> Result<CpuMap, XenError> {
        let info = self.calls().sysctl(XEN_SYSCTL_physinfo, SysctlPhysinfo::default());
        let nr_bytes = done(info, "XEN_SYSCTL_physinfo", Domid::DOM0)?.max_cpu_id as usize / 8 + 1;
        let map = || {
            let mut bits = Buffer::<u8>::new(self.calls(), nr_bytes)?;
            let mut op = hard_affinity_op(vcpu, &bits, nr_bytes)?;
            // SAFETY: the buffer has room for the map, and lives until after the call; the other map is not asked for.
            unsafe { self.calls().domctl_with(XEN_DOMCTL_getvcpuaffinity, Domid::DOM0, &mut op) }?;
            Ok(bits.words().to_vec())
        };
        done(map(), "XEN_DOMCTL_getvcpuaffinity", Domid::DOM0)
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

    #[test]
    fn a_vcpu_leaves_cpu_0_and_keeps_to_the_others_it_may_have() {
        assert_eq!(without_cpu_0(&[0b111, 0]), Some(vec![0b110, 0]));
        assert_eq!(without_cpu_0(&[1, 0]), Some(vec![0xfe, 0xff]), "pinned to CPU 0");
        assert_eq!(without_cpu_0(&[0b10, 1]), None, "not on CPU 0");
    }

    #[test]
    fn a_negative_result_is_an_errno() {
        assert_eq!((errno_of(0), errno_of(7), errno_of(-22)), (None, None, Some(libc::EINVAL)));
    }
}
