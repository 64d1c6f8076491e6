use super::*;
use crate::sample::{Entry, HEADERS_BYTES, Writer};
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

/// An item that owns its bytes; neighbouring pieces are joined.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Headers(Headers),
    Record(RecordType),
    Run(Run),
    Pages(Vec<Gfn>),
    Contents(Vec<u8>),
    Blob(BlobKind, u32, Vec<u8>),
    TscInfo(TscInfo),
    Param(Param),
}

fn own(items: &mut Vec<Owned>, item: Item<'_>) {
    match (item, items.last_mut()) {
        (Item::Contents(bytes), Some(Owned::Contents(before))) => before.extend(bytes),
        (Item::Piece(piece), Some(Owned::Blob(_, _, before))) if piece.offset > 0 => {
            assert_eq!(piece.offset as usize, before.len());
            before.extend(piece.bytes);
        }
        _ => items.push(match item {
            Item::Headers(headers) => Owned::Headers(headers),
            Item::Record(record) => Owned::Record(record),
            Item::Run(run) => Owned::Run(run),
            Item::Pages(pages) => Owned::Pages(pages.to_vec()),
            Item::Contents(bytes) => Owned::Contents(bytes.to_vec()),
            Item::Piece(piece) => Owned::Blob(piece.kind, piece.total, piece.bytes.to_vec()),
            Item::TscInfo(info) => Owned::TscInfo(info),
            Item::Param(param) => Owned::Param(param),
        }),
    }
}

/// Parses a stream that arrives in these pieces.
fn parse<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Owned>, Result<u64, Error>) {
    let mut parser = Parser::new();
    let mut items = Vec::new();
    for piece in pieces {
        let mut rest = piece;
        loop {
            match parser.next(&mut rest) {
                Ok(Some(item)) => own(&mut items, item),
                Ok(None) => break,
                Err(error) => return (items, Err(error)),
            }
        }
        assert!(rest.is_empty() || parser.has_ended());
    }
    (items, Ok(parser.place().offset))
}

fn parse_whole(bytes: &[u8]) -> (Vec<Owned>, Result<u64, Error>) {
    parse(core::iter::once(bytes))
}

fn fault_of(bytes: &[u8]) -> Error {
    parse_whole(bytes).1.expect_err("the stream is sound")
}

fn gfn(raw: u64) -> Gfn {
    Gfn::new(raw)
}

/// A stream with every record that an HVM guest's can have.
fn full_stream() -> Vec<u8> {
    let mut writer = Writer::begin();
    writer.pages(&[
        Entry::Data(gfn(1), 0),
        Entry::Hole(gfn(2)),
        Entry::Hole(gfn(3)),
        Entry::Data(gfn(5), 0),
        Entry::Broken(gfn(6)),
        Entry::Alloc(gfn(7)),
    ]);
    writer.record(RecordType::new(0x8000_1234), b"skipped");
    writer.record(RecordType::VERIFY, &[]);
    writer.pages(&[Entry::Data(gfn(1), 0)]);
    writer.finish(&[(1, 0xfeffc), (17, 0xfefff)]);
    writer.bytes
}

#[test]
fn every_record_becomes_its_items() {
    let bytes = full_stream();
    let (items, end) = parse_whole(&bytes);
    assert_eq!(end, Ok(bytes.len() as u64));
    let run = |kind, first, nr_frames| Owned::Run(Run { kind, first: gfn(first), nr_frames });
    let mut expected = vec![
        Owned::Headers(Headers { version: Version::V3, xen: (4, 17) }),
        Owned::Record(RecordType::X86_CPUID_POLICY),
        Owned::Blob(BlobKind::CpuidPolicy, 48, vec![0x11; 48]),
        Owned::Record(RecordType::X86_MSR_POLICY),
        Owned::Blob(BlobKind::MsrPolicy, 32, vec![0x22; 32]),
        Owned::Record(RecordType::STATIC_DATA_END),
        Owned::Record(RecordType::PAGE_DATA),
        run(Unbacked::Hole, 2, 2),
        run(Unbacked::Broken, 6, 1),
        run(Unbacked::Alloc, 7, 1),
        Owned::Pages(vec![gfn(1), gfn(5)]),
        Owned::Contents([crate::sample::contents(gfn(1), 0), crate::sample::contents(gfn(5), 0)].concat()),
        Owned::Record(RecordType::new(0x8000_1234)),
        Owned::Record(RecordType::VERIFY),
        Owned::Record(RecordType::PAGE_DATA),
        Owned::Pages(vec![gfn(1)]),
        Owned::Contents(crate::sample::contents(gfn(1), 0).to_vec()),
    ];
    expected.extend([
        Owned::Record(RecordType::X86_TSC_INFO),
        Owned::TscInfo(TscInfo { mode: 0, khz: 0, nsec: 0, incarnation: 0 }),
        Owned::Record(RecordType::HVM_CONTEXT),
        Owned::Blob(BlobKind::HvmContext, 100, vec![0x33; 100]),
        Owned::Record(RecordType::HVM_PARAMS),
        Owned::Param(Param { index: 1, value: 0xfeffc }),
        Owned::Param(Param { index: 17, value: 0xfefff }),
        Owned::Record(RecordType::END),
    ]);
    assert_eq!(items, expected);
}

