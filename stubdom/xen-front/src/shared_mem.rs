//! Memory that another domain may write at any time.
//!
//! **Takes** a mapped, granted range, once, with the promises of [`SharedMem::new`]. **Gives** copies: what was read
//! is private and stays as it is, so that checking it means something. **Never** hands out a reference to the range,
//! never reads the same field twice for one decision.
//!
//! The barriers are the caller's: see `crate::ring` for the pattern of the standard ring.
#![allow(unsafe_code, reason = "only raw pointers may touch memory that another domain writes concurrently")]

use crate::mem;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering, fence};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A range of this domain's memory that another domain may read and write.
///
/// Every access is checked against the range and panics outside it: offsets are the caller's own arithmetic, never a
/// number of the peer.
#[derive(Debug)]
pub struct SharedMem {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns a plain range of memory (obligation 2 of `new`); nothing about it is tied to a thread.
unsafe impl Send for SharedMem {}
// SAFETY: what a shared reference allows is volatile reads and atomic steps.
unsafe impl Sync for SharedMem {}

impl SharedMem {
    /// Takes a range of `len` bytes from `base`.
    ///
    /// # Safety
    /// While the value lives:
    /// 1. the range is mapped, readable, and writable unless it is only read;
    /// 2. no Rust reference to any byte of it exists, and this domain touches it only through this value or through
    ///    others of this type.
    pub const unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }

    /// Returns the length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Tells whether the range has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes another handle to the `len` bytes from `offset` on.
    ///
    /// # Safety
    /// The range stays mapped while the new value lives too (obligation 1 of [`SharedMem::new`]).
    pub(crate) unsafe fn part(&self, offset: usize, len: usize) -> Self {
        Self { base: self.bytes(offset, len), len }
    }

    /// Reads a copy of the value at `offset` bytes.
    pub fn read<T: FromBytes>(&self, offset: usize) -> T {
        let from = self.at::<T>(offset);
        // SAFETY: `at` has checked that the value lies in the range and is aligned; the range is mapped (obligation 1
        // of `new`); any bytes are a valid T (FromBytes). Volatile: the access happens once, here.
        unsafe { from.read_volatile() }
    }

