//! Where another domain has memory, by Xen's libxenctrl (`xc_get_pfn_type_batch` of `xenctrl.h`): a call asks about a
//! thousand frames, where mapping a hole takes one by itself.
#![allow(unsafe_code, reason = "asking for types of frames is a call into Xen's C library")]

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::ptr::{self, NonNull};

/// Type of a frame that is not there, in the word's own bits (`XEN_DOMCTL_PFINFO_XTAB`, `xen/domctl.h`).
const XTAB: u64 = 0xf << 28;

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_interface_open(
        logger: *mut c_void,
        dombuild_logger: *mut c_void,
        open_flags: c_uint,
    ) -> *mut c_void;
    fn xc_interface_close(handle: *mut c_void) -> c_int;
    fn xc_get_pfn_type_batch(handle: *mut c_void, domid: u32, nr: c_uint, frames: *mut u64) -> c_int;
}

/// The types of one domain's frames.
pub(crate) struct Types {
    handle: NonNull<c_void>,
    domid: u32,
}

impl Types {
    /// Opens the library's handle.
    pub(crate) fn open(domid: u32) -> io::Result<Self> {
        // SAFETY: null loggers and no flags are what the header offers for the defaults.
        let handle = unsafe { xc_interface_open(ptr::null_mut(), ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { handle, domid })
    }

    /// Tells of each of these frames, 1024 at most, whether the domain has memory there.
    pub(crate) fn have_memory(&self, frames: &[u64]) -> io::Result<Vec<bool>> {
        let mut types = frames.to_vec();
        let nr = c_uint::try_from(types.len()).map_err(io::Error::other)?;
        // SAFETY: the handle is open until self is dropped; the array has as many elements as the count says, and
        // xen_pfn_t is 64 bits wide on x86-64.
        let result =
            unsafe { xc_get_pfn_type_batch(self.handle.as_ptr(), self.domid, nr, types.as_mut_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(types.into_iter().map(|kind| kind & XTAB != XTAB).collect())
    }
}

impl Drop for Types {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nobody uses it any more.
        unsafe { xc_interface_close(self.handle.as_ptr()) };
    }
}
