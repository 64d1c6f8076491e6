//! libxenevtchn: one event channel to another domain.
//!
//! Declarations follow `xenevtchn.h`.
#![allow(unsafe_code, reason = "libxenevtchn has a C interface")]

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use xen_abi::types::{Domid, Port};

#[repr(C)]
struct XenEvtchn {
    _opaque: [u8; 0],
}

#[link(name = "xenevtchn")]
unsafe extern "C" {
    fn xenevtchn_open(logger: *mut c_void, flags: c_uint) -> *mut XenEvtchn;
    fn xenevtchn_close(xce: *mut XenEvtchn) -> c_int;
    fn xenevtchn_fd(xce: *mut XenEvtchn) -> c_int;
    fn xenevtchn_bind_interdomain(xce: *mut XenEvtchn, domid: u32, remote_port: u32) -> c_int;
    fn xenevtchn_pending(xce: *mut XenEvtchn) -> c_int;
    fn xenevtchn_unmask(xce: *mut XenEvtchn, port: u32) -> c_int;
}

/// Dom0's end of an event channel; it is closed with the value.
pub(crate) struct EventChannel(NonNull<XenEvtchn>);

impl EventChannel {
    /// Binds to a port of `domid` that waits for dom0; `Err` is a positive errno.
    pub(crate) fn bind(domid: Domid, port: Port) -> Result<Self, i32> {
        // SAFETY: a null logger means standard error; no flags.
        let handle = unsafe { xenevtchn_open(ptr::null_mut(), 0) };
        let channel = NonNull::new(handle).map(Self).ok_or_else(super::last_errno)?;
        // SAFETY: the handle is open; the call takes numbers only.
        let local = unsafe { xenevtchn_bind_interdomain(channel.0.as_ptr(), domid.raw().into(), port.raw()) };
        if local < 0 { Err(super::last_errno()) } else { Ok(channel) }
    }

    /// Readable when an event came; then call [`EventChannel::acknowledge`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the handle is open.
        let fd = unsafe { xenevtchn_fd(self.0.as_ptr()) };
        // SAFETY: the descriptor belongs to the handle and stays open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Takes an event away; blocks unless [`EventChannel::fd`] is readable.
    pub(crate) fn acknowledge(&self) {
        // SAFETY: the handle is open.
        let port = unsafe { xenevtchn_pending(self.0.as_ptr()) };
        if let Ok(port) = u32::try_from(port) {
            // SAFETY: the handle is open; the port is the one that was just reported.
            unsafe { xenevtchn_unmask(self.0.as_ptr(), port) };
        }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: the handle is open and nothing uses it after this.
        unsafe { xenevtchn_close(self.0.as_ptr()) };
    }
}
