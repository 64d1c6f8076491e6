//! libxengnttab: pages that another domain has granted to dom0.
//!
//! Declarations follow `xengnttab.h`.
#![allow(unsafe_code, reason = "libxengnttab has a C interface")]

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{self, NonNull};
use std::rc::Rc;
use xen_abi::types::{Domid, Gref, PAGE_SIZE, Port};

#[repr(C)]
struct XenGnttab {
    _opaque: [u8; 0],
}

#[link(name = "xengnttab")]
unsafe extern "C" {
    fn xengnttab_open(logger: *mut c_void, open_flags: c_uint) -> *mut XenGnttab;
    fn xengnttab_close(xgt: *mut XenGnttab) -> c_int;
    fn xengnttab_map_grant_ref_notify(
        xgt: *mut XenGnttab,
        domid: u32,
        gref: u32,
        prot: c_int,
        notify_offset: u32,
        notify_port: u32,
    ) -> *mut c_void;
    fn xengnttab_map_domain_grant_refs(
        xgt: *mut XenGnttab,
        count: u32,
        domid: u32,
        refs: *mut u32,
        prot: c_int,
    ) -> *mut c_void;
    fn xengnttab_unmap(xgt: *mut XenGnttab, start_address: *mut c_void, count: u32) -> c_int;
}

/// The way to the pages of one domain.
pub(super) struct Grants {
    handle: NonNull<XenGnttab>,
    domid: Domid,
}

impl Grants {
    /// Opens it; `Err` is a positive errno.
    pub(super) fn open(domid: Domid) -> Result<Rc<Self>, i32> {
        // SAFETY: a null logger means standard error; no flags; the handle is used from this thread only.
        let handle = unsafe { xengnttab_open(ptr::null_mut(), 0) };
        Ok(Rc::new(Self { handle: NonNull::new(handle).ok_or_else(super::last_errno)?, domid }))
    }

    /// Maps one page for reading and writing. When it is unmapped, also by this process's death, Linux sets the byte at
    /// `offset` to 0 and sends an event through `port`.
    pub(super) fn map_notify(self: &Rc<Self>, gref: Gref, offset: usize, port: Port) -> Result<Pages, i32> {
        let offset = u32::try_from(offset).map_err(|_| libc::EINVAL)?;
        let (handle, domid) = (self.handle.as_ptr(), self.domid.raw().into());
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the handle is open; the call takes numbers only.
        let start =
            unsafe { xengnttab_map_grant_ref_notify(handle, domid, gref.raw(), prot, offset, port.raw()) };
        self.pages(start, 1)
    }

    /// Maps pages one behind the other.
    pub(super) fn map(self: &Rc<Self>, grefs: &[Gref], is_writable: Writable) -> Result<Pages, i32> {
        let mut refs: Vec<u32> = grefs.iter().map(|gref| gref.raw()).collect();
        let count = u32::try_from(refs.len()).map_err(|_| libc::E2BIG)?;
        let prot = match is_writable {
            Writable::Yes => libc::PROT_READ | libc::PROT_WRITE,
            Writable::No => libc::PROT_READ,
        };
        let (handle, domid) = (self.handle.as_ptr(), self.domid.raw().into());
        // SAFETY: the handle is open; `refs` has as many entries as are announced.
        let start = unsafe { xengnttab_map_domain_grant_refs(handle, count, domid, refs.as_mut_ptr(), prot) };
        self.pages(start, grefs.len())
    }

    fn pages(self: &Rc<Self>, start: *mut c_void, nr_pages: usize) -> Result<Pages, i32> {
        let start = NonNull::new(start.cast()).ok_or_else(super::last_errno)?;
        Ok(Pages { owner: Rc::clone(self), start, nr_pages })
    }
}

impl Drop for Grants {
    fn drop(&mut self) {
        // SAFETY: the handle is open, every mapping held `self` and is gone.
        unsafe { xengnttab_close(self.handle.as_ptr()) };
    }
}

/// Whether this end may write a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writable {
    /// It may.
    Yes,
    /// It may only read.
    No,
}

/// Pages of the other domain, mapped as long as this lives.
pub(super) struct Pages {
    owner: Rc<Grants>,
    start: NonNull<u8>,
    nr_pages: usize,
}

impl Pages {
    /// Where they are; the other domain may write there at any time.
    pub(super) const fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Their length in bytes.
    pub(super) const fn len(&self) -> usize {
        self.nr_pages * PAGE_SIZE
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let count = u32::try_from(self.nr_pages).unwrap_or(u32::MAX);
        // SAFETY: the pages were mapped together by this handle, and nothing points there after this.
        unsafe { xengnttab_unmap(self.owner.handle.as_ptr(), self.start.as_ptr().cast(), count) };
    }
}
