//! The transmit queue: ring, buffers and the frames that go out.
//!
//! Every buffer is granted read-only for the life of the connection and holds one frame of at most
//! [`TX_BUFFER_BYTES`]. What this end sends is acknowledgements and little else, so frames are never spread over slots
//! and their checksums are computed here: over 20 bytes that costs less than asking the back end to.
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

use super::NetError;
use crate::ring::{FrontRing, Notify};
use alloc::boxed::Box;
use core::ptr::NonNull;
use xen_abi::netif::{TxFlags, TxRequest, TxResponse};
use xen_abi::types::{Gref, PAGE_SIZE};

/// Room for one frame, in bytes.
pub(super) const TX_BUFFER_BYTES: usize = 2048;

/// How many frames may be on their way.
const NR_BUFFERS: usize = 64;

const BUFFERS_PER_PAGE: usize = PAGE_SIZE / TX_BUFFER_BYTES;

/// Pages that the buffers of a transmit queue need.
pub(super) const NR_TX_PAGES: usize = NR_BUFFERS / BUFFERS_PER_PAGE;

/// What a transmit queue has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxCounters {
    /// Frames handed to the back end.
    pub nr_frames: u64,
    /// Frames that the back end refused.
    pub nr_failed: u64,
}

/// The transmit queue of a connected network front end.
#[derive(Debug)]
pub struct TxQueue {
    ring: FrontRing<TxRequest, TxResponse>,
    pages: TxPages,
    /// A bit for each buffer that is not on its way.
    free: u64,
    pub(super) counters: TxCounters,
}

impl TxQueue {
    /// Takes a fresh ring, the buffers and the grants of their pages.
    pub(super) fn new(ring: FrontRing<TxRequest, TxResponse>, pages: TxPages) -> Self {
        Self { ring, pages, free: u64::MAX, counters: TxCounters::default() }
    }

    /// Tells whether a frame can be sent now; looks for buffers that the back end is done with if there is none.
    ///
    /// # Errors
    /// The back end broke the protocol.
    pub(super) fn has_room(&mut self) -> Result<bool, NetError> {
        if self.free == 0 {
            self.reap()?;
        }
        Ok(self.free != 0)
    }

    /// Sends a frame of `len` bytes that `fill` writes; the back end sees it at the next publish.
    ///
    /// A frame longer than [`TX_BUFFER_BYTES`], or one for which there is no room, is filled and lost.
    pub fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let index = self.free.trailing_zeros();
        let Some((gref, offset, buffer)) = self.pages.buffer(index as usize, len) else {
            return fill(&mut alloc::vec![0; len]);
        };
        let result = fill(buffer);
        let (Ok(id), Ok(size)) = (u16::try_from(index), u16::try_from(len)) else { return result };
        let request = TxRequest { gref: gref.raw(), offset, flags: TxFlags::empty().bits(), id, size };
        if self.ring.push(request) {
            self.free &= !(1_u64 << index);
            self.counters.nr_frames = self.counters.nr_frames.wrapping_add(1);
        }
        result
    }

    /// Shows the back end the frames sent so far.
    pub(super) fn publish(&mut self) -> Notify {
        self.ring.publish()
    }

    /// Takes back the buffers that the back end is done with.
    pub(super) fn reap(&mut self) -> Result<(), NetError> {
        while let Some((_, TxResponse { id, status })) = self.ring.pop()? {
            let bit = 1_u64.checked_shl(u32::from(id)).filter(|bit| self.free & bit == 0);
            self.free |= bit.ok_or(NetError::TxId { got: id })?;
            self.counters.nr_failed = self.counters.nr_failed.wrapping_add(u64::from(status < 0));
        }
        Ok(())
    }

    /// Asks for an event when a buffer comes back; true if one has.
    pub(super) fn request_event(&mut self) -> Result<bool, NetError> {
        Ok(self.ring.request_event()?)
    }
}

pub(super) use pages::TxPages;

mod pages {
    //! The buffers' memory.
    #![allow(unsafe_code, reason = "slices of pages that the back end may read, but not write")]

    use super::{Box, Gref, NonNull, PAGE_SIZE, TX_BUFFER_BYTES};

    /// Pages granted read-only for good.
    #[derive(Debug)]
    pub(in crate::net) struct TxPages {
        base: NonNull<u8>,
        grefs: Box<[Gref]>,
    }

    impl TxPages {
        /// Takes one page from `base` on for each grant.
        ///
        /// # Safety
        /// 1. The pages are mapped and writable, and nothing else in this domain touches them while the value lives.
        /// 2. Their grants are read-only.
        pub(in crate::net) unsafe fn new(base: NonNull<u8>, grefs: Box<[Gref]>) -> Self {
            Self { base, grefs }
        }

        /// Returns the grant, the offset in its page, and the first `len` bytes of buffer `index`.
        pub(super) fn buffer(&mut self, index: usize, len: usize) -> Option<(Gref, u16, &mut [u8])> {
            let start = index.checked_mul(TX_BUFFER_BYTES).filter(|_| len <= TX_BUFFER_BYTES)?;
            let gref = *self.grefs.get(start / PAGE_SIZE)?;
            // SAFETY: the buffer lies in page start / PAGE_SIZE, which exists because its grant does.
            let bytes = unsafe { self.base.add(start) };
            // SAFETY: `len` is at most a buffer, which is mapped and writable (obligation 1 of `new`); no other domain
            // can write it (obligation 2); the borrow of self keeps other slices away.
            let bytes = unsafe { core::slice::from_raw_parts_mut(bytes.as_ptr(), len) };
            Some((gref, u16::try_from(start % PAGE_SIZE).ok()?, bytes))
        }
    }
}

#[cfg(test)]
mod tests;