#[test]
fn bytes_after_end_are_not_taken() {
    let mut bytes = full_stream();
    let len = bytes.len();
    bytes.extend(b"the toolstack goes on here");
    let mut rest = &bytes[..];
    let mut parser = Parser::new();
    while parser.next(&mut rest).expect("sound").is_some() {}
    assert_eq!(rest, &bytes[len..]);
    assert!(parser.has_ended());
    assert_eq!(parser.place().offset, len as u64);
}

#[test]
fn one_byte_at_a_time_gives_the_same_items() {
    let bytes = full_stream();
    assert_eq!(parse(bytes.chunks(1)), parse_whole(&bytes));
}

#[test]
fn a_page_list_longer_than_a_batch_comes_in_batches_with_their_contents() {
    let entries: Vec<Entry> = (0..2500).map(|raw| Entry::Data(gfn(raw), 0)).collect();
    let mut writer = Writer::new(2);
    writer.pages(&entries);
    let (items, _) = parse_whole(&writer.bytes);
    let lens: Vec<(usize, usize)> = items
        .windows(2)
        .filter_map(|pair| match pair {
            [Owned::Pages(pages), Owned::Contents(bytes)] => Some((pages.len(), bytes.len())),
            _ => None,
        })
        .collect();
    assert_eq!(lens, [(1024, 1024 * 4096), (1024, 1024 * 4096), (452, 452 * 4096)]);
}

#[test]
fn millions_of_holes_become_one_run_and_are_not_stored() {
    let nr_holes = 1 << 20;
    let mut writer = Writer::new(2);
    writer.header(RecordType::PAGE_DATA, 8 + nr_holes * 8);
    writer.bytes.extend(u64::from(nr_holes).to_le_bytes());
    (0..nr_holes).for_each(|raw| writer.bytes.extend(Entry::Hole(gfn(raw.into())).encode().to_le_bytes()));
    let (items, _) = parse_whole(&writer.bytes);
    let run = Run { kind: Unbacked::Hole, first: gfn(0), nr_frames: nr_holes.into() };
    assert_eq!(items[2..], [Owned::Run(run)]);
}

#[test]
fn the_list_never_grows_past_its_first_capacity() {
    let mut parser = Parser::new();
    let capacity = parser.pages.capacity();
    let nr_pages = u64::try_from(MAX_LISTED_PAGES).expect("small");
    let mut writer = Writer::new(2);
    writer.header(RecordType::PAGE_DATA, u32::try_from(8 + nr_pages * (8 + 4096)).expect("legal"));
    writer.bytes.extend(nr_pages.to_le_bytes());
    (0..nr_pages).for_each(|raw| writer.bytes.extend(raw.to_le_bytes()));
    let mut rest = &writer.bytes[..];
    while parser.next(&mut rest).expect("sound").is_some() {}
    assert_eq!(parser.pages.len(), MAX_LISTED_PAGES);
    assert_eq!(parser.pages.capacity(), capacity);
}

/// Overwrites bytes of the sound stream and expects this fault at this offset.
fn assert_fault(offset: usize, bytes: &[u8], at: u64, fault: Fault) {
    let mut stream = full_stream();
    stream[offset..offset + bytes.len()].copy_from_slice(bytes);
    let error = fault_of(&stream);
    assert_eq!((error.place.offset, error.fault), (at, fault), "{error}");
}

