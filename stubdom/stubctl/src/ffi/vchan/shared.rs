//! The pages of a vchan, and where the shared values are in them.

use super::ConnectError;
use crate::ffi::grants::{Pages, Writable};
use std::mem::offset_of;
use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};
use xen_abi::types::{Gref, PAGE_SHIFT, PAGE_SIZE};
use xen_abi::vchan::{RingShared, VchanInterface};

/// log2 of a ring's bytes: at least a page of its own, and no more than the page has room for grants.
pub(super) const ORDERS: RangeInclusive<u16> = 12..=20;

pub(super) const LEFT: usize = offset_of!(VchanInterface, left);
pub(super) const RIGHT: usize = offset_of!(VchanInterface, right);
pub(super) const CLI_LIVE: usize = offset_of!(VchanInterface, cli_live);
const CONS: usize = offset_of!(RingShared, cons);
const PROD: usize = offset_of!(RingShared, prod);

/// The server's index is further from ours than the ring is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nonsense;

impl From<Nonsense> for std::io::Error {
    fn from(Nonsense: Nonsense) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, "its index in the shared page makes no sense")
    }
}

/// The bytes of a ring, in shared pages.
#[derive(Clone, Copy)]
pub(super) struct Bytes {
    start: NonNull<u8>,
    /// A power of two.
    len: u32,
}

impl Bytes {
    pub(super) const fn len(self) -> u32 {
        self.len
    }

    /// Where `len` bytes from a free-running index on are: up to the end of the ring, and from its start. No more than the
    /// ring is long.
    pub(super) fn pieces(self, index: u32, len: usize) -> [libc::iovec; 2] {
        let len = len.min(self.len as usize);
        let position = (index & (self.len - 1)) as usize;
        let first = len.min(self.len as usize - position);
        let piece = |offset: usize, iov_len| libc::iovec {
            iov_base: self.start.as_ptr().wrapping_add(offset).cast(),
            iov_len,
        };
        [piece(position, first), piece(0, len - first)]
    }
}

/// The pages of a vchan: the one that describes it, and those of its rings.
pub(super) struct Shared {
    interface: NonNull<u8>,
    pub(super) left: Bytes,
    pub(super) right: Bytes,
    /// Held for the addresses above; a test's are none of anybody's.
    _pages: Vec<Pages>,
}

impl Shared {
    /// Takes the page that describes a vchan, and maps the rings that it names.
    ///
    /// # Errors
    /// Rings of other sizes than [`ORDERS`], or pages that cannot be mapped.
    pub(super) fn map(
        page: Pages,
        map: impl Fn(&[Gref], Writable) -> Result<Pages, i32>,
    ) -> Result<Self, ConnectError> {
        let nothing = Bytes { start: page.start(), len: 0 };
        let mut shared = Self { interface: page.start(), left: nothing, right: nothing, _pages: vec![page] };
        let [nr_left, nr_right] = shared.ring_pages()?;
        let grefs = shared.grefs(nr_left + nr_right);
        let (left, right) = grefs.split_at(nr_left);
        shared.left = shared.hold(map(left, Writable::Yes).map_err(ConnectError::Map)?);
        shared.right = shared.hold(map(right, Writable::No).map_err(ConnectError::Map)?);
        Ok(shared)
    }

    /// How many pages each ring has, by the orders that the server wrote.
    fn ring_pages(&self) -> Result<[usize; 2], ConnectError> {
        let order = |offset| self.half_word(offset).load(Ordering::SeqCst);
        let [left, right] = [offset_of!(VchanInterface, left_order), offset_of!(VchanInterface, right_order)];
        let orders = [order(left), order(right)];
        if orders.iter().all(|order| ORDERS.contains(order)) {
            Ok(orders.map(|order| 1 << (u32::from(order) - PAGE_SHIFT)))
        } else {
            Err(ConnectError::Order { left: orders[0], right: orders[1] })
        }
    }

    /// Copies the list of grants.
    fn grefs(&self, nr: usize) -> Vec<Gref> {
        let offsets = (offset_of!(VchanInterface, grants)..).step_by(size_of::<u32>());
        offsets.take(nr).map(|offset| Gref::new(self.word(offset).load(Ordering::SeqCst))).collect()
    }

    fn hold(&mut self, pages: Pages) -> Bytes {
        // PANIC: never; a ring of the largest order is 1 MiB.
        let bytes = Bytes { start: pages.start(), len: u32::try_from(pages.len()).expect("a ring's length") };
        self._pages.push(pages);
        bytes
    }

