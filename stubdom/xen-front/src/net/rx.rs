//! The receive queue: ring, buffers and the frames that come in.
//!
//! Buffer `i` always stands in slot `i`. A back end answers in ring order, so the slots of a frame are neighbours and
//! so are their pages: a frame of many pages is contiguous where it is, but for the page spent on the extra and the
//! end of the ring. Both cost a copy of what lies on the wrong side of the gap: one page an aggregate, and about half
//! an aggregate a round of the ring (256 pages).
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

use super::buffers::Buffers;
use super::frame::{Assembly, Fragment, Placed, Step, close_up};
use super::{MAX_FRAME_PAGES, NR_RX_SLOTS, NetError};
use crate::grants::Lease;
use crate::ring::{FrontRing, Notify};
use alloc::boxed::Box;
use xen_abi::netif::{RxFlags, RxRequest, RxResponse};

/// The most slots of one frame, extras included.
const MAX_FRAME_SLOTS: usize = MAX_FRAME_PAGES + super::frame::MAX_EXTRAS;

/// Pages that the buffers of a receive queue need: one a slot, and room for a frame that runs over the ring's end.
pub(super) const NR_RX_PAGES: usize = NR_RX_SLOTS + MAX_FRAME_SLOTS - 1;

/// Free slots that are worth telling the back end about while frames are still coming in.
const REFILL_BATCH: u32 = 64;

const _: () = assert!(FrontRing::<RxRequest, RxResponse>::NR_SLOTS as usize == NR_RX_SLOTS);

/// A received Ethernet frame, without its checksum trailer.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Header and payload; up to 64 KiB of TCP payload if the sender's stack aggregated it.
    pub bytes: &'a mut [u8],
    /// Whether the back end vouches for the transport checksum, or it was never computed because the frame never left
    /// this host. Otherwise the receiver must verify it.
    pub checksum_good: bool,
}

/// What a receive queue has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxCounters {
    /// Frames received.
    pub nr_frames: u64,
    /// Their bytes.
    pub nr_bytes: u64,
    /// Slots used for them.
    pub nr_slots: u64,
    /// Frames that the back end reported as failed.
    pub nr_dropped: u64,
}

/// The receive queue of a connected network front end.
#[derive(Debug)]
pub(super) struct RxQueue {
    ring: FrontRing<RxRequest, RxResponse>,
    buffers: Buffers,
    assembly: Assembly,
    pub(super) counters: RxCounters,
}

impl RxQueue {
    /// Takes a fresh ring and [`NR_RX_PAGES`] pages of which the first [`NR_RX_SLOTS`] have grants.
    pub(super) fn new(ring: FrontRing<RxRequest, RxResponse>, buffers: Buffers) -> Self {
        Self { ring, buffers, assembly: Assembly::new(), counters: RxCounters::default() }
    }

    /// Tells whether enough buffers are free to be worth a refill in the middle of a batch.
    pub(super) fn wants_refill(&self) -> bool {
        self.ring.nr_free() >= REFILL_BATCH
    }

    /// Gives every free buffer to the back end.
    pub(super) fn refill(&mut self) -> Notify {
        while self.ring.nr_free() > 0 {
            let slot = self.ring.next_slot();
            let Some(gref) = self.buffers.lend(slot as usize) else { break };
            let id = u16::try_from(slot).unwrap_or(u16::MAX);
            if !self.ring.push(RxRequest { id, pad: 0, gref: gref.raw() }) {
                break;
            }
        }
        self.ring.publish()
    }

    /// Takes the next whole frame.
    ///
    /// # Errors
    /// The back end broke the protocol.
    pub(super) fn frame(&mut self) -> Result<Option<Frame<'_>>, NetError> {
        while let Some((slot, response)) = self.ring.pop()? {
            let slot = u16::try_from(slot).unwrap_or(u16::MAX);
            if !self.buffers.take_back(usize::from(slot)) {
                return Err(NetError::StillInUse { slot });
            }
            self.counters.nr_slots = self.counters.nr_slots.wrapping_add(1);
            match self.assembly.step(slot, response)? {
                Step::More => {}
                Step::Dropped => self.counters.nr_dropped = self.counters.nr_dropped.wrapping_add(1),
                Step::Whole => return Ok(self.gather()),
            }
        }
        Ok(None)
    }

    /// Asks for an event at the next response; true if one is there already.
    pub(super) fn request_event(&mut self) -> Result<bool, NetError> {
        Ok(self.ring.request_event()?)
    }

    /// Gives the buffers' leases back, lent or not: the queue has ended.
    pub(super) fn into_leases(self) -> Box<[Lease]> {
        self.buffers.into_leases()
    }

    /// Brings the fragments of a whole frame together.
    fn gather(&mut self) -> Option<Frame<'_>> {
        let first = self.assembly.fragments().first()?.slot();
        let placed: heapless::Vec<Placed, MAX_FRAME_PAGES> = self
            .assembly
            .fragments()
            .iter()
            .map(|&fragment: &Fragment| Placed::new(fragment, first))
            .collect();
        for fragment in &placed {
            self.unwrap_page(fragment)?;
        }
        let first_page = usize::from(first);
        let nr_pages = placed.last()?.page.checked_sub(first_page)?.checked_add(1)?;
        let row = self.buffers.pages(first_page, nr_pages)?;
        let range = close_up(row, first_page, &placed)?;
        self.counters.nr_frames = self.counters.nr_frames.wrapping_add(1);
        self.counters.nr_bytes = self.counters.nr_bytes.wrapping_add(range.len() as u64);
        let good = RxFlags::DATA_VALIDATED | RxFlags::CSUM_BLANK;
        let checksum_good = self.assembly.flags().intersects(good);
        Some(Frame { bytes: row.get_mut(range)?, checksum_good })
    }

    /// Copies a fragment that lies at the ring's start behind the ring's end, where its frame goes on.
    fn unwrap_page(&mut self, placed: &Placed) -> Option<()> {
        let Some(page) = placed.wrapped else { return Some(()) };
        self.buffers.copy_between(page, placed.page, placed.offset, placed.len)
    }
}

#[cfg(test)]
mod tests;