#[test]
fn each_field_of_the_headers_is_checked() {
    assert_fault(0, &[0], 0, Fault::Marker { got: 0x00ff_ffff_ffff_ffff });
    assert_fault(8, b"Y", 8, Fault::Magic { got: 0x5945_4e46 });
    assert_fault(15, &[4], 12, Fault::Version { got: 4 });
    assert_fault(17, &[1], 16, Fault::BigEndian);
    assert_fault(17, &[2], 16, Fault::Options { got: 2 });
    assert_fault(23, &[1], 18, Fault::Reserved { got: 1 });
    assert_fault(24, &[1], 24, Fault::GuestType { got: 1 });
    assert_fault(28, &[13], 28, Fault::PageShift { got: 13 });
    assert_fault(30, &[1], 30, Fault::Reserved { got: 1 });
}

/// Writes headers and one record with this body, unpadded, and returns the fault.
fn record_fault(record: RecordType, length: u32, body: &[u8]) -> (u64, Fault) {
    let mut writer = Writer::new(3);
    writer.header(record, length);
    writer.bytes.extend(body);
    let error = fault_of(&writer.bytes);
    assert_eq!(error.place.record, Some(record));
    (error.place.offset - HEADERS_BYTES as u64, error.fault)
}

#[test]
fn a_length_that_does_not_fit_the_record_is_refused_before_its_body() {
    let cases = [
        (RecordType::END, 8, Fault::Length { expected: 0, got: 8 }),
        (RecordType::VERIFY, 1, Fault::Length { expected: 0, got: 1 }),
        (RecordType::STATIC_DATA_END, 4, Fault::Length { expected: 0, got: 4 }),
        (RecordType::X86_TSC_INFO, 23, Fault::Length { expected: 24, got: 23 }),
        (RecordType::HVM_CONTEXT, 0, Fault::TooShort { least: 1, got: 0 }),
        (
            RecordType::HVM_CONTEXT,
            MAX_CONTEXT_BYTES + 1,
            Fault::TooLong { limit: MAX_CONTEXT_BYTES, got: MAX_CONTEXT_BYTES + 1 },
        ),
        (RecordType::X86_CPUID_POLICY, 25, Fault::NotMultiple { of: 24, got: 25 }),
        (RecordType::X86_MSR_POLICY, 0, Fault::TooShort { least: 16, got: 0 }),
        (RecordType::PAGE_DATA, 7, Fault::TooShort { least: 8, got: 7 }),
        (RecordType::HVM_PARAMS, 0, Fault::TooShort { least: 8, got: 0 }),
        (
            RecordType::PAGE_DATA,
            MAX_RECORD_BYTES + 8,
            Fault::TooLong { limit: MAX_RECORD_BYTES, got: MAX_RECORD_BYTES + 8 },
        ),
    ];
    for (record, length, fault) in cases {
        assert_eq!(record_fault(record, length, &[]), (0, fault), "{record}");
    }
}

#[test]
fn records_that_cannot_be_honoured_are_refused_by_name() {
    let pv = [
        RecordType::X86_PV_INFO,
        RecordType::X86_PV_P2M_FRAMES,
        RecordType::X86_PV_VCPU_BASIC,
        RecordType::X86_PV_VCPU_EXTENDED,
        RecordType::X86_PV_VCPU_XSAVE,
        RecordType::X86_PV_VCPU_MSRS,
        RecordType::SHARED_INFO,
    ];
    for record in pv {
        assert_eq!(record_fault(record, 8, &[]), (0, Fault::PvRecord));
    }
    assert_eq!(record_fault(RecordType::CHECKPOINT, 0, &[]), (0, Fault::CheckpointRecord));
    assert_eq!(record_fault(RecordType::CHECKPOINT_DIRTY_PFN_LIST, 0, &[]), (0, Fault::CheckpointRecord));
    assert_eq!(record_fault(RecordType::TOOLSTACK, 0, &[]), (0, Fault::DeprecatedRecord));
    assert_eq!(record_fault(RecordType::new(0x13), 0, &[]), (0, Fault::UnknownRecord));
}

