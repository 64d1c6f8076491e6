//! libxenstore: paths in, text out. Nodes hold what guests, stubs and streams have chosen, so every text is
//! [`Untrusted`].
//!
//! Declarations follow `xenstore.h`. No transactions: every node that stubctl writes stands for itself.
#![allow(unsafe_code, reason = "libxenstore has a C interface")]

use control::Untrusted;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::slice;
use std::str::FromStr;
use xen_abi::types::Domid;

const XBT_NULL: u32 = 0;
const XS_PERM_NONE: c_uint = 0;
const XS_PERM_READ: c_uint = 1;

#[repr(C)]
struct XsHandle {
    _opaque: [u8; 0],
}

/// `struct xs_permissions`.
#[repr(C)]
struct XsPermissions {
    id: c_uint,
    perms: c_uint,
}

#[link(name = "xenstore")]
unsafe extern "C" {
    fn xs_open(flags: c_ulong) -> *mut XsHandle;
    fn xs_close(xsh: *mut XsHandle);
    fn xs_directory(h: *mut XsHandle, t: u32, path: *const c_char, num: *mut c_uint) -> *mut *mut c_char;
    fn xs_read(h: *mut XsHandle, t: u32, path: *const c_char, len: *mut c_uint) -> *mut c_void;
    fn xs_write(h: *mut XsHandle, t: u32, path: *const c_char, data: *const c_void, len: c_uint) -> bool;
    fn xs_rm(h: *mut XsHandle, t: u32, path: *const c_char) -> bool;
    fn xs_set_permissions(
        h: *mut XsHandle,
        t: u32,
        path: *const c_char,
        perms: *mut XsPermissions,
        nr: c_uint,
    ) -> bool;
    fn xs_watch(h: *mut XsHandle, path: *const c_char, token: *const c_char) -> bool;
    fn xs_unwatch(h: *mut XsHandle, path: *const c_char, token: *const c_char) -> bool;
    fn xs_check_watch(h: *mut XsHandle) -> *mut *mut c_char;
    fn xs_fileno(h: *mut XsHandle) -> c_int;
    fn xs_resume_domain(h: *mut XsHandle, domid: c_uint) -> bool;
}

/// A xenstore operation that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreError {
    /// What was tried.
    pub(crate) operation: &'static str,
    /// On which node.
    pub(crate) path: String,
    /// Positive errno.
    pub(crate) errno: i32,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = std::io::Error::from_raw_os_error(self.errno);
        write!(f, "xenstore: cannot {} {}: {reason}", self.operation, self.path)
    }
}

impl std::error::Error for StoreError {}

/// A connection to xenstored.
pub(crate) struct Store(NonNull<XsHandle>);

impl Store {
    /// Connects.
    pub(crate) fn open() -> Result<Self, StoreError> {
        // SAFETY: no flags; the handle is used from this thread only.
        let handle = unsafe { xs_open(0) };
        NonNull::new(handle).map(Self).ok_or_else(|| failed("connect to", "xenstored"))
    }

    /// Reads a node as text; `None` when it does not exist.
    pub(crate) fn read(&self, path: &str) -> Result<Option<Untrusted<String>>, StoreError> {
        let c_path = c_string("read", path)?;
        let mut len = 0;
        // SAFETY: the handle is open, the path is nul-terminated and outlives the call, `len` is written.
        let data = unsafe { xs_read(self.0.as_ptr(), XBT_NULL, c_path.as_ptr(), &raw mut len) };
        let Some(data) = NonNull::new(data) else {
            let error = failed("read", path);
            return if error.errno == libc::ENOENT { Ok(None) } else { Err(error) };
        };
        // SAFETY: xs_read returned `len` bytes at `data`, which stay until free.
        let bytes = unsafe { slice::from_raw_parts(data.as_ptr().cast::<u8>(), len as usize) };
        let text = String::from_utf8_lossy(bytes).into_owned();
        // SAFETY: xs_read allocates its result with malloc; the slice above is not used any more.
        unsafe { libc::free(data.as_ptr()) };
        Ok(Some(Untrusted::new(text)))
    }

    /// Reads a decimal node; `None` when it is absent or no number.
    pub(crate) fn read_number<T: FromStr>(&self, path: &str) -> Result<Option<T>, StoreError> {
        Ok(self.read(path)?.and_then(|text| text.raw().trim().parse().ok()))
    }

    /// Writes a node, making its parents.
    pub(crate) fn write(&self, path: &str, value: &str) -> Result<(), StoreError> {
        let c_path = c_string("write", path)?;
        let len = c_uint::try_from(value.len()).unwrap_or(c_uint::MAX);
        let (store, data) = (self.0.as_ptr(), value.as_ptr().cast());
        // SAFETY: the handle is open, the path is nul-terminated, `data` has `len` bytes (longer values are refused
        // by xenstored's own limit of 2048).
        let ok = unsafe { xs_write(store, XBT_NULL, c_path.as_ptr(), data, len) };
        succeeded(ok, "write", path)
    }

