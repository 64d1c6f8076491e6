//! Any bytes, cut anywhere, give the same items and the same error as the bytes in one piece, and never panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migration::stream::{Error, Item, Parser};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let whole = parse(bytes.chunks(bytes.len().max(1)));
    assert_eq!(parse(bytes.chunks(usize::from(cut).max(1))), whole);
});

/// Returns how many items came, a sum over what they say, and how it ended.
fn parse<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (usize, u64, Result<u64, Error>) {
    let mut parser = Parser::new();
    let (mut nr_items, mut sum) = (0, 0_u64);
    for piece in pieces {
        let mut rest = piece;
        loop {
            match parser.next(&mut rest) {
                Ok(Some(item)) => {
                    let (is_whole, value) = weigh(item);
                    nr_items += usize::from(is_whole);
                    sum = sum.wrapping_add(value);
                }
                Ok(None) => break,
                Err(error) => return (nr_items, sum, Err(error)),
            }
        }
    }
    (nr_items, sum, Ok(parser.place().offset))
}

/// Tells whether an item comes whole whatever the cut, and adds up what it says.
fn weigh(item: Item<'_>) -> (bool, u64) {
    let add = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum();
    match item {
        Item::Headers(headers) => (true, headers.xen.0.into()),
        Item::Record(record) => (true, record.raw().into()),
        Item::Run(run) => (true, run.first.raw().wrapping_mul(3).wrapping_add(run.nr_frames)),
        Item::Pages(pages) => {
            (true, pages.iter().fold(1, |sum: u64, gfn| sum.wrapping_mul(5).wrapping_add(gfn.raw())))
        }
        Item::Contents(bytes) => (false, add(bytes)),
        Item::Piece(piece) => (false, add(piece.bytes)),
        Item::TscInfo(info) => (true, info.nsec),
        Item::Param(param) => (true, param.value ^ u64::from(param.index)),
    }
}
