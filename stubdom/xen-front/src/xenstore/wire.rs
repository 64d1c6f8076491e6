//! Xenstore's messages: a header of four words, then strings.
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

use super::Error;
use alloc::string::String;
use alloc::vec::Vec;
use xen_abi::errno::Errno;
use xen_abi::xs_wire::{Kind, XENSTORE_PAYLOAD_MAX};

/// Size of `struct xsd_sockmsg`, in bytes.
const HEADER_BYTES: usize = 16;

/// `struct xsd_sockmsg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u32,
    pub(super) id: u32,
    transaction: u32,
    len: u32,
}

impl Header {
    /// Makes the header of a request with `len` bytes behind it; `None` if that is too much.
    pub(super) fn new(kind: Kind, id: u32, transaction: u32, len: usize) -> Option<Self> {
        let len = u32::try_from(len).ok().filter(|_| len <= XENSTORE_PAYLOAD_MAX)?;
        Some(Self { kind: kind as u32, id, transaction, len })
    }

    pub(super) const fn is(&self, kind: Kind) -> bool {
        self.kind == kind as u32
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let words = [self.kind, self.id, self.transaction, self.len];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        Some(Self { kind: words.next()?, id: words.next()?, transaction: words.next()?, len: words.next()? })
    }

    /// Says what a reply to a request of `kind` means.
    pub(super) fn result(&self, kind: Kind, body: Vec<u8>) -> Result<Vec<u8>, Error> {
        if self.is(Kind::Error) {
            return Err(errno(&body).map_or(Error::Broken, Error::Refused));
        }
        if self.is(kind) { Ok(body) } else { Err(Error::Broken) }
    }
}

/// Puts messages together from the pieces that fit the ring.
#[derive(Debug)]
pub(super) struct Collector {
    buffer: Vec<u8>,
    filled: usize,
}

impl Collector {
    pub(super) fn new() -> Self {
        Self { buffer: alloc::vec![0; HEADER_BYTES], filled: 0 }
    }

    /// The part of the current message that has not come yet; never empty.
    pub(super) fn missing(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.filled..).unwrap_or_default()
    }

    /// Says that the next `nr_bytes` have come; returns the message if it is whole now.
    ///
    /// # Errors
    /// The announced length, if it is more than a message may have.
    pub(super) fn advance(&mut self, nr_bytes: usize) -> Result<Option<(Header, Vec<u8>)>, u32> {
        self.filled = self.filled.saturating_add(nr_bytes).min(self.buffer.len());
        let Some(header) = Header::from_bytes(&self.buffer) else { return Ok(None) };
        if self.filled < HEADER_BYTES {
            return Ok(None);
        }
        let len =
            usize::try_from(header.len).ok().filter(|&len| len <= XENSTORE_PAYLOAD_MAX).ok_or(header.len)?;
        self.buffer.resize(HEADER_BYTES.saturating_add(len), 0);
        if self.filled < self.buffer.len() {
            return Ok(None);
        }
        let body = self.buffer.split_off(HEADER_BYTES);
        self.filled = 0;
        Ok(Some((header, body)))
    }
}

/// Reads a decimal number, with or without its terminator.
pub(super) fn number(body: &[u8]) -> Option<u32> {
    text(body)?.parse().ok()
}

/// Splits the body of a watch event into path and token.
pub(super) fn event(body: &[u8]) -> Option<(String, String)> {
    let (path, token) = text(body)?.split_once('\0')?;
    Some((path.into(), token.into()))
}

fn text(body: &[u8]) -> Option<&str> {
    core::str::from_utf8(body.strip_suffix(&[0]).unwrap_or(body)).ok()
}

/// Reads the name of an error as the daemon spells it.
fn errno(body: &[u8]) -> Option<Errno> {
    Errno::from_name(text(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: Kind, id: u32, body: &[u8]) -> Vec<u8> {
        let header = Header::new(kind, id, 0, body.len()).expect("short");
        [&header.to_bytes()[..], body].concat()
    }

    #[test]
    fn a_header_is_four_words() {
        let header = Header::new(Kind::Write, 7, 3, 5).expect("short");
        assert_eq!(header.to_bytes(), [11, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(Header::from_bytes(&header.to_bytes()), Some(header));
        assert_eq!(Header::new(Kind::Write, 7, 3, XENSTORE_PAYLOAD_MAX + 1), None);
    }

    #[test]
    fn messages_come_together_however_they_are_cut() {
        let bytes = [message(Kind::Read, 1, b"value"), message(Kind::WatchEvent, 0, b"a/b\0tok\0")].concat();
        for piece in 1..bytes.len() {
            let mut collector = Collector::new();
            let mut messages = Vec::new();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let room = collector.missing();
                let len = room.len().min(piece).min(rest.len());
                room[..len].copy_from_slice(&rest[..len]);
                rest = &rest[len..];
                messages.extend(collector.advance(len).expect("short"));
            }
            let bodies: Vec<_> = messages.into_iter().map(|(header, body)| (header.id, body)).collect();
            assert_eq!(bodies, [(1, b"value".to_vec()), (0, b"a/b\0tok\0".to_vec())], "pieces of {piece}");
        }
    }

    #[test]
    fn a_length_past_the_maximum_is_an_error_and_allocates_nothing() {
        let mut collector = Collector::new();
        let mut bytes = message(Kind::Read, 1, b"");
        bytes[12..].copy_from_slice(&u32::MAX.to_le_bytes());
        collector.missing().copy_from_slice(&bytes);
        assert_eq!(collector.advance(16), Err(u32::MAX));
    }

    #[test]
    fn replies_are_values_or_errors() {
        let reply = |kind: Kind| Header::new(kind, 1, 0, 0).expect("short");
        assert_eq!(reply(Kind::Read).result(Kind::Read, b"x".to_vec()), Ok(b"x".to_vec()));
        let refused = reply(Kind::Error).result(Kind::Read, b"ENOENT\0".to_vec());
        assert_eq!(refused, Err(Error::Refused(Errno::ENOENT)));
        assert_eq!(reply(Kind::Error).result(Kind::Read, b"E?\0".to_vec()), Err(Error::Broken));
        assert_eq!(reply(Kind::Write).result(Kind::Read, Vec::new()), Err(Error::Broken));
    }

    #[test]
    fn an_event_is_a_path_and_a_token() {
        assert_eq!(event(b"data/x\0t\0"), Some(("data/x".into(), "t".into())));
        assert_eq!(event(b"data/x"), None);
        assert_eq!(number(b"42\0"), Some(42));
    }
}
