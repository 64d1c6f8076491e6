//! From receive responses to one contiguous frame.
//!
//! **Takes** the responses of a receive ring, slot by slot. **Gives** the fragments of each whole frame, and brings
//! them together in place. **Never** copies more than it must: a frame that came in full pages is moved by one page at
//! most, whatever its length.
//!
//! The protocol (`xen/include/public/io/netif.h`, "Guest receive"): the first slot holds data, then come the extras, if
//! announced, then the other data slots. A slot's response stands where its request stood.
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

use super::{MAX_FRAME_PAGES, NR_RX_SLOTS, NetError};
use xen_abi::netif::{
    ExtraInfo, RxFlags, RxResponse, XEN_NETIF_EXTRA_FLAG_MORE, XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_EXTRA_TYPE_HASH,
};
use xen_abi::types::PAGE_SIZE;

/// `XEN_NETIF_EXTRA_TYPE_XDP`, newer than Xen 4.17's header: how much room the back end left in front of the data.
const XEN_NETIF_EXTRA_TYPE_XDP: u8 = 5;

/// The most extras of one frame: one of each type that a receiver may see.
pub(super) const MAX_EXTRAS: usize = 3;

/// The data of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    /// Which buffer, below [`NR_RX_SLOTS`].
    slot: u16,
    /// Where the data starts in the buffer, in bytes.
    offset: u16,
    /// In bytes; `offset + len` is at most a page.
    len: u16,
}

impl Fragment {
    /// Which buffer holds it.
    pub(super) const fn slot(&self) -> u16 {
        self.slot
    }
}

/// What the slots so far have become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The frame goes on in the next slot.
    More,
    /// The frame is whole: see [`Assembly::fragments`].
    Whole,
    /// The frame has ended, and the back end says that a part of it failed.
    Dropped,
}

/// What the next slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    First,
    Extra { more_data: bool },
    Data,
}

/// A frame that is coming in.
#[derive(Debug)]
pub(super) struct Assembly {
    fragments: heapless::Vec<Fragment, MAX_FRAME_PAGES>,
    nr_extras: usize,
    flags: RxFlags,
    expect: Expect,
    failed: bool,
}

impl Assembly {
    pub(super) const fn new() -> Self {
        Self {
            fragments: heapless::Vec::new(),
            nr_extras: 0,
            flags: RxFlags::empty(),
            expect: Expect::First,
            failed: false,
        }
    }

