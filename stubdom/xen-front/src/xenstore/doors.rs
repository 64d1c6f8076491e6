//! Xenstore's messages from a daemon that sends anything.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a panic here is what fuzzing looks for"
)]

use super::wire::{self, Collector, Header};
use xen_abi::xs_wire::{Kind, XENSTORE_PAYLOAD_MAX};

/// Puts together what comes, cut as the first byte says; a second round sees a header that is often sound.
pub(crate) fn drive(input: &[u8]) {
    collect(input);
    let Some((first, body)) = input.split_first() else { return };
    let kind = if first.is_multiple_of(2) { Kind::WatchEvent } else { Kind::Error };
    let len = body.len().wrapping_add(usize::from(first % 4)).wrapping_sub(1);
    let Some(header) = Header::new(kind, 0, 0, len) else { return };
    collect(&[&[*first], &header.to_bytes()[..], body, &header.to_bytes(), body].concat());
}

fn collect(input: &[u8]) {
    let Some((cut, mut bytes)) = input.split_first() else { return };
    let mut collector = Collector::new();
    while !bytes.is_empty() {
        let missing = collector.missing();
        let len = missing.len().min(bytes.len()).min(usize::from(*cut).max(1));
        assert!(len > 0, "nothing is missing, and no message");
        missing[..len].copy_from_slice(&bytes[..len]);
        bytes = &bytes[len..];
        match collector.advance(len) {
            Ok(None) => {}
            Ok(Some((header, body))) => {
                assert!(body.len() <= XENSTORE_PAYLOAD_MAX, "a message longer than any may be");
                let _ = (wire::number(&body), wire::event(&body));
                let _ = header.result(Kind::Read, body);
            }
            Err(len) => {
                assert!(len as usize > XENSTORE_PAYLOAD_MAX, "{len} bytes are not too many");
                return;
            }
        }
    }
}