    /// The consumer's index of the ring at [`LEFT`] or [`RIGHT`].
    pub(super) fn cons(&self, ring: usize) -> &AtomicU32 {
        self.word(ring + CONS)
    }

    /// The producer's index of the ring at [`LEFT`] or [`RIGHT`].
    pub(super) fn prod(&self, ring: usize) -> &AtomicU32 {
        self.word(ring + PROD)
    }

    pub(super) fn cli_live(&self) -> &AtomicU8 {
        self.byte(CLI_LIVE)
    }

    pub(super) fn srv_live(&self) -> &AtomicU8 {
        self.byte(offset_of!(VchanInterface, srv_live))
    }

    /// What the server wants events for.
    pub(super) fn cli_notify(&self) -> &AtomicU8 {
        self.byte(offset_of!(VchanInterface, cli_notify))
    }

    /// What the client wants events for.
    pub(super) fn srv_notify(&self) -> &AtomicU8 {
        self.byte(offset_of!(VchanInterface, srv_notify))
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: `at` gives a byte of the page that is mapped as long as `self` lives; everybody's access is atomic.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }
    }

    fn half_word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as in `byte`, for two bytes that are aligned.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2).cast()) }
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `byte`, for four bytes that are aligned.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }

    fn at(&self, offset: usize, size: usize) -> *mut u8 {
        assert!(offset + size <= PAGE_SIZE && offset.is_multiple_of(size), "a value inside the page");
        self.interface.as_ptr().wrapping_add(offset)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const RING_BYTES: u32 = 4096;

    /// A vchan of two rings in private memory, whose indices begin at `index`. It leaks: a test's few pages.
    pub(in super::super) fn in_private_memory(index: u32) -> Shared {
        let memory = Box::leak(vec![0_u64; 3 * PAGE_SIZE / 8].into_boxed_slice()).as_mut_ptr().cast::<u8>();
        let at = |page: usize| NonNull::new(memory.wrapping_add(page * PAGE_SIZE)).expect("no null");
        let ring = |page| Bytes { start: at(page), len: RING_BYTES };
        let shared = Shared { interface: at(0), left: ring(1), right: ring(2), _pages: Vec::new() };
        for ring in [LEFT, RIGHT] {
            shared.cons(ring).store(index, Ordering::SeqCst);
            shared.prod(ring).store(index, Ordering::SeqCst);
        }
        shared
    }

    /// Copies bytes of a ring out as the server would.
    pub(in super::super) fn take(bytes: Bytes, from: u32, to: u32) -> Vec<u8> {
        let at = |index: u32| bytes.start.as_ptr().wrapping_add((index % RING_BYTES) as usize);
        // SAFETY: inside the leaked ring.
        (0..to.wrapping_sub(from)).map(|nr| unsafe { at(from.wrapping_add(nr)).read() }).collect()
    }

    /// Writes bytes into a ring as the server would.
    pub(in super::super) fn put(ring: Bytes, from: u32, bytes: &[u8]) {
        for (nr, byte) in (0..).zip(bytes) {
            let at = ring.start.as_ptr().wrapping_add((from.wrapping_add(nr) % RING_BYTES) as usize);
            // SAFETY: inside the leaked ring.
            unsafe { at.write(*byte) };
        }
    }

    #[test]
    fn orders_that_no_ring_has_are_refused() {
        let shared = in_private_memory(0);
        let set = |left, right| {
            shared.half_word(offset_of!(VchanInterface, left_order)).store(left, Ordering::SeqCst);
            shared.half_word(offset_of!(VchanInterface, right_order)).store(right, Ordering::SeqCst);
            shared.ring_pages()
        };
        assert_eq!(set(20, 12), Ok([256, 1]));
        for (left, right) in [(21, 12), (12, 21), (11, 12), (12, 0), (0xffff, 12)] {
            assert_eq!(set(left, right), Err(ConnectError::Order { left, right }));
        }
    }

    #[test]
    fn a_piece_of_a_ring_stops_at_its_end_and_never_exceeds_it() {
        let bytes = in_private_memory(0).left;
        let lengths = |index, len| bytes.pieces(index, len).map(|piece| piece.iov_len);
        assert_eq!(lengths(0, 10), [10, 0]);
        assert_eq!(lengths(4090, 10), [6, 4]);
        assert_eq!(lengths(u32::MAX, 10), [1, 9]);
        assert_eq!(lengths(7, 1 << 20), [4089, 7]);
    }
}