    /// The data of the frame, in order.
    pub(super) fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }

    /// The flags of the frame's first slot.
    pub(super) const fn flags(&self) -> RxFlags {
        self.flags
    }

    /// Takes the response in `slot`.
    ///
    /// # Errors
    /// The back end broke the protocol.
    pub(super) fn step(&mut self, slot: u16, response: RxResponse) -> Result<Step, NetError> {
        match self.expect {
            Expect::First => {
                *self = Self::new();
                self.flags = RxFlags::from_bits_retain(response.flags);
                self.data(slot, response)
            }
            Expect::Extra { more_data } => self.extra(slot, response.into(), more_data),
            Expect::Data => self.data(slot, response),
        }
    }

    fn data(&mut self, slot: u16, response: RxResponse) -> Result<Step, NetError> {
        if response.id != slot {
            return Err(NetError::RxId { expected: slot, got: response.id });
        }
        match u16::try_from(response.status) {
            Ok(len) => self.fragment(Fragment { slot, offset: response.offset, len })?,
            Err(_) => self.failed = true,
        }
        let flags = RxFlags::from_bits_retain(response.flags);
        let more_data = flags.contains(RxFlags::MORE_DATA);
        // Only the first slot announces extras; on others the flag means nothing.
        let extra = self.expect == Expect::First && flags.contains(RxFlags::EXTRA_INFO);
        Ok(if extra { self.next(Expect::Extra { more_data }) } else { self.rest(more_data) })
    }

    fn fragment(&mut self, fragment: Fragment) -> Result<(), NetError> {
        let Fragment { slot, offset, len } = fragment;
        if usize::from(offset).saturating_add(usize::from(len)) > PAGE_SIZE {
            return Err(NetError::RxBounds { slot, offset, len });
        }
        self.fragments.push(fragment).map_err(|_| NetError::RxTooLong { slot })
    }

    fn extra(&mut self, slot: u16, extra: ExtraInfo, more_data: bool) -> Result<Step, NetError> {
        self.nr_extras = self.nr_extras.saturating_add(1);
        let known = [XEN_NETIF_EXTRA_TYPE_GSO, XEN_NETIF_EXTRA_TYPE_HASH, XEN_NETIF_EXTRA_TYPE_XDP];
        if self.nr_extras > MAX_EXTRAS || !known.contains(&extra.kind) {
            return Err(NetError::RxExtra { slot, kind: extra.kind });
        }
        // None changes what the frame says: the segment size of an aggregate only matters to who sends it on.
        Ok(match extra.flags & XEN_NETIF_EXTRA_FLAG_MORE {
            0 => self.rest(more_data),
            _ => self.next(Expect::Extra { more_data }),
        })
    }

    fn rest(&mut self, more_data: bool) -> Step {
        match (more_data, self.failed) {
            (true, _) => self.next(Expect::Data),
            (false, failed) => {
                self.expect = Expect::First;
                if failed { Step::Dropped } else { Step::Whole }
            }
        }
    }

    fn next(&mut self, expect: Expect) -> Step {
        self.expect = expect;
        Step::More
    }
}

/// Where a frame's fragments lie in a row of buffers that starts with the frame's first one.
///
/// Buffers past the end of the ring count on: the row continues in the pool's overflow pages, into which
/// [`Placed::wrapped`] says what to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// The page of the pool, which may be an overflow page.
    pub(super) page: usize,
    /// The page to copy from if `page` is an overflow page.
    pub(super) wrapped: Option<usize>,
    /// Where the data starts in the page, in bytes.
    pub(super) offset: usize,
    /// In bytes.
    pub(super) len: usize,
}

impl Placed {
    /// Places a fragment of the frame that starts in buffer `first`.
    pub(super) fn new(fragment: Fragment, first: u16) -> Self {
        let slot = usize::from(fragment.slot);
        let wraps = fragment.slot < first;
        Self {
            page: if wraps { slot.saturating_add(NR_RX_SLOTS) } else { slot },
            wrapped: wraps.then_some(slot),
            offset: usize::from(fragment.offset),
            len: usize::from(fragment.len),
        }
    }
}

/// Moves the fragments together, towards the last one, and returns where the frame starts and ends in `row`.
///
/// `row` starts with page `first_page`; `placed` is in rising order of pages. The usual aggregate is a full page, a
/// page spent on the extra, then pages without a gap: only the first page moves. No fragment is overwritten before it
/// has moved: every target starts at or above the page of the fragment that moves there.
pub(super) fn close_up(
    row: &mut [u8],
    first_page: usize,
    placed: &[Placed],
) -> Option<core::ops::Range<usize>> {
    let starts_at =
        |p: &Placed| p.page.checked_sub(first_page)?.checked_mul(PAGE_SIZE)?.checked_add(p.offset);
    let (last, before) = placed.split_last()?;
    let mut start = starts_at(last)?;
    let end = start.checked_add(last.len)?;
    for fragment in before.iter().rev() {
        let from = starts_at(fragment)?;
        let to = start.checked_sub(fragment.len)?;
        if from != to {
            row.get(from..from.checked_add(fragment.len)?)?;
            row.get(to..start)?;
            row.copy_within(from..from.checked_add(fragment.len)?, to);
        }
        start = to;
    }
    (end <= row.len()).then_some(start..end)
}

#[cfg(test)]
mod tests;
