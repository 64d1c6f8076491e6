//! libxenevtchn: one event channel to another domain.
//!
//! Declarations follow `xenevtchn.h`.
#![allow(unsafe_code, reason = "libxenevtchn has a C interface")]

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
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
    fn xenevtchn_notify(xce: *mut XenEvtchn, port: u32) -> c_int;
    fn xenevtchn_pending(xce: *mut XenEvtchn) -> c_int;
    fn xenevtchn_unmask(xce: *mut XenEvtchn, port: u32) -> c_int;
}

/// Dom0's end of an event channel; it is closed with the value. No call on it waits.
pub(crate) struct EventChannel {
    handle: NonNull<XenEvtchn>,
    /// Dom0's own port.
    port: Port,
}

impl EventChannel {
    /// Binds to a port of `domid` that waits for dom0; `Err` is a positive errno.
    pub(crate) fn bind(domid: Domid, port: Port) -> Result<Self, i32> {
        // SAFETY: a null logger means standard error; no flags.
        let handle = unsafe { xenevtchn_open(ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(super::last_errno)?;
        let mut channel = Self { handle, port: Port::new(0) };
        // SAFETY: the descriptor is open; what is set makes a read fail where it would wait.
        let rc = unsafe { libc::fcntl(channel.fd().as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        if rc < 0 {
            return Err(super::last_errno());
        }
        // SAFETY: the handle is open; the call takes numbers only.
        let local = unsafe { xenevtchn_bind_interdomain(handle.as_ptr(), domid.raw().into(), port.raw()) };
        channel.port = Port::new(u32::try_from(local).map_err(|_| super::last_errno())?);
        Ok(channel)
    }

    /// Dom0's own port.
    pub(super) const fn port(&self) -> Port {
        self.port
    }

    /// Readable when an event came; then call [`EventChannel::acknowledge`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the handle is open.
        let fd = unsafe { xenevtchn_fd(self.handle.as_ptr()) };
        // SAFETY: the descriptor belongs to the handle and stays open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Takes an event away, if there is one.
    pub(crate) fn acknowledge(&self) {
        // SAFETY: the handle is open, and its descriptor does not wait (`bind`).
        let port = unsafe { xenevtchn_pending(self.handle.as_ptr()) };
        if let Ok(port) = u32::try_from(port) {
            // SAFETY: the handle is open; the port is the one that was just reported.
            unsafe { xenevtchn_unmask(self.handle.as_ptr(), port) };
        }
    }

    /// Sends the other end an event.
    pub(super) fn notify(&self) {
        // SAFETY: the handle is open; the call takes a number only. A failure shows as a stub that is silent.
        unsafe { xenevtchn_notify(self.handle.as_ptr(), self.port.raw()) };
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: the handle is open and nothing uses it after this.
        unsafe { xenevtchn_close(self.handle.as_ptr()) };
    }
}