    /// Writes a value at `offset` bytes.
    pub fn write<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) {
        let to = self.at::<T>(offset);
        // SAFETY: `at` has checked bounds and alignment; the range is mapped and writable (obligation 1 of `new`) and
        // no reference to it exists (obligation 2).
        unsafe { to.write_volatile(value) }
    }

    /// Copies the bytes from `offset` on into `out`.
    pub fn copy_out(&self, offset: usize, out: &mut [u8]) {
        let (from, len) = (self.bytes(offset, out.len()), out.len());
        // SAFETY: `bytes` has checked the source against the range, which is mapped (obligation 1 of `new`); `out` is
        // private memory of exactly that length, so the two do not overlap.
        unsafe { from.copy_to_nonoverlapping(NonNull::from(out).cast(), len) }
        // What is decided on `out` from here on is decided on the copy: no later load may go back to the source.
        fence(Ordering::Acquire);
    }

    /// Copies `len` bytes from `offset` on to `to`, which nobody decides anything by.
    ///
    /// # Safety
    /// `to` is writable for `len` bytes and lies outside the range.
    pub(crate) unsafe fn copy_to(&self, offset: usize, to: *mut u8, len: usize) {
        let from = self.bytes(offset, len);
        // SAFETY: `bytes` has checked the source against the range, which is mapped (obligation 1 of `new`); `to` is the
        // caller's obligation. The instructions of `mem::copy` allow for writes by others.
        unsafe { mem::copy(to, from.as_ptr(), len) }
    }

    /// Copies `len` bytes from `from` on to `offset`.
    ///
    /// # Safety
    /// `from` is readable for `len` bytes and lies outside the range; others may write there meanwhile.
    pub(crate) unsafe fn copy_from(&mut self, offset: usize, from: *const u8, len: usize) {
        let to = self.bytes(offset, len);
        // SAFETY: `bytes` has checked the target against the range, which is mapped and writable (obligation 1 of `new`);
        // `from` is the caller's obligation. The instructions of `mem::copy` allow for writes by others.
        unsafe { mem::copy(to.as_ptr(), from, len) }
    }

    /// Copies `bytes` to `offset`.
    pub fn copy_in(&mut self, offset: usize, bytes: &[u8]) {
        let to = self.bytes(offset, bytes.len());
        // SAFETY: `bytes` (the method) has checked the target against the range, which is mapped and writable
        // (obligation 1 of `new`); the source is private memory, so the two do not overlap.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) }
    }

    /// Writes zeroes to the whole range.
    pub fn zero(&mut self) {
        // SAFETY: the range is mapped and writable (obligation 1 of `new`), no reference to it exists (obligation 2).
        unsafe { self.base.write_bytes(0, self.len) }
    }

    /// Sets bits of the byte at `offset` in one atomic step, which is also a full barrier; returns the byte before.
    pub fn fetch_or(&mut self, offset: usize, bits: u8) -> u8 {
        self.atomic(offset).fetch_or(bits, Ordering::SeqCst)
    }

    /// Keeps only `bits` of the byte at `offset` in one atomic step, which is also a full barrier; returns the byte
    /// before.
    pub fn fetch_and(&mut self, offset: usize, bits: u8) -> u8 {
        self.atomic(offset).fetch_and(bits, Ordering::SeqCst)
    }

    /// Clears `bits` of the word at `offset` in one atomic step, which is also a full barrier; returns the word before.
    pub fn take_bits(&self, offset: usize, bits: u64) -> u64 {
        let word = self.at::<u64>(offset);
        // SAFETY: `at` has checked bounds and alignment; the range is mapped (obligation 1 of `new`) for longer than
        // the borrow of self; the other side uses atomic operations on the word too.
        unsafe { AtomicU64::from_ptr(word.as_ptr()) }.fetch_and(!bits, Ordering::SeqCst)
    }

    /// Replaces `current` at `offset` by `new` in one atomic step; tells whether `current` was there.
    pub fn replace(&mut self, offset: usize, current: u16, new: u16) -> bool {
        let word = self.at::<u16>(offset);
        // SAFETY: as in `take_bits`.
        let word = unsafe { AtomicU16::from_ptr(word.as_ptr()) };
        word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn atomic(&mut self, offset: usize) -> &AtomicU8 {
        let byte = self.at::<u8>(offset);
        // SAFETY: `at` has checked the byte against the range, which is mapped (obligation 1 of `new`) for longer
        // than the borrow of self; a byte is always aligned; the other domain uses atomic operations on it too, and
        // an atomic, unlike a plain reference, allows for writes by others.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }

    fn at<T>(&self, offset: usize) -> NonNull<T> {
        let at = self.bytes(offset, size_of::<T>()).cast::<T>();
        assert!(at.is_aligned(), "unaligned access to shared memory");
        at
    }

    fn bytes(&self, offset: usize, len: usize) -> NonNull<u8> {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len), "access outside shared memory");
        // SAFETY: offset is at most `len`, just checked, so the result is inside the range or one past its end.
        unsafe { self.base.add(offset) }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Pages that a test and the code under test share, as two domains would.

    use super::SharedMem;
    use core::cell::UnsafeCell;
    use core::ptr::NonNull;
    use std::boxed::Box;
    use xen_abi::types::PAGE_SIZE;

    #[repr(align(4096))]
    struct Page(#[expect(dead_code, reason = "only its address is used")] UnsafeCell<[u8; PAGE_SIZE]>);

    /// Leaks `nr_pages` zeroed pages in a row and returns their address.
    pub(crate) fn pages(nr_pages: usize) -> NonNull<u8> {
        let pages: Box<[Page]> = (0..nr_pages).map(|_| Page(UnsafeCell::new([0; PAGE_SIZE]))).collect();
        NonNull::from(Box::leak(pages)).cast()
    }

    /// Opens one more view of `nr_pages` pages at `base`, which came from [`pages`].
    pub(crate) fn view(base: NonNull<u8>, nr_pages: usize) -> SharedMem {
        // SAFETY: `pages` leaked the memory, so it stays mapped; tests touch it through SharedMem only.
        unsafe { SharedMem::new(base, nr_pages * PAGE_SIZE) }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{pages, view};
    use xen_abi::types::PAGE_SIZE;

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let base = pages(2);
        let (mut ours, mut theirs) = (view(base, 2), view(base, 2));
        ours.write(8, 0x1234_5678_u32);
        assert_eq!(theirs.read::<u32>(8), 0x1234_5678);
        theirs.copy_in(PAGE_SIZE - 2, b"abcd");
        let mut out = [0; 4];
        ours.copy_out(PAGE_SIZE - 2, &mut out);
        assert_eq!(&out, b"abcd");
        ours.zero();
        assert_eq!(theirs.read::<u32>(8), 0);
    }

    #[test]
    fn bits_are_set_and_cleared_one_by_one() {
        let mut mem = view(pages(1), 1);
        assert_eq!(mem.fetch_or(21, 0x1), 0);
        assert_eq!(mem.fetch_or(21, 0x2), 0x1);
        assert_eq!(mem.fetch_and(21, !0x1), 0x3);
        assert_eq!(mem.read::<u8>(21), 0x2);
    }
}
