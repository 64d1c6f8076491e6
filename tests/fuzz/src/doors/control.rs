//! Control messages, as both ends take them from the other.

use crate::choices::Choices;
use control::{
    Apply, BlobKind, Deframer, FromStub, MAX_MESSAGE_BYTES, Phase, Progress, ToStub, VERSION, encode,
};
use xen_abi::types::{Domid, Gfn};

/// What came of a look at a deframer.
enum Look {
    Message,
    NotYet,
    Refused,
}

/// Looks for a message; one that is there is the same when it is sent and taken again.
macro_rules! look_for {
    ($message:ty) => {
        |deframer: &Deframer| match deframer.message::<$message>() {
            Err(_) => Look::Refused,
            Ok(None) => Look::NotYet,
            Ok(Some(message)) => {
                let mut out = [0; MAX_MESSAGE_BYTES + 2];
                let sent = encode(&message, &mut out).expect("what was taken can be sent");
                let mut far = Deframer::new();
                far.spare()[..sent.len()].copy_from_slice(sent);
                far.advance(sent.len());
                assert_eq!(far.message::<$message>(), Ok(Some(message)));
                Look::Message
            }
        }
    };
}

/// Takes sound messages, damaged, in pieces of any length.
///
/// # Panics
/// A message is not what it was when it is sent and taken again, or the deframer stops without a message or an error.
pub fn control(input: &[u8]) {
    let mut choices = Choices::new(input);
    let mut bytes = Vec::new();
    for _ in 0..=choices.below(5) {
        message(&mut bytes, &mut choices);
    }
    for _ in 0..choices.below(4) {
        let at = choices.index(bytes.len());
        bytes[at] = choices.byte();
    }
    take(&bytes, &mut choices.clone(), look_for!(ToStub));
    take(&bytes, &mut choices, look_for!(FromStub<'_>));
}

/// Feeds a deframer until the bytes end or it refuses them.
fn take(mut bytes: &[u8], choices: &mut Choices<'_>, look: impl Fn(&Deframer) -> Look) {
    let mut deframer = Deframer::new();
    while !bytes.is_empty() {
        let spare = deframer.spare();
        let len = spare.len().min(bytes.len()).min(1 + choices.index(600));
        assert!(len > 0, "no room for more, and no message");
        spare[..len].copy_from_slice(&bytes[..len]);
        deframer.advance(len);
        bytes = &bytes[len..];
        loop {
            match look(&deframer) {
                Look::Message => deframer.consume(),
                Look::NotYet => break,
                Look::Refused => return,
            }
        }
    }
}

/// Adds a message of either end, or a frame of any bytes.
fn message(bytes: &mut Vec<u8>, choices: &mut Choices<'_>) {
    let mut out = [0; MAX_MESSAGE_BYTES + 2];
    let blob = choices.bytes(24);
    let (number, domid) = (choices.number(), Domid::new(u16::from(choices.byte())));
    let word = u32::from(choices.byte());
    let encoded = match choices.below(9) {
        0 => encode(&ToStub::Hello { version: VERSION }, &mut out),
        1 => encode(&ToStub::Pair { target: domid }, &mut out),
        2 => encode(&ToStub::Survey { end: Gfn::new(number) }, &mut out),
        3 => encode(&ToStub::Answer { result: -1 }, &mut out),
        4 => encode(&FromStub::Hello { version: VERSION, target: Some(domid) }, &mut out),
        5 => {
            let kind = BlobKind::HvmContext;
            encode(&FromStub::Blob { kind, total: word, offset: word, bytes: &blob }, &mut out)
        }
        6 => encode(&FromStub::Apply(Apply::HvmContext), &mut out),
        7 => {
            let progress = Progress { phase: Phase::Memory, nr_bytes: number, nr_pages: number, pass: word };
            encode(&FromStub::Progress(progress), &mut out)
        }
        _ => {
            bytes.extend([24, 0]);
            return bytes.extend(blob);
        }
    };
    bytes.extend(encoded.expect("a short message"));
}
