//! Framing: a two-byte little-endian length, then a postcard value.

use crate::MAX_MESSAGE_BYTES;
use serde::{Deserialize, Serialize};

const LENGTH_BYTES: usize = 2;

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The peer announced a message longer than [`MAX_MESSAGE_BYTES`].
    TooLong {
        /// The announced length in bytes.
        got: usize,
    },
    /// The bytes are not a message of this protocol version, or have bytes left over.
    Malformed {
        /// Length of the message in bytes.
        len: usize,
    },
    /// The message does not fit the buffer.
    NoRoom,
}

impl core::fmt::Display for FrameError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooLong { got } => {
                write!(f, "control message of {got} bytes, expected at most {MAX_MESSAGE_BYTES}")
            }
            Self::Malformed { len } => {
                write!(f, "control message of {len} bytes is not one of protocol version {}", crate::VERSION)
            }
            Self::NoRoom => write!(f, "control message longer than {MAX_MESSAGE_BYTES} bytes"),
        }
    }
}

impl core::error::Error for FrameError {}

/// Encodes a message with its length in front; `out` needs at most [`MAX_MESSAGE_BYTES`] + 2 bytes.
///
/// # Errors
/// [`FrameError::NoRoom`] when it does not fit.
pub fn encode<'a, T: Serialize>(message: &T, out: &'a mut [u8]) -> Result<&'a [u8], FrameError> {
    let (head, body) = out.split_at_mut_checked(LENGTH_BYTES).ok_or(FrameError::NoRoom)?;
    let len = postcard::to_slice(message, body).map_err(|_| FrameError::NoRoom)?.len();
    let wire_len = u16::try_from(len).map_err(|_| FrameError::NoRoom)?;
    if len > MAX_MESSAGE_BYTES {
        return Err(FrameError::NoRoom);
    }
    head.copy_from_slice(&wire_len.to_le_bytes());
    out.get(..LENGTH_BYTES + len).ok_or(FrameError::NoRoom)
}

/// Collects bytes from a channel until a whole message is there.
///
/// Fill [`Deframer::spare`], say how much came with [`Deframer::advance`], take messages with
/// [`Deframer::message`] and drop each with [`Deframer::consume`].
#[derive(Debug)]
pub struct Deframer {
    buffer: [u8; LENGTH_BYTES + MAX_MESSAGE_BYTES],
    /// Bytes of `buffer` in use; `filled <= buffer.len()`.
    filled: usize,
}

impl Default for Deframer {
    fn default() -> Self {
        Self::new()
    }
}

impl Deframer {
    /// Makes an empty one.
    pub const fn new() -> Self {
        Self { buffer: [0; LENGTH_BYTES + MAX_MESSAGE_BYTES], filled: 0 }
    }

    /// The room for further bytes; empty only while a whole message waits to be consumed.
    pub fn spare(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.filled..).unwrap_or_default()
    }

    /// Says that `nr_bytes` of [`Deframer::spare`] were filled; more than its length counts as all of it.
    pub fn advance(&mut self, nr_bytes: usize) {
        self.filled = self.filled.saturating_add(nr_bytes).min(self.buffer.len());
    }

    /// Forgets everything: the peer is gone.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// Reads the message in front, if it is whole.
    ///
    /// # Errors
    /// The peer's frame is too long or no message of this protocol.
    pub fn message<'a, T: Deserialize<'a>>(&'a self) -> Result<Option<T>, FrameError> {
        let Some(len) = self.front()? else { return Ok(None) };
        let Some(body) = self.buffer.get(LENGTH_BYTES..LENGTH_BYTES + len) else { return Ok(None) };
        match postcard::take_from_bytes(body) {
            Ok((message, [])) => Ok(Some(message)),
            _ => Err(FrameError::Malformed { len }),
        }
    }

    /// Drops the message in front; without a whole one it does nothing.
    pub fn consume(&mut self) {
        if let Ok(Some(len)) = self.front() {
            let end = LENGTH_BYTES + len;
            self.buffer.copy_within(end..self.filled, 0);
            self.filled -= end;
        }
    }

    /// Length of the message in front once all of it is here.
    fn front(&self) -> Result<Option<usize>, FrameError> {
        let &[low, high, ..] = self.buffer.get(..self.filled).unwrap_or_default() else { return Ok(None) };
        let len = usize::from(u16::from_le_bytes([low, high]));
        match len {
            got if got > MAX_MESSAGE_BYTES => Err(FrameError::TooLong { got }),
            len if self.filled < LENGTH_BYTES + len => Ok(None),
            len => Ok(Some(len)),
        }
    }
}
