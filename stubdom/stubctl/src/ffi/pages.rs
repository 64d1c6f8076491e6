//! libxenctrl and libxenguest: states of machine frames, and room for a guest.
#![allow(unsafe_code, reason = "Xen's toolstack libraries have a C interface")]

use super::xenctrl::{XcInterface, XenError, Xenctrl, done};
use std::ffi::{c_int, c_ulong};
use std::ptr::{self, NonNull};
use xen_abi::types::{Domid, Gfn, Mfn};

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_domain_setmaxmem(xch: *mut XcInterface, domid: u32, max_memkb: u64) -> c_int;
    fn xc_maximum_ram_page(xch: *mut XcInterface, max_mfn: *mut c_ulong) -> c_int;
    fn xc_get_machine_memory_map(xch: *mut XcInterface, entries: *mut E820Entry, max_entries: u32) -> c_int;
    fn xc_domain_get_pod_target(
        xch: *mut XcInterface,
        domid: u32,
        tot_pages: *mut u64,
        pod_cache_pages: *mut u64,
        pod_entries: *mut u64,
    ) -> c_int;
    fn xc_monitor_resume(xch: *mut XcInterface, domain_id: u32) -> c_int;
    fn xc_altp2m_get_domain_state(xch: *mut XcInterface, dom: u32, state: *mut bool) -> c_int;
}

#[link(name = "xenguest")]
unsafe extern "C" {
    fn xc_map_m2p(xch: *mut XcInterface, max_mfn: c_ulong, prot: c_int, mfn0: *mut c_ulong) -> *mut u64;
    fn xc_mark_page_online(xch: *mut XcInterface, start: c_ulong, end: c_ulong, status: *mut u32) -> c_int;
    fn xc_query_page_offline_status(
        xch: *mut XcInterface,
        start: c_ulong,
        end: c_ulong,
        status: *mut u32,
    ) -> c_int;
}

/// `struct e820entry` (`xenctrl.h`).
#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
struct E820Entry {
    addr: u64,
    size: u64,
    kind: u32,
}

/// `E820_RAM`.
const E820_RAM: u32 = 1;
/// Most entries of a map (`E820MAX`).
const E820_MAX: u32 = 1024;

/// What stands in the table for a frame that no domain has at a place (`INVALID_M2P_ENTRY`).
const NO_GFN: u64 = u64::MAX;

/// The machine-to-phys table, mapped for the life of the process: for a host of 1 TiB it has 2 GiB of addresses.
pub(crate) struct MachineToPhys {
    entries: NonNull<u64>,
    end: u64,
}

impl MachineToPhys {
    fn map(xen: &Xenctrl) -> Result<Self, XenError> {
        let end = xen.end_mfn()?.raw();
        // SAFETY: the handle is open; no first frame is asked for.
        let entries = unsafe { xc_map_m2p(xen.raw(), end, libc::PROT_READ, ptr::null_mut()) };
        Ok(Self { entries: NonNull::new(entries).ok_or_else(|| failed("xc_map_m2p"))?, end })
    }

    fn gfn(&self, mfn: Mfn) -> Result<u64, XenError> {
        let none = XenError { call: "xc_map_m2p", domid: None, errno: libc::EINVAL };
        let index = usize::try_from(mfn.raw()).ok().filter(|_| mfn.raw() < self.end).ok_or(none)?;
        // SAFETY: the table has an entry for every frame below `end`, of which this is one.
        let entry = unsafe { self.entries.as_ptr().add(index) };
        // SAFETY: the entry is mapped for reading as long as the process lives, and aligned; Xen may change it meanwhile.
        Ok(unsafe { entry.read_volatile() })
    }
}

/// One of the two calls on a range of frames.
type RangeCall = unsafe extern "C" fn(*mut XcInterface, c_ulong, c_ulong, *mut u32) -> c_int;

impl Xenctrl {
    /// Sets the most memory that a domain may own, in KiB (`XEN_DOMCTL_max_mem`).
    pub(crate) fn set_max_mem(&self, domid: Domid, kib: u64) -> Result<(), XenError> {
        // SAFETY: the handle is open; the call takes numbers only.
        let rc = unsafe { xc_domain_setmaxmem(self.raw(), domid.raw().into(), kib) };
        done(rc, "xc_domain_setmaxmem", domid)
    }

