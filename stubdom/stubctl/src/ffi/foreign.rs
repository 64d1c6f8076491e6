//! libxenforeignmemory: frames of a guest, copied in and out.
//!
//! Declarations follow `xenforeignmemory.h`. No reference to guest memory leaves this module, and no mapping outlives a
//! call: a mapping holds its frames, and a held frame cannot be exchanged.
#![allow(unsafe_code, reason = "libxenforeignmemory has a C interface")]

use super::xenctrl::XenError;
use migration::exchange_pv::{WORDS, Words};
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{self, NonNull};
use xen_abi::types::{Domid, Mfn};

#[repr(C)]
struct XenForeignMemory {
    _opaque: [u8; 0],
}

#[link(name = "xenforeignmemory")]
unsafe extern "C" {
    fn xenforeignmemory_open(logger: *mut c_void, open_flags: c_uint) -> *mut XenForeignMemory;
    fn xenforeignmemory_close(fmem: *mut XenForeignMemory) -> c_int;
    fn xenforeignmemory_map(
        fmem: *mut XenForeignMemory,
        dom: u32,
        prot: c_int,
        pages: usize,
        arr: *const u64,
        err: *mut c_int,
    ) -> *mut c_void;
    fn xenforeignmemory_unmap(fmem: *mut XenForeignMemory, addr: *mut c_void, pages: usize) -> c_int;
}

/// Access to the frames of one PV domain, by machine frame number.
pub(crate) struct ForeignMemory {
    handle: NonNull<XenForeignMemory>,
    domid: Domid,
}

impl ForeignMemory {
    /// Opens it.
    pub(crate) fn open(domid: Domid) -> Result<Self, XenError> {
        // SAFETY: a null logger means standard error; no flags; the handle is used from this thread only.
        let handle = unsafe { xenforeignmemory_open(ptr::null_mut(), 0) };
        let error =
            || XenError { call: "xenforeignmemory_open", domid: Some(domid), errno: super::last_errno() };
        Ok(Self { handle: NonNull::new(handle).ok_or_else(error)?, domid })
    }

    /// Copies frames; `Err` is a positive errno. `pages` has as many entries as `mfns`.
    pub(crate) fn read(&self, mfns: &[Mfn], pages: &mut [Words]) -> Result<(), i32> {
        assert_eq!(mfns.len(), pages.len(), "a page for each frame");
        let mapping = self.map(mfns, libc::PROT_READ)?;
        for (page, offset) in pages.iter_mut().zip((0..).step_by(WORDS)) {
            // SAFETY: the mapping has as many pages as `pages`, so word `offset` lies in it.
            let from = unsafe { mapping.words.as_ptr().add(offset) };
            // SAFETY: a whole page is mapped for reading there, and aligned; any bytes are words. The guest is stopped.
            unsafe { ptr::copy_nonoverlapping(from, page.as_mut_ptr(), WORDS) };
        }
        Ok(())
    }

    /// Writes a whole frame; `Err` is a positive errno.
    pub(crate) fn write(&self, mfn: Mfn, page: &Words) -> Result<(), i32> {
        let mapping = self.map(&[mfn], libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: one whole page is mapped for writing, and aligned; the guest is stopped and `page` is ours.
        unsafe { ptr::copy_nonoverlapping(page.as_ptr(), mapping.words.as_ptr(), WORDS) };
        Ok(())
    }

    /// Writes one word of a frame, at once; `Err` is a positive errno.
    pub(crate) fn write_word(&self, mfn: Mfn, index: usize, word: u64) -> Result<(), i32> {
        assert!(index < WORDS, "a word of one frame");
        let mapping = self.map(&[mfn], libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: `index` was checked to lie in the one page that is mapped.
        let at = unsafe { mapping.words.as_ptr().add(index) };
        // SAFETY: the word is mapped for writing, and aligned.
        unsafe { at.write_volatile(word) };
        Ok(())
    }

    fn map(&self, mfns: &[Mfn], prot: c_int) -> Result<Mapping<'_>, i32> {
        let frames: Vec<u64> = mfns.iter().map(|mfn| mfn.raw()).collect();
        let (handle, domid) = (self.handle.as_ptr(), self.domid.raw().into());
        // SAFETY: the handle is open; `frames` has the number of entries announced; without an array for errors the call
        // maps all frames or fails.
        let address = unsafe {
            xenforeignmemory_map(handle, domid, prot, frames.len(), frames.as_ptr(), ptr::null_mut())
        };
        let words = NonNull::new(address.cast()).ok_or_else(super::last_errno)?;
        Ok(Mapping { owner: self, words, nr_pages: frames.len() })
    }
}

impl Drop for ForeignMemory {
    fn drop(&mut self) {
        // SAFETY: the handle is open, every mapping borrowed `self` and is gone.
        unsafe { xenforeignmemory_close(self.handle.as_ptr()) };
    }
}

struct Mapping<'a> {
    owner: &'a ForeignMemory,
    words: NonNull<u64>,
    nr_pages: usize,
}

impl Drop for Mapping<'_> {
    fn drop(&mut self) {
        let (handle, address) = (self.owner.handle.as_ptr(), self.words.as_ptr().cast());
        // SAFETY: the pages were mapped together by this handle and nothing points there after this.
        unsafe { xenforeignmemory_unmap(handle, address, self.nr_pages) };
    }
}
