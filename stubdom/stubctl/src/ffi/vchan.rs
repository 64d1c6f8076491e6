//! libxenvchan, client side: a byte channel to another domain over shared pages.
//!
//! Declarations follow `libxenvchan.h`. The library leaves the handle's `blocking` bit uninitialised in a client. With that
//! bit set a call waits for the server without end, and asking first how much can pass does not prevent that: the server
//! owns the index that is asked. So the bit is cleared once.
#![allow(unsafe_code, reason = "libxenvchan has a C interface")]

mod in_ring;
mod out_ring;

pub(crate) use in_ring::InRing;
#[cfg(test)]
pub(crate) use in_ring::tests as in_ring_tests;
#[cfg(test)]
pub(crate) use out_ring::tests as out_ring_tests;
pub(crate) use out_ring::{Nonsense, OutRing};

use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use xen_abi::types::Domid;

/// `struct libxenvchan_ring`.
#[repr(C)]
struct LibXenVchanRing {
    shared: *mut out_ring::RingShared,
    buffer: *mut u8,
    order: c_int,
}

/// `blocking`, the third of the bits that `flags` holds.
const BLOCKING: c_int = 1 << 2;

/// `struct libxenvchan`.
#[repr(C)]
struct LibXenVchan {
    gnttab: *mut c_void,
    ring: *mut out_ring::VchanInterface,
    event: *mut c_void,
    event_port: u32,
    flags: c_int,
    read: LibXenVchanRing,
    write: LibXenVchanRing,
    xs_path: *mut c_char,
}

#[link(name = "xenvchan")]
unsafe extern "C" {
    fn libxenvchan_client_init(
        logger: *mut c_void,
        domain: c_int,
        xs_path: *const c_char,
    ) -> *mut LibXenVchan;
    fn libxenvchan_close(ctrl: *mut LibXenVchan);
    fn libxenvchan_read(ctrl: *mut LibXenVchan, data: *mut c_void, size: usize) -> c_int;
    fn libxenvchan_write(ctrl: *mut LibXenVchan, data: *const c_void, size: usize) -> c_int;
    fn libxenvchan_wait(ctrl: *mut LibXenVchan) -> c_int;
    fn libxenvchan_fd_for_select(ctrl: *mut LibXenVchan) -> c_int;
    fn libxenvchan_is_open(ctrl: *mut LibXenVchan) -> c_int;
    fn libxenvchan_data_ready(ctrl: *mut LibXenVchan) -> c_int;
    fn libxenvchan_buffer_space(ctrl: *mut LibXenVchan) -> c_int;
}

#[link(name = "xenevtchn")]
unsafe extern "C" {
    fn xenevtchn_notify(xce: *mut c_void, port: u32) -> c_int;
}

/// The client end of a vchan.
pub(crate) struct Vchan(NonNull<LibXenVchan>);

impl Vchan {
    /// Connects to the server that `domid` announces below the absolute xenstore path; `Err` is a positive errno.
    pub(crate) fn connect(domid: Domid, path: &str) -> Result<Self, i32> {
        let path = CString::new(path).map_err(|_| libc::EINVAL)?;
        // SAFETY: a null logger means standard error; the path is nul-terminated and outlives the call.
        let handle = unsafe { libxenvchan_client_init(ptr::null_mut(), domid.raw().into(), path.as_ptr()) };
        let handle = NonNull::new(handle).ok_or_else(super::last_errno)?;
        // SAFETY: the library has allocated the structure, whose layout is that of its header (tests/abi.c), and nothing
        // else uses it yet.
        unsafe { (*handle.as_ptr()).flags &= !BLOCKING };
        Ok(Self(handle))
    }

    /// Readable when the other end signalled; then call [`Vchan::acknowledge`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the handle is open.
        let fd = unsafe { libxenvchan_fd_for_select(self.0.as_ptr()) };
        // SAFETY: the descriptor belongs to the handle and stays open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Takes the pending signal away; blocks unless [`Vchan::fd`] is readable.
    pub(crate) fn acknowledge(&self) {
        // SAFETY: the handle is open. A failure shows as a closed channel at the next read.
        unsafe { libxenvchan_wait(self.0.as_ptr()) };
    }

    /// The ring that this end writes, to be filled in place; call it once.
    pub(crate) fn out_ring(&self) -> OutRing {
        // SAFETY: the handle is open, and `LibXenVchan` has the layout of its header (tests/abi.c).
        let LibXenVchan { ring, write, .. } = unsafe { self.0.as_ref() };
        // SAFETY: libxenvchan has mapped the interface page and the ring of 2^order bytes, and unmaps them only when
        // `self` is dropped; whoever holds the ring holds `self` too (`ring::Ring`).
        unsafe { OutRing::new(*ring, write.buffer, 1 << write.order) }
    }

    /// The ring that this end reads, to be emptied in place; call it once.
    pub(crate) fn in_ring(&self) -> InRing {
        // SAFETY: the handle is open, and `LibXenVchan` has the layout of its header (tests/abi.c).
        let LibXenVchan { ring, read, .. } = unsafe { self.0.as_ref() };
        // SAFETY: as in `out_ring`; whoever holds the ring holds `self` too (`outlet::Outlet`).
        unsafe { InRing::new(*ring, read.buffer, 1 << read.order) }
    }

    /// Sends the other end an event.
    pub(crate) fn notify(&self) {
        // SAFETY: the handle is open, and `LibXenVchan` has the layout of its header (tests/abi.c).
        let LibXenVchan { event, event_port, .. } = unsafe { self.0.as_ref() };
        // SAFETY: the event channel's handle is open as long as the vchan. A failure shows as a stub that is silent.
        unsafe { xenevtchn_notify(*event, *event_port) };
    }

    /// Whether the server is still there.
    pub(crate) fn is_open(&self) -> bool {
        // SAFETY: the handle is open.
        unsafe { libxenvchan_is_open(self.0.as_ptr()) == 1 }
    }

    /// Copies what is there into `out`, without waiting; 0 when there is nothing.
    pub(crate) fn read(&self, out: &mut [u8]) -> usize {
        // SAFETY: the handle is open.
        let ready = unsafe { libxenvchan_data_ready(self.0.as_ptr()) };
        let len = usize::try_from(ready).unwrap_or(0).min(out.len());
        if len == 0 {
            return 0;
        }
        // SAFETY: the handle is open and `out` has at least `len` bytes; the call does not wait.
        let nr = unsafe { libxenvchan_read(self.0.as_ptr(), out.as_mut_ptr().cast(), len) };
        usize::try_from(nr).unwrap_or(0)
    }

    /// Sends as much of `bytes` as fits, without waiting; 0 when there is no room.
    pub(crate) fn write(&self, bytes: &[u8]) -> usize {
        // SAFETY: the handle is open.
        let space = unsafe { libxenvchan_buffer_space(self.0.as_ptr()) };
        let len = usize::try_from(space).unwrap_or(0).min(bytes.len());
        if len == 0 {
            return 0;
        }
        // SAFETY: the handle is open and `bytes` has at least `len` bytes; the call does not wait.
        let nr = unsafe { libxenvchan_write(self.0.as_ptr(), bytes.as_ptr().cast(), len) };
        usize::try_from(nr).unwrap_or(0)
    }
}

impl Drop for Vchan {
    fn drop(&mut self) {
        // SAFETY: the handle is open and nothing uses it after this.
        unsafe { libxenvchan_close(self.0.as_ptr()) };
    }
}
