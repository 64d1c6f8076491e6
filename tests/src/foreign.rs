//! Another domain's frames, mapped read-only through Xen's libxenforeignmemory (`xenforeignmemory.h`).
//!
//! **Takes** frame numbers: gfns, or mfns of a PV domain. **Gives** what stands there, or the error of each. **Never** writes.
#![allow(unsafe_code, reason = "mapping another domain's memory is a call into Xen's C library")]

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

/// Size of a page in bytes, to count with.
pub const PAGE_BYTES: usize = 4096;
const WORDS_OF_A_PAGE: usize = PAGE_BYTES / size_of::<u64>();
const PROT_READ: c_int = 1;

#[link(name = "xenforeignmemory")]
unsafe extern "C" {
    fn xenforeignmemory_open(logger: *mut c_void, open_flags: c_uint) -> *mut c_void;
    fn xenforeignmemory_close(handle: *mut c_void) -> c_int;
    fn xenforeignmemory_map(
        handle: *mut c_void,
        domid: u32,
        prot: c_int,
        nr_pages: usize,
        frames: *const u64,
        errors: *mut c_int,
    ) -> *mut c_void;
    fn xenforeignmemory_unmap(handle: *mut c_void, address: *mut c_void, nr_pages: usize) -> c_int;
}

/// Reads FIRST:END, a half-open range of frame numbers, decimal or 0x...
///
/// # Errors
/// It is none.
pub fn gfn_range(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let ends = text.split_once(':').and_then(|(first, end)| Some(number(first).ok()?..number(end).ok()?));
    ends.ok_or_else(|| "expected FIRST:END, decimal or 0x...".to_owned())
}

/// The way to one domain's memory.
pub struct Foreign {
    handle: NonNull<c_void>,
    domid: u32,
}

/// Some of its frames; those without memory are not mapped.
pub struct Mapped<'a> {
    owner: &'a Foreign,
    address: NonNull<c_void>,
    errors: Vec<c_int>,
}

impl Foreign {
    /// Opens the library's handle.
    pub fn open(domid: u32) -> io::Result<Self> {
        // SAFETY: a null logger and no flags are what the header offers for the defaults.
        let handle = unsafe { xenforeignmemory_open(ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { handle, domid })
    }

    /// Maps frames; a frame that cannot be mapped is no error.
    pub fn map(&self, frames: &[u64]) -> io::Result<Mapped<'_>> {
        let mut errors = vec![0; frames.len()];
        // SAFETY: the handle is open until self is dropped; both arrays have as many elements as the count says, and
        // xen_pfn_t is 64 bits wide on x86-64.
        let address = unsafe {
            xenforeignmemory_map(
                self.handle.as_ptr(),
                self.domid,
                PROT_READ,
                frames.len(),
                frames.as_ptr(),
                errors.as_mut_ptr(),
            )
        };
        let address = NonNull::new(address).ok_or_else(io::Error::last_os_error)?;
        Ok(Mapped { owner: self, address, errors })
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and no mapping is left: each borrows self.
        unsafe { xenforeignmemory_close(self.handle.as_ptr()) };
    }
}

impl Mapped<'_> {
    /// Why the frame at a place in the list is not mapped; none when it is.
    pub fn error(&self, place: usize) -> Option<io::Error> {
        self.errors.get(place).filter(|error| **error != 0).map(|error| io::Error::from_raw_os_error(-error))
    }

    /// Whether the frame at a place in the list holds these bytes, a page of them; none when it has no memory. Nothing is
    /// copied.
    pub fn equals(&self, place: usize, page: &[u8]) -> Option<bool> {
        if *self.errors.get(place)? != 0 {
            return None;
        }
        let (words, rest) = page.as_chunks::<8>();
        let equal = |(number, word): (usize, &[u8; 8])| {
            // SAFETY: place is less than the number of pages of the mapping, number less than the words of a page (see
            // below), so the sum stays within it.
            let at = unsafe { self.address.as_ptr().cast::<u64>().add(place * WORDS_OF_A_PAGE + number) };
            // SAFETY: the frame is mapped for reading (its error is 0) until self is dropped, and a mapping begins with a
            // page, so that the word is aligned. Volatile: it is another domain's memory.
            let found = unsafe { at.read_volatile() };
            found == u64::from_ne_bytes(*word)
        };
        Some(rest.is_empty() && words.len() == WORDS_OF_A_PAGE && words.iter().enumerate().all(equal))
    }

    /// The contents of the frame at a place in the list; none when it has no memory.
    pub fn page(&self, place: usize) -> Option<Vec<u8>> {
        if *self.errors.get(place)? != 0 {
            return None;
        }
        let mut bytes = vec![0_u8; PAGE_BYTES];
        // SAFETY: place is less than the number of pages of the mapping, so the sum stays within it.
        let from = unsafe { self.address.as_ptr().cast::<u8>().add(place * PAGE_BYTES) };
        // SAFETY: the frame is mapped for reading (its error is 0) until self is dropped, the buffer is ours and as
        // long; the domain is paused, and a torn read could only show a difference that is one.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), PAGE_BYTES) };
        Some(bytes)
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        // SAFETY: the address and the count are those of a mapping that is still there; its handle outlives it.
        unsafe {
            xenforeignmemory_unmap(self.owner.handle.as_ptr(), self.address.as_ptr(), self.errors.len())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_two_numbers() {
        assert_eq!(gfn_range("0xfe000:1048576"), Ok(0xfe000..0x10_0000));
        assert!(gfn_range("7").is_err() && gfn_range("7:x").is_err());
    }
}
