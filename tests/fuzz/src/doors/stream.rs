//! The parser, against itself under other cuts and against the relay's framing.

use crate::choices::Choices;
use crate::streams;
use migration::stream::{Error, Item, Parser};
use stubctl::doors;

/// The same bytes give the same items and the same end however they are cut; where they are a whole stream, the relay stops
/// at the same byte.
///
/// # Panics
/// They do not.
pub fn stream(input: &[u8]) {
    let mut choices = Choices::new(input);
    let bytes = streams::draw(&mut choices);
    let cut = 1 + choices.index(5000);
    let whole = parse([&bytes[..]].into_iter());
    assert_eq!(parse(bytes.chunks(cut)), whole, "cut at every {cut}");
    if let Parsed { end: Ok((offset, true)), .. } = whole {
        assert_eq!(doors::end_of_stream(&bytes, cut), Some(offset), "the relay stops elsewhere");
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    nr_items: usize,
    /// A sum over what they say.
    sum: u64,
    /// How many bytes were taken, and whether the stream is complete.
    end: Result<(u64, bool), Error>,
}

fn parse<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Parsed {
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
                Err(error) => return Parsed { nr_items, sum, end: Err(error) },
            }
        }
    }
    Parsed { nr_items, sum, end: Ok((parser.place().offset, parser.has_ended())) }
}

/// Whether an item comes whole whatever the cut, and a sum over what it says.
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
