//! Streams: sound ones of any shape, then damaged, so that the damage is met in a deep state.

use crate::choices::Choices;
use migration::sample::{Entry, Writer};
use migration::stream::RecordType;
use xen_abi::types::Gfn;

/// Most pages with contents in one record, so that an execution stays short.
const MAX_DATA: u64 = 12;

/// Draws a stream.
pub(crate) fn draw(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut bytes = sound(choices).bytes;
    if choices.one_in(2) {
        (0..=choices.below(4)).for_each(|_| damage(&mut bytes, choices));
    }
    bytes
}

/// A stream that a sender may send, but for what records may follow each other, which is any.
fn sound(choices: &mut Choices<'_>) -> Writer {
    let mut writer = match choices.below(8) {
        0 => Writer::new(2),
        1 => Writer::new(3),
        _ => Writer::begin(),
    };
    for _ in 0..choices.below(10) {
        record(&mut writer, choices);
    }
    if !choices.one_in(8) {
        let params: Vec<(u64, u64)> = (0..choices.below(4)).map(|_| param(choices)).collect();
        writer.finish(&params);
    }
    writer
}

fn param(choices: &mut Choices<'_>) -> (u64, u64) {
    let index = choices.pick(&[1, 17, 2, 18, 5, 37]).unwrap_or(1);
    (index, choices.below(3000))
}

fn record(writer: &mut Writer, choices: &mut Choices<'_>) {
    match choices.below(16) {
        0 => {
            let len = choices.index(40);
            writer.record(RecordType::new(0x8000_0042), &choices.bytes(len));
        }
        1 => writer.record(RecordType::VERIFY, &[]),
        2 => {
            let params = [param(choices), param(choices)];
            writer.params(&params);
        }
        3 => writer.record(RecordType::HVM_CONTEXT, &[0x33; 60]),
        4 => writer.record(RecordType::X86_TSC_INFO, &[0; 24]),
        5 => writer.record(RecordType::X86_CPUID_POLICY, &[0x11; 48]),
        6 => {
            let (kind, len) = (choices.below(0x20), choices.index(64));
            let kind = u32::try_from(kind).unwrap_or(0);
            writer.record(RecordType::new(kind), &choices.bytes(len));
        }
        _ => writer.pages(&entries(choices)),
    }
}

/// A page list: one or two runs of one kind, or a mixture.
fn entries(choices: &mut Choices<'_>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for _ in 0..=choices.below(2) {
        let kind = choices.below(6);
        let nr = if kind < 2 { choices.below(MAX_DATA) } else { choices.below(600) };
        let (first, step) = (first(choices), choices.pick(&[1, 1, 1, 1, 2, 511, 512]).unwrap_or(1));
        let gfns = (0..nr).map(|nr| Gfn::new(first.wrapping_add(nr * step)));
        entries.extend(gfns.map(|gfn| entry(kind, gfn, choices)));
    }
    entries
}

/// At the start of a region, near its end, anywhere, or far beyond the guest.
fn first(choices: &mut Choices<'_>) -> u64 {
    match choices.below(16) {
        0 => choices.below(1 << 22),
        1 => choices.number() >> 12,
        2..=5 => choices.below(6) * 512 + 500,
        6..=9 => choices.below(3000),
        _ => choices.below(6) * 512,
    }
}

fn entry(kind: u64, gfn: Gfn, choices: &mut Choices<'_>) -> Entry {
    match kind {
        0 => Entry::Data(gfn, choices.below(3)),
        1 => match choices.below(4) {
            0 => Entry::Hole(gfn),
            1 => Entry::Broken(gfn),
            2 => Entry::Alloc(gfn),
            _ => Entry::Data(gfn, 0),
        },
        2 => Entry::Hole(gfn),
        3 if choices.one_in(16) => Entry::Hole(gfn),
        _ => Entry::Alloc(gfn),
    }
}

fn damage(bytes: &mut Vec<u8>, choices: &mut Choices<'_>) {
    let at = choices.index(bytes.len().max(1));
    match choices.below(8) {
        0 => bytes.truncate(at),
        1 => {
            let len = choices.index(64);
            let piece = choices.bytes(len);
            bytes.splice(at..at, piece);
        }
        2 => {
            let end = bytes.len().min(at + choices.index(9000));
            bytes.drain(at..end);
        }
        3 => {
            let end = bytes.len().min(at + choices.index(9000));
            bytes.extend_from_within(at..end);
        }
        4 => overwrite(bytes, at & !7, &choices.number().to_le_bytes()),
        // A length, a count or a page: small numbers where numbers stand.
        5 => overwrite(bytes, at & !3, &u32::from(choices.byte()).to_le_bytes()),
        6 => overwrite(bytes, choices.index(48).min(at), &[choices.byte()]),
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << choices.below(8);
            }
        }
    }
}

fn overwrite(bytes: &mut [u8], at: usize, by: &[u8]) {
    let slots = bytes.get_mut(at..).unwrap_or_default();
    slots.iter_mut().zip(by).for_each(|(slot, byte)| *slot = *byte);
}
