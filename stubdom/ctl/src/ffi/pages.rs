//! libxenctrl and libxenguest: states of machine frames, and room for a guest.
#![allow(unsafe_code, reason = "Xen's toolstack libraries have a C interface")]

use super::xenctrl::{XcInterface, XenError, Xenctrl, done};
use std::ffi::{c_int, c_ulong};
use xen_front::types::{Domid, Mfn};

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_domain_setmaxmem(xch: *mut XcInterface, domid: u32, max_memkb: u64) -> c_int;
    fn xc_maximum_ram_page(xch: *mut XcInterface, max_mfn: *mut c_ulong) -> c_int;
}

#[link(name = "xenguest")]
unsafe extern "C" {
    fn xc_mark_page_online(xch: *mut XcInterface, start: c_ulong, end: c_ulong, status: *mut u32) -> c_int;
    fn xc_query_page_offline_status(
        xch: *mut XcInterface,
        start: c_ulong,
        end: c_ulong,
        status: *mut u32,
    ) -> c_int;
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

    /// The highest frame of the host's memory.
    pub(crate) fn max_mfn(&self) -> Result<Mfn, XenError> {
        let mut highest = 0;
        // SAFETY: the handle is open; `highest` is an `unsigned long`.
        let rc = unsafe { xc_maximum_ram_page(self.raw(), &raw mut highest) };
        if rc < 0 { Err(failed("xc_maximum_ram_page")) } else { Ok(Mfn::new(highest)) }
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
