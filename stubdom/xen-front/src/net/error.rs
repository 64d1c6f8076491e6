//! What a network back end can do wrong.

use crate::ring::RingError;
use core::fmt;

/// The back end broke the protocol: the connection to it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetError {
    /// One of the rings has a nonsense index.
    Ring(RingError),
    /// A receive response stands in another slot than its request.
    RxId {
        /// The slot it stands in.
        expected: u16,
        /// The id it carries.
        got: u16,
    },
    /// Received data runs over the end of its page.
    RxBounds {
        /// The slot.
        slot: u16,
        /// Where the data starts in the page, in bytes.
        offset: u16,
        /// Its length in bytes.
        len: u16,
    },
    /// An extra of a type that nobody asked for, or more of them than there are types.
    RxExtra {
        /// The slot.
        slot: u16,
        /// `XEN_NETIF_EXTRA_TYPE_*`.
        kind: u8,
    },
    /// A frame of more than [`MAX_FRAME_PAGES`](super::MAX_FRAME_PAGES) slots.
    RxTooLong {
        /// The first slot too many.
        slot: u16,
    },
    /// A transmit response for a buffer that is not on its way.
    TxId {
        /// The id it carries.
        got: u16,
    },
    /// The back end holds on to a buffer that it has answered.
    StillInUse {
        /// The slot of the receive ring.
        slot: u16,
    },
}

impl From<RingError> for NetError {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
            Self::RxId { expected, got } => write!(f, "rx slot {expected}: response with id {got}"),
            Self::RxBounds { slot, offset, len } => {
                write!(f, "rx slot {slot}: {len} bytes from byte {offset}, expected at most a page")
            }
            Self::RxExtra { slot, kind } => {
                write!(f, "rx slot {slot}: extra of type {kind}, which nobody asked for")
            }
            Self::RxTooLong { slot } => {
                write!(f, "rx slot {slot}: frame goes on, expected at most {} slots", super::MAX_FRAME_PAGES)
            }
            Self::TxId { got } => write!(f, "tx response with id {got}, which is not on its way"),
            Self::StillInUse { slot } => write!(f, "rx slot {slot}: answered, but the page is still in use"),
        }
    }
}

impl core::error::Error for NetError {}
