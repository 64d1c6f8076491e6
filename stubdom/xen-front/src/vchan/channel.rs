//! The shared part of a vchan: two byte rings and the page that describes them.
//!
//! **Takes** the pages, and bytes to write. **Gives** bytes read, and whether the client must be notified. **Never**
//! believes an index of the client: this end keeps its own indices in private memory, and a distance longer than the
//! ring is [`VchanError`], after which the connection is over.
//!
//! "Left" is the client's writing direction, "right" the server's. Each end asks the other for events by setting bits
//! of the other's notify byte, and the other clears them when it sends the event.
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

use crate::ring::Notify;
use crate::shared_mem::SharedMem;
use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};
use xen_abi::byte_ring;
use xen_abi::types::Gref;
use xen_abi::vchan::{RingShared, VCHAN_NOTIFY_READ, VCHAN_NOTIFY_WRITE, VchanInterface};

const LEFT: usize = offset_of!(VchanInterface, left);
const RIGHT: usize = offset_of!(VchanInterface, right);
const CONS: usize = offset_of!(RingShared, cons);
const PROD: usize = offset_of!(RingShared, prod);
const LEFT_ORDER: usize = offset_of!(VchanInterface, left_order);
const RIGHT_ORDER: usize = offset_of!(VchanInterface, right_order);
const CLI_LIVE: usize = offset_of!(VchanInterface, cli_live);
const SRV_LIVE: usize = offset_of!(VchanInterface, srv_live);
const CLI_NOTIFY: usize = offset_of!(VchanInterface, cli_notify);
const SRV_NOTIFY: usize = offset_of!(VchanInterface, srv_notify);
const GRANTS: usize = offset_of!(VchanInterface, grants);

/// The client's index is further from ours than the ring is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VchanError {
    /// The client's index.
    pub theirs: u32,
    /// Ours.
    pub ours: u32,
    /// The ring's size in bytes.
    pub ring_bytes: u32,
}

impl fmt::Display for VchanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { theirs, ours, ring_bytes } = self;
        write!(
            f,
            "vchan: index {theirs:#x} of the client, expected at most {ring_bytes:#x} bytes from {ours:#x}"
        )
    }
}

impl core::error::Error for VchanError {}

/// Where the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// None has connected yet.
    Awaited,
    /// One is connected.
    Connected,
    /// It has closed its end, or its process has died.
    Gone,
}

/// The rings and their page, seen by the server.
#[derive(Debug)]
pub(super) struct Channel {
    page: SharedMem,
    /// The ring that we read.
    left: ByteRing,
    /// The ring that we write.
    right: ByteRing,
    /// Bytes read since the client was last told of any, if it wants to be.
    nr_untold: usize,
}

/// A client that waits for room is told when so much of the ring has become free (half), or all there was: one event
/// for many small reads.
const UNTOLD_PART: usize = 2;

impl Channel {
    /// Takes the interface page and the two rings, each of a power of two of pages.
    pub(super) fn new(page: SharedMem, left: SharedMem, right: SharedMem) -> Self {
        let (left, right) = (ByteRing::new(left), ByteRing::new(right));
        Self { page, left, right, nr_untold: 0 }
    }

    /// Makes an empty channel that awaits a client. `grants` are the left ring's pages, then the right ring's.
    pub(super) fn open(&mut self, grants: impl Iterator<Item = Gref>) {
        self.page.zero();
        self.left.index = 0;
        self.right.index = 0;
        self.nr_untold = 0;
        self.page.write(LEFT_ORDER, self.left.order());
        self.page.write(RIGHT_ORDER, self.right.order());
        for (offset, gref) in (GRANTS..self.page.len()).step_by(size_of::<u32>()).zip(grants) {
            self.page.write(offset, gref.raw());
        }
        self.page.write(CLI_LIVE, 2_u8);
        self.page.write(CLI_NOTIFY, VCHAN_NOTIFY_WRITE);
        self.page.write(SRV_LIVE, 1_u8);
    }

    /// Tells the client that this end is closed.
    pub(super) fn close(&mut self) {
        self.page.write(SRV_LIVE, 0_u8);
    }

    /// Looks where the client is.
    pub(super) fn client(&self) -> Client {
        match self.page.read::<u8>(CLI_LIVE) {
            0 => Client::Gone,
            2 => Client::Awaited,
            _ => Client::Connected,
        }
    }

    /// Tells whether bytes of the client wait to be read; a nonsense index is for [`Channel::read`] to report.
    pub(super) fn is_readable(&self) -> bool {
        self.left.filled(self.page.read(LEFT + PROD)).is_ok_and(|ready| ready > 0)
    }