    /// Makes a node of dom0 readable to one other domain and to nobody else.
    pub(crate) fn let_read(&self, path: &str, reader: Domid) -> Result<(), StoreError> {
        let c_path = c_string("set the permissions of", path)?;
        let mut perms = [
            XsPermissions { id: 0, perms: XS_PERM_NONE },
            XsPermissions { id: reader.raw().into(), perms: XS_PERM_READ },
        ];
        let (store, entries) = (self.0.as_ptr(), perms.as_mut_ptr());
        // SAFETY: the handle is open, the path is nul-terminated, `entries` has the two entries announced.
        let ok = unsafe { xs_set_permissions(store, XBT_NULL, c_path.as_ptr(), entries, 2) };
        succeeded(ok, "set the permissions of", path)
    }

    /// Removes a node and all below it; no error when it is not there.
    pub(crate) fn remove(&self, path: &str) -> Result<(), StoreError> {
        let c_path = c_string("remove", path)?;
        // SAFETY: the handle is open and the path is nul-terminated.
        let ok = unsafe { xs_rm(self.0.as_ptr(), XBT_NULL, c_path.as_ptr()) };
        match succeeded(ok, "remove", path) {
            Err(error) if error.errno == libc::ENOENT => Ok(()),
            result => result,
        }
    }

    /// The names of a node's children; empty when it does not exist.
    pub(crate) fn children(&self, path: &str) -> Result<Vec<Untrusted<String>>, StoreError> {
        let c_path = c_string("list", path)?;
        let mut nr = 0;
        // SAFETY: the handle is open, the path is nul-terminated, `nr` is written.
        let list = unsafe { xs_directory(self.0.as_ptr(), XBT_NULL, c_path.as_ptr(), &raw mut nr) };
        let Some(list) = NonNull::new(list) else {
            let error = failed("list", path);
            return if error.errno == libc::ENOENT { Ok(Vec::new()) } else { Err(error) };
        };
        // SAFETY: xs_directory returned an array of `nr` pointers, which stay until free.
        let names = unsafe { slice::from_raw_parts(list.as_ptr(), nr as usize) };
        let names = names.iter().map(|name| copy_text(*name)).collect();
        // SAFETY: the array and its texts are one malloc block; nothing borrows from it any more.
        unsafe { libc::free(list.as_ptr().cast()) };
        Ok(names)
    }

    /// Tells xenstored that a domain that had suspended runs again.
    pub(crate) fn resumed(&self, domid: Domid) -> Result<(), StoreError> {
        // SAFETY: the handle is open; the call takes a number only.
        let ok = unsafe { xs_resume_domain(self.0.as_ptr(), domid.raw().into()) };
        succeeded(ok, "tell of the resumption of", &domid.to_string())
    }

    /// Watches a node until the value is dropped; the first event fires at once.
    pub(crate) fn watch(&self, path: &str) -> Result<Watch<'_>, StoreError> {
        let c_path = c_string("watch", path)?;
        // SAFETY: the handle is open; both texts are nul-terminated.
        let ok = unsafe { xs_watch(self.0.as_ptr(), c_path.as_ptr(), c"stubctl".as_ptr()) };
        succeeded(ok, "watch", path)?;
        Ok(Watch { store: self, path: c_path })
    }
}

/// A node that is watched.
pub(crate) struct Watch<'a> {
    store: &'a Store,
    path: CString,
}

impl Watch<'_> {
    /// Takes all pending watch events away.
    pub(crate) fn drain(&self) {
        // SAFETY: the handle is open.
        while let Some(event) = NonNull::new(unsafe { xs_check_watch(self.store.0.as_ptr()) }) {
            // SAFETY: an event is one malloc block, and it is not used.
            unsafe { libc::free(event.as_ptr().cast()) };
        }
    }

    /// Readable when a watch event is there.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the handle is open.
        let fd = unsafe { xs_fileno(self.store.0.as_ptr()) };
        // SAFETY: the descriptor belongs to the handle and stays open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is open; both texts are nul-terminated. What fails is a watch that is gone already.
        unsafe { xs_unwatch(self.store.0.as_ptr(), self.path.as_ptr(), c"stubctl".as_ptr()) };
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the handle is open and nothing uses it after this.
        unsafe { xs_close(self.0.as_ptr()) };
    }
}

fn copy_text(text: *const c_char) -> Untrusted<String> {
    // SAFETY: libxenstore's directory entries are nul-terminated texts within its result.
    let text = unsafe { CStr::from_ptr(text) };
    Untrusted::new(text.to_string_lossy().into_owned())
}

fn c_string(operation: &'static str, path: &str) -> Result<CString, StoreError> {
    CString::new(path).map_err(|_| StoreError { operation, path: path.to_owned(), errno: libc::EINVAL })
}

fn succeeded(ok: bool, operation: &'static str, path: &str) -> Result<(), StoreError> {
    if ok { Ok(()) } else { Err(failed(operation, path)) }
}

fn failed(operation: &'static str, path: &str) -> StoreError {
    StoreError { operation, path: path.to_owned(), errno: super::last_errno() }
}