#[test]
fn a_page_list_must_fit_its_record() {
    let list = |count: u32, entries: &[u64]| {
        let head = u64::from(count).to_le_bytes();
        core::iter::once(head)
            .chain(entries.iter().map(|entry| entry.to_le_bytes()))
            .flatten()
            .collect::<Vec<u8>>()
    };
    let pages = RecordType::PAGE_DATA;
    let expect = |length, body: Vec<u8>, offset, fault| {
        assert_eq!(record_fault(pages, length, &body), (offset, fault));
    };
    expect(8, list(1, &[]), 8, Fault::Length { expected: 16, got: 8 });
    expect(24, list(u32::MAX, &[]), 8, Fault::Length { expected: 8 + 8 * u64::from(u32::MAX), got: 24 });
    expect(32, list(1, &[]), 8, Fault::NotMultiple { of: 4096, got: 16 });
    expect(16, list(1, &[5]), 16, Fault::PagesWithData { expected: 0, got: 1 });
    expect(16 + 4096, list(1, &[5 | 0xf << 60]), 24, Fault::PagesWithData { expected: 1, got: 0 });
    expect(16, list(1, &[5 | 1 << 52]), 16, Fault::PfnReserved { got: 5 | 1 << 52 });
    expect(16, list(1, &[5 | 0x5 << 60]), 16, Fault::PageType { gfn: gfn(5), got: 5 });
    expect(8, (1_u64 << 32).to_le_bytes().to_vec(), 12, Fault::Reserved { got: 1 });
}

#[test]
fn parameters_must_fit_their_record() {
    let params = RecordType::HVM_PARAMS;
    let count = |count: u64| count.to_le_bytes().to_vec();
    assert_eq!(record_fault(params, 8, &count(1)), (8, Fault::Length { expected: 24, got: 8 }));
    assert_eq!(record_fault(params, 40, &count(1)), (8, Fault::Length { expected: 24, got: 40 }));
    let far = [count(1), count(1 << 40), count(0)].concat();
    assert_eq!(record_fault(params, 24, &far), (16, Fault::ParamIndex { got: 1 << 40 }));
    let mut writer = Writer::new(3);
    writer.params(&[]);
    assert!(parse_whole(&writer.bytes).1.is_ok());
}

#[test]
fn padding_must_be_zero() {
    let body = [&[0x33; 3][..], &[0, 0, 7]].concat();
    assert_eq!(record_fault(RecordType::HVM_CONTEXT, 3, &body), (8 + 5, Fault::Padding { got: 7 }));
}

#[test]
fn an_error_is_one_line_with_offset_record_expected_and_got() {
    let mut writer = Writer::new(3);
    writer.header(RecordType::X86_TSC_INFO, 23);
    assert_eq!(
        fault_of(&writer.bytes).to_string(),
        "stream offset 40, record X86_TSC_INFO: expected 24 bytes, got 23"
    );
    assert_eq!(
        fault_of(b"GET / HTTP/1.1\r\nHost: example").to_string(),
        "stream offset 0, header: expected the marker 0xffffffffffffffff, got 0x474554202f204854: not a libxc stream"
    );
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (0..4_u8, 0..2048_u64).prop_map(|(kind, raw)| match kind {
        0 => Entry::Hole(gfn(raw)),
        1 => Entry::Broken(gfn(raw)),
        2 => Entry::Alloc(gfn(raw)),
        _ => Entry::Data(gfn(raw), 0),
    });
    proptest::collection::vec(entry, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_cut_of_the_bytes_gives_the_same_items(
        batches in proptest::collection::vec(entries(), 0..4),
        cuts in proptest::collection::vec(1_usize..6000, 1..64),
    ) {
        let mut writer = Writer::begin();
        batches.iter().for_each(|batch| writer.pages(batch));
        writer.finish(&[(1, 5), (17, 6)]);
        let mut rest = &writer.bytes[..];
        let pieces = cuts.iter().cycle().map_while(|cut| {
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            rest = tail;
            (!piece.is_empty()).then_some(piece)
        });
        let (items, end) = parse(pieces);
        prop_assert_eq!(&end, &Ok(writer.bytes.len() as u64));
        prop_assert_eq!(items, parse_whole(&writer.bytes).0);
    }

    #[test]
    fn no_bytes_panic(noise in proptest::collection::vec(any::<u8>(), 0..512), at in 0_usize..800) {
        let mut stream = full_stream();
        stream.truncate(at);
        stream.extend(noise);
        let (_, outcome) = parse_whole(&stream);
        prop_assert!(outcome.is_err() || outcome == Ok(stream.len() as u64));
    }

    #[test]
    fn a_flipped_byte_never_panics(at in 0_usize..13000, value: u8) {
        let mut stream = full_stream();
        let at = at % stream.len();
        stream[at] = value;
        let _ = parse(stream.chunks(97));
    }
}
