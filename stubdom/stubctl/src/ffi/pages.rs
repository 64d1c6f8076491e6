//! States of machine frames, and room for a guest.
#![allow(unsafe_code, reason = "hypercalls with buffers; each block names them")]

use super::foreign::ForeignMemory;
use super::hypercalls::Buffer;
use super::xenctrl::{XenError, Xenctrl, done};
use migration::exchange_pv::WORDS;
use xen_abi::abi::*;
use xen_abi::types::{Domid, Gfn, Mfn, Order};

/// Most entries of the host's memory map (`E820MAX`).
const MAX_RANGES: usize = 1024;

/// Entries of the machine-to-phys table in an extent of 2 MiB.
const EXTENT_ENTRIES: u64 = Order::PAGE_2M.nr_frames() * WORDS as u64;

/// What stands in the table for a frame that no domain has at a place (`INVALID_M2P_ENTRY`).
const NO_GFN: u64 = u64::MAX;

impl Xenctrl {
    /// Sets the most memory that a domain may own, in KiB (`XEN_DOMCTL_max_mem`).
    pub(crate) fn set_max_mem(&self, domid: Domid, kib: u64) -> Result<(), XenError> {
        let op = DomctlMaxMem { max_memkb: kib };
        done(self.calls().domctl(XEN_DOMCTL_max_mem, domid, op), "XEN_DOMCTL_max_mem", domid).map(drop)
    }

    /// Tells whether somebody watches the domain's memory: through a ring of events, or by other views of it (altp2m).
    ///
    /// Resuming a monitor has Xen take the answers that wait in its ring, as the monitor's next event does. It is the one call
    /// that says whether there is a ring (`vm_event_resume`, `xen/common/vm_event.c`) and asks for nothing else.
    pub(crate) fn is_monitored(&self, domid: Domid) -> Result<bool, XenError> {
        let op = DomctlVmEventOp { op: XEN_VM_EVENT_RESUME, mode: XEN_DOMCTL_VM_EVENT_OP_MONITOR, u: 0 };
        match self.calls().domctl(XEN_DOMCTL_vm_event_op, domid, op) {
            Ok(_) => return Ok(true),
            // No ring; a PV domain, or a Xen without monitors.
            Err(libc::ENODEV | libc::EOPNOTSUPP | libc::ENOSYS) => {}
            Err(errno) => return done(Err(errno), "XEN_DOMCTL_vm_event_op", domid),
        }
        let mut arg = HvmAltp2mOp {
            version: HVMOP_ALTP2M_INTERFACE_VERSION,
            cmd: HVMOP_altp2m_get_domain_state,
            domain: domid.raw(),
            ..Default::default()
        };
        // SAFETY: the structure holds no address for this operation.
        match unsafe { self.calls().sub_op(__HYPERVISOR_hvm_op, HVMOP_altp2m, 0, &mut arg) } {
            Ok(()) => Ok(arg.u[0] & 0xff != 0),
            // No domain of that kind, or a host that cannot do it.
            Err(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS) => Ok(false),
            Err(errno) => done(Err(errno), "HVMOP_altp2m", domid),
        }
    }

    /// Tells whether places of the domain's memory wait for a frame, or frames for a place (populate on demand).
    pub(crate) fn populates_on_demand(&self, domid: Domid) -> Result<bool, XenError> {
        let target = self.pod_target(domid)?;
        Ok(target.pod_cache_pages > 0 || target.pod_entries > 0)
    }

    /// What waits for being populated on demand (`XENMEM_get_pod_target`).
    pub(super) fn pod_target(&self, domid: Domid) -> Result<PodTarget, XenError> {
        let mut target = PodTarget { domid: domid.raw(), ..Default::default() };
        // SAFETY: the structure holds no address.
        let asked = unsafe { self.calls().memory_op(XENMEM_get_pod_target, &mut target) };
        done(asked, "XENMEM_get_pod_target", domid).map(|_| target)
    }

    /// The frame past the host's memory (`XENMEM_maximum_ram_page`, which is named after the highest).
    pub(crate) fn end_mfn(&self) -> Result<Mfn, XenError> {
        // SAFETY: the operation takes no argument.
        let end = unsafe { self.calls().memory_op(XENMEM_maximum_ram_page, &mut 0_u64) };
        end.map(Mfn::new).map_err(failed("XENMEM_maximum_ram_page"))
    }

    /// The host's ordinary memory: first frame and number of frames of each range (`XENMEM_machine_memory_map`).
    pub(crate) fn ram(&self) -> Result<Vec<(Mfn, u64)>, XenError> {
        let failed = failed("XENMEM_machine_memory_map");
        let mut entries = Buffer::<E820Entry>::new(self.calls(), MAX_RANGES).map_err(failed)?;
        let nr_entries = u32::try_from(MAX_RANGES).unwrap_or(u32::MAX);
        let mut map = MemoryMap { nr_entries, buffer: entries.address() };
        // SAFETY: `entries` has room for as many as are asked for, and lives until after the call.
        unsafe { self.calls().memory_op(XENMEM_machine_memory_map, &mut map) }.map_err(failed)?;
        let ram =
            entries.words().iter().take(map.nr_entries as usize).filter(|entry| entry.type_ == E820_RAM);
        let frames = ram.map(|entry| (entry.addr.div_ceil(4096), (entry.addr + entry.size) / 4096));
        Ok(frames.map(|(first, end)| (Mfn::new(first), end.saturating_sub(first))).collect())
    }

