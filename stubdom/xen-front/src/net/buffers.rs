//! The receive buffers: pages that are the back end's to write or ours to read, never both.
//!
//! **Takes** a row of pages and a grant for each that counts as a buffer. **Gives** bytes of pages that are ours.
//! **Never** makes a hypercall: a page is lent and taken back by one store to its grant entry, and its grant reference
//! stays the same for the life of the connection.
//!
//! While a page is lent nothing here can touch it; once it is taken back Xen lets nobody else write it. That is why
//! plain slices of received data are sound, and what smoltcp has checked in a header stays as it was.
#![allow(unsafe_code, reason = "slices of pages whose grant has ended")]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

use crate::grants::Lease;
use alloc::boxed::Box;
use core::ptr::NonNull;
use xen_abi::types::{Gref, PAGE_SIZE};

/// A row of pages, the first of which are granted one by one.
#[derive(Debug)]
pub(super) struct Buffers {
    base: NonNull<u8>,
    nr_pages: usize,
    leases: Box<[Lease]>,
}

impl Buffers {
    /// Takes `nr_pages` pages from `base` and a lease for each of the first ones; the others are never lent.
    ///
    /// # Safety
    /// 1. The pages are mapped and writable, and nothing else in this domain touches them while the value lives.
    /// 2. Lease `i` grants page `i`, and no other grant of that page exists.
    pub(super) unsafe fn new(base: NonNull<u8>, nr_pages: usize, leases: Box<[Lease]>) -> Self {
        assert!(leases.len() <= nr_pages, "a lease without a page");
        Self { base, nr_pages, leases }
    }

    /// Lets the back end write buffer `index` from now on.
    pub(super) fn lend(&mut self, index: usize) -> Option<Gref> {
        let lease = self.leases.get_mut(index)?;
        lease.lend();
        Some(lease.gref())
    }

    /// Takes buffer `index` back; false while the back end still uses it.
    pub(super) fn take_back(&mut self, index: usize) -> bool {
        self.leases.get_mut(index).is_some_and(Lease::take_back)
    }

    /// Gives the leases back, lent or not.
    pub(super) fn into_leases(self) -> Box<[Lease]> {
        self.leases
    }

    /// Copies `len` bytes at `offset` of page `from` to the same place of page `to`, or does nothing if one of them is
    /// lent or does not exist.
    pub(super) fn copy_between(&mut self, from: usize, to: usize, offset: usize, len: usize) -> Option<()> {
        let end = offset.checked_add(len)?;
        let source = NonNull::from(self.pages(from, 1)?.get(offset..end)?).cast::<u8>();
        let target = self.pages(to, 1)?.get_mut(offset..end)?;
        if from != to {
            // SAFETY: `source` are `len` bytes of a page that is ours and mapped; `target` are `len` bytes of another
            // page, so they do not overlap; nothing has written through self since `source` was taken.
            unsafe { source.copy_to_nonoverlapping(NonNull::from(target).cast(), len) };
        }
        Some(())
    }

    /// Returns the bytes of `nr_pages` pages from page `first`, or `None` if one of them is lent or does not exist.
    pub(super) fn pages(&mut self, first: usize, nr_pages: usize) -> Option<&mut [u8]> {
        let end = first.checked_add(nr_pages).filter(|&end| end <= self.nr_pages)?;
        if self.leases.iter().take(end).skip(first).any(Lease::is_lent) {
            return None;
        }
        // SAFETY: first is at most nr_pages, just checked, so the address is inside the row or one past its end.
        let start = unsafe { self.base.add(first.checked_mul(PAGE_SIZE)?) };
        // SAFETY: the pages lie in the row, which is mapped and writable (obligation 1 of `new`); none is lent, so by
        // obligation 2 no other domain has access; the borrow of self keeps every other slice and every lend away.
        Some(unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), nr_pages.checked_mul(PAGE_SIZE)?) })
    }
}