    /// Reads what is there, at most `out`, and asks for an event when more comes if that was not enough.
    ///
    /// # Errors
    /// The client's index is nonsense; nothing was read.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<(usize, Notify), VchanError> {
        let (most, mut rest) = (out.len(), out);
        self.take(most, |ring, offset, len| {
            let (now, later) = core::mem::take(&mut rest).split_at_mut(len);
            ring.copy_out(offset, now);
            rest = later;
        })
    }

    /// As [`Channel::read`], but shows `take` where in the ring the bytes are, one run after the other: so many bytes
    /// from that offset on.
    ///
    /// # Errors
    /// The client's index is nonsense; nothing was read.
    pub(super) fn take(
        &mut self,
        most: usize,
        take: impl FnMut(&SharedMem, usize, usize),
    ) -> Result<(usize, Notify), VchanError> {
        let mut ready = self.left.filled(self.page.read(LEFT + PROD))?;
        if ready < most {
            self.request(VCHAN_NOTIFY_WRITE);
            ready = self.left.filled(self.page.read(LEFT + PROD))?;
        }
        let len = ready.min(most);
        self.left.take(len, take);
        fence(Ordering::SeqCst); // the bytes are out before the client may overwrite them
        self.page.write(LEFT + CONS, self.left.index);
        Ok((len, self.tell_read(len, len == ready)))
    }

    /// Writes as much as there is room for, and asks for an event when there is more if that was not all.
    ///
    /// # Errors
    /// The client's index is nonsense; nothing was written.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(usize, Notify), VchanError> {
        let mut rest = bytes;
        self.give(bytes.len(), |ring, offset, len| {
            let (now, later) = rest.split_at(len);
            ring.copy_in(offset, now);
            rest = later;
        })
    }

    /// As [`Channel::write`] of `most` bytes, but has `give` write where in the ring they go, one run after the other: so
    /// many bytes from that offset on.
    ///
    /// # Errors
    /// The client's index is nonsense; nothing was written.
    pub(super) fn give(
        &mut self,
        most: usize,
        give: impl FnMut(&mut SharedMem, usize, usize),
    ) -> Result<(usize, Notify), VchanError> {
        let len = self.room(most)?.min(most);
        self.right.give(len, give);
        fence(Ordering::SeqCst); // the bytes are there before the index that covers them
        self.page.write(RIGHT + PROD, self.right.index);
        Ok((len, self.answer(len, VCHAN_NOTIFY_WRITE)))
    }

    /// Returns how many bytes may be written, and asks for an event when there is more room if that is less than `wanted`.
    ///
    /// # Errors
    /// The client's index is nonsense.
    pub(super) fn room(&mut self, wanted: usize) -> Result<usize, VchanError> {
        let room = self.right.room(self.page.read(RIGHT + CONS))?;
        if room >= wanted {
            return Ok(room);
        }
        self.request(VCHAN_NOTIFY_READ);
        self.right.room(self.page.read(RIGHT + CONS))
    }

    /// Tells the client of what has been read, unless there is more to read and little has been so far.
    fn tell_read(&mut self, len: usize, is_all: bool) -> Notify {
        self.nr_untold = self.nr_untold.saturating_add(len);
        if !is_all && self.nr_untold < self.left.mem.len() / UNTOLD_PART {
            return Notify::NotWanted;
        }
        let nr_untold = core::mem::take(&mut self.nr_untold);
        self.answer(nr_untold, VCHAN_NOTIFY_READ)
    }

    /// Asks the client for an event when it has written or read; a full barrier, so the next look at its index is late
    /// enough.
    fn request(&mut self, bit: u8) {
        self.page.fetch_or(CLI_NOTIFY, bit);
    }

    /// Tells whether the client asked for an event about what was just done, and takes its wish off the page.
    fn answer(&mut self, len: usize, bit: u8) -> Notify {
        if len > 0 && self.page.fetch_and(SRV_NOTIFY, !bit) & bit != 0 {
            Notify::Wanted
        } else {
            Notify::NotWanted
        }
    }
}

/// One ring and this end's index in it.
#[derive(Debug)]
struct ByteRing {
    mem: SharedMem,
    /// Runs freely through all of u32; the position is its remainder.
    index: u32,
}

impl ByteRing {
    fn new(mem: SharedMem) -> Self {
        assert!(mem.len().is_power_of_two() && mem.len() >= xen_abi::types::PAGE_SIZE, "a ring is 2^n pages");
        Self { mem, index: 0 }
    }

    fn order(&self) -> u16 {
        u16::try_from(self.mem.len().trailing_zeros()).unwrap_or(u16::MAX)
    }

    /// How many bytes the reader may read, given the writer's index.
    fn filled(&self, prod: u32) -> Result<usize, VchanError> {
        fence(Ordering::Acquire); // what the index covers is looked at after the index
        byte_ring::nr_filled(self.index, prod, self.mem.len()).ok_or_else(|| self.error(prod))
    }

    /// How many bytes the writer may write, given the reader's index.
    fn room(&self, cons: u32) -> Result<usize, VchanError> {
        fence(Ordering::Acquire); // what the index frees is written after the index
        let filled = byte_ring::nr_filled(cons, self.index, self.mem.len());
        filled.and_then(|filled| self.mem.len().checked_sub(filled)).ok_or_else(|| self.error(cons))
    }

    fn error(&self, theirs: u32) -> VchanError {
        let ring_bytes = u32::try_from(self.mem.len()).unwrap_or(u32::MAX);
        VchanError { theirs, ours: self.index, ring_bytes }
    }

    fn take(&mut self, len: usize, mut take: impl FnMut(&SharedMem, usize, usize)) {
        let head = self.until_end().min(len);
        for (offset, len) in [(self.position(), head), (0, len.saturating_sub(head))] {
            if len > 0 {
                take(&self.mem, offset, len);
            }
        }
        self.advance(len);
    }

    fn give(&mut self, len: usize, mut give: impl FnMut(&mut SharedMem, usize, usize)) {
        let (position, head) = (self.position(), self.until_end().min(len));
        for (offset, len) in [(position, head), (0, len.saturating_sub(head))] {
            if len > 0 {
                give(&mut self.mem, offset, len);
            }
        }
        self.advance(len);
    }

    fn position(&self) -> usize {
        self.index as usize & self.mem.len().wrapping_sub(1)
    }

    fn until_end(&self) -> usize {
        self.mem.len().wrapping_sub(self.position())
    }

    fn advance(&mut self, nr_bytes: usize) {
        self.index = byte_ring::advance(self.index, nr_bytes);
    }
}

#[cfg(test)]
mod tests;