    /// Tells, by the machine-to-phys table, whether a domain has the frame at a place of its memory. If not it is free, or
    /// Xen's own.
    pub(crate) fn has_place(&self, mfn: Mfn) -> Result<bool, XenError> {
        Ok(self.place_of(mfn)?.is_some())
    }

    /// The place, by the machine-to-phys table, at which some domain has the frame.
    pub(crate) fn place_of(&self, mfn: Mfn) -> Result<Option<Gfn>, XenError> {
        Ok(Some(self.machine_to_phys(mfn)?).filter(|gfn| *gfn != NO_GFN).map(Gfn::new))
    }

    /// Reads a frame's entry of the machine-to-phys table, whose one page with it is mapped for that.
    fn machine_to_phys(&self, mfn: Mfn) -> Result<u64, XenError> {
        let none = failed("XENMEM_machphys_mfn_list")(libc::EINVAL);
        if mfn >= self.end_mfn()? {
            return Err(none);
        }
        let nr = usize::try_from(mfn.raw() / EXTENT_ENTRIES).map_err(|_| none)?;
        let extent = *self.machine_to_phys_extents(nr + 1)?.get(nr).ok_or(none)?;
        let page = extent.checked_add(mfn.raw() % EXTENT_ENTRIES / WORDS as u64).ok_or(none)?;
        let mut words = [[0; WORDS]];
        let xen = Domid::new(DOMID_XEN);
        done(ForeignMemory::open(xen)?.read(&[page], &mut words), "xenforeignmemory_map", xen)?;
        Ok(words[0][mfn.offset_in(Order::PAGE_2M)])
    }

    /// The first extents of the machine-to-phys table, 2 MiB each (`XENMEM_machphys_mfn_list`).
    fn machine_to_phys_extents(&self, nr_extents: usize) -> Result<Vec<Mfn>, XenError> {
        let failed = failed("XENMEM_machphys_mfn_list");
        let mut starts = Buffer::<u64>::new(self.calls(), nr_extents).map_err(failed)?;
        let max_extents = u32::try_from(nr_extents).map_err(|_| failed(libc::E2BIG))?;
        let mut list = MachphysMfnList { max_extents, extent_start: starts.address(), nr_extents: 0 };
        // SAFETY: `starts` has room for as many as are asked for, and lives until after the call.
        unsafe { self.calls().memory_op(XENMEM_machphys_mfn_list, &mut list) }.map_err(failed)?;
        Ok(starts.words().iter().take(list.nr_extents as usize).map(|start| Mfn::new(*start)).collect())
    }

    /// Takes the mark back; gives the status word (`PG_ONLINE_*`).
    pub(crate) fn mark_online(&self, mfn: Mfn) -> Result<u32, XenError> {
        let mut status = [0];
        self.page_offline_op(sysctl_page_online, mfn, &mut status).map(|()| status[0])
    }

    /// Asks for the state of frames from `first` on (`PG_OFFLINE_STATUS_*`), one word for each. Fails as a whole when
    /// one of them is no memory.
    pub(crate) fn offline_states(&self, first: Mfn, status: &mut [u32]) -> Result<(), XenError> {
        self.page_offline_op(sysctl_query_page_offline, first, status)
    }

    /// `XEN_SYSCTL_page_offline_op` on frames from `first` on, one word of `status` for each.
    pub(super) fn page_offline_op(&self, cmd: u32, first: Mfn, status: &mut [u32]) -> Result<(), XenError> {
        let failed = failed("XEN_SYSCTL_page_offline_op");
        let none = failed(libc::EINVAL);
        let last = (status.len() as u64).checked_sub(1).and_then(|nr| first.checked_add(nr)).ok_or(none)?;
        let number = |mfn: Mfn| u32::try_from(mfn.raw()).map_err(|_| none);
        let mut words = Buffer::of(self.calls(), status).map_err(failed)?;
        let mut op = SysctlPageOfflineOp {
            cmd,
            start: number(first)?,
            end: number(last)?,
            pad: 0,
            status: words.address(),
        };
        // SAFETY: `words` has a word for each frame from `start` to `end`, and lives until after the call.
        unsafe { self.calls().sysctl_with(XEN_SYSCTL_page_offline_op, &mut op) }.map_err(failed)?;
        status.copy_from_slice(words.words());
        Ok(())
    }
}

fn failed(call: &'static str) -> impl Fn(i32) -> XenError + Copy {
    move |errno| XenError { call, domid: None, errno }
}