    /// Tells whether somebody watches the domain's memory: through a ring of events, or by other views of it (altp2m).
    ///
    /// Resuming a monitor has Xen take the answers that wait in its ring, as the monitor's next event does. It is the one call
    /// that says whether there is a ring (`vm_event_resume`, `xen/common/vm_event.c`) and asks for nothing else.
    pub(crate) fn is_monitored(&self, domid: Domid) -> Result<bool, XenError> {
        // SAFETY: the handle is open; the call takes numbers only.
        let rc = unsafe { xc_monitor_resume(self.raw(), domid.raw().into()) };
        if rc >= 0 {
            return Ok(true);
        }
        match super::last_errno() {
            // No ring; a PV domain, or a Xen without monitors.
            libc::ENODEV | libc::EOPNOTSUPP | libc::ENOSYS => {}
            _ => done(rc, "xc_monitor_resume", domid)?,
        }
        let mut is_active = false;
        // SAFETY: the handle is open; `is_active` is written.
        let rc = unsafe { xc_altp2m_get_domain_state(self.raw(), domid.raw().into(), &raw mut is_active) };
        match super::last_errno() {
            // No domain of that kind, or a host that cannot do it.
            libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS if rc < 0 => Ok(false),
            _ => done(rc, "xc_altp2m_get_domain_state", domid).map(|()| is_active),
        }
    }

    /// Tells whether places of the domain's memory wait for a frame, or frames for a place (populate on demand).
    pub(crate) fn populates_on_demand(&self, domid: Domid) -> Result<bool, XenError> {
        let (mut total, mut cached, mut waiting) = (0, 0, 0);
        // SAFETY: the handle is open; the three counts are written.
        let rc = unsafe {
            xc_domain_get_pod_target(
                self.raw(),
                domid.raw().into(),
                &raw mut total,
                &raw mut cached,
                &raw mut waiting,
            )
        };
        done(rc, "xc_domain_get_pod_target", domid).map(|()| cached > 0 || waiting > 0)
    }

    /// The frame past the host's memory (`XENMEM_maximum_ram_page`, which is named after the highest).
    pub(crate) fn end_mfn(&self) -> Result<Mfn, XenError> {
        let mut end = 0;
        // SAFETY: the handle is open; `end` is an `unsigned long`.
        let rc = unsafe { xc_maximum_ram_page(self.raw(), &raw mut end) };
        if rc < 0 { Err(failed("xc_maximum_ram_page")) } else { Ok(Mfn::new(end)) }
    }

    /// The host's ordinary memory: first frame and number of frames of each range (`XENMEM_machine_memory_map`).
    pub(crate) fn ram(&self) -> Result<Vec<(Mfn, u64)>, XenError> {
        let mut entries = vec![E820Entry::default(); E820_MAX as usize];
        // SAFETY: the handle is open; `entries` has room for as many as are asked for.
        let nr = unsafe { xc_get_machine_memory_map(self.raw(), entries.as_mut_ptr(), E820_MAX) };
        let nr = usize::try_from(nr).map_err(|_| failed("xc_get_machine_memory_map"))?;
        let ram = entries.iter().take(nr).filter(|entry| entry.kind == E820_RAM);
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
        let table = match self.machine_to_phys().get() {
            Some(table) => table,
            None => {
                let table = MachineToPhys::map(self)?;
                self.machine_to_phys().get_or_init(|| table)
            }
        };
        Ok(Some(table.gfn(mfn)?).filter(|gfn| *gfn != NO_GFN).map(Gfn::new))
    }

    /// Takes the mark back; gives the status word (`PG_ONLINE_*`).
    pub(crate) fn mark_online(&self, mfn: Mfn) -> Result<u32, XenError> {
        let mut status = [0];
        self.on_range(xc_mark_page_online, "xc_mark_page_online", mfn, &mut status).map(|()| status[0])
    }

    /// Asks for the state of frames from `first` on (`PG_OFFLINE_STATUS_*`), one word for each. Fails as a whole when
    /// one of them is no memory.
    pub(crate) fn offline_states(&self, first: Mfn, status: &mut [u32]) -> Result<(), XenError> {
        self.on_range(xc_query_page_offline_status, "xc_query_page_offline_status", first, status)
    }

    fn on_range(
        &self,
        function: RangeCall,
        call: &'static str,
        first: Mfn,
        status: &mut [u32],
    ) -> Result<(), XenError> {
        let none = XenError { call, domid: None, errno: libc::EINVAL };
        let end = (status.len() as u64).checked_sub(1).and_then(|nr| first.checked_add(nr)).ok_or(none)?;
        // SAFETY: the handle is open; libxenguest copies one word for each frame of the range, which `status` has room
        // for, through a buffer of its own.
        let rc = unsafe { function(self.raw(), first.raw(), end.raw(), status.as_mut_ptr()) };
        if rc < 0 { Err(failed(call)) } else { Ok(()) }
    }
}

fn failed(call: &'static str) -> XenError {
    XenError { call, domid: None, errno: super::last_errno() }
}
