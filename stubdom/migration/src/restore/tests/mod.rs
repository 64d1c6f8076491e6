mod faults;
mod ledger;
mod properties;

use super::*;
use crate::engine::Service;
use crate::fake::{FakeDom0, FakeXen};
use crate::sample::{Entry, Writer, contents};
use crate::stream::RecordType;
use crate::xen::Missing;
use alloc::string::ToString;
use alloc::vec::Vec;
use xen_abi::types::{Domid, Gfn, Order, PAGE_SIZE, Port};

/// Frames of the usual host: 64 MiB.
const HOST_FRAMES: u64 = 1 << 14;

const STORE: u64 = 0xfeffc;
const CONSOLE: u64 = 0xfefff;
const PARAMS: [(u64, u64); 3] = [(1, STORE), (17, CONSOLE), (4, 1)];

fn config(max_pages: u64) -> Config {
    Config {
        max_pages,
        map_bytes: 1 << 20,
        store: Service { port: Port::new(1), domid: Domid::DOM0 },
        console: Service { port: Port::new(2), domid: Domid::new(5) },
    }
}

/// A host with plenty of memory and its target.
struct Bench {
    xen: FakeXen,
    dom0: FakeDom0,
}

impl Bench {
    fn new(max_pages: u64) -> Self {
        Self { xen: FakeXen::new(HOST_FRAMES, max_pages), dom0: FakeDom0::default() }
    }

    fn restore(&mut self, bytes: &[u8], piece_bytes: usize) -> Result<Report, Error> {
        let mut restore = Restore::new(config(self.xen.max_pages), &mut self.xen)?;
        for piece in bytes.chunks(piece_bytes) {
            assert_eq!(restore.push(piece, &mut self.xen, &mut self.dom0)?, piece.len());
        }
        restore.close(&mut self.xen)
    }
}

fn data(gfns: core::ops::Range<u64>) -> impl Iterator<Item = Entry> {
    gfns.map(|raw| Entry::Data(Gfn::new(raw), 0))
}

fn holes(gfns: core::ops::Range<u64>) -> impl Iterator<Item = Entry> {
    gfns.map(|raw| Entry::Hole(Gfn::new(raw)))
}

/// The stream of a small guest as a stock sender writes it: 3 regions of memory, a hole, the special pages.
fn small_guest() -> Vec<u8> {
    let mut writer = Writer::begin();
    writer.pages(&data(0..1024).collect::<Vec<_>>());
    writer.pages(&data(1024..1536).chain(holes(1536..2048)).collect::<Vec<_>>());
    writer.pages(&holes(0xfec00..0xfeff8).chain(data(0xfeff8..0xff000)).collect::<Vec<_>>());
    writer.pages(&data(7..9).collect::<Vec<_>>());
    writer.finish(&PARAMS);
    writer.bytes
}

#[test]
fn a_guest_arrives_with_its_superpages_and_nothing_else() {
    let mut bench = Bench::new(1536 + 8 + 256);
    let bytes = small_guest();
    let report = bench.restore(&bytes, 65_536).expect("sound");
    assert_eq!(report.nr_bytes, bytes.len() as u64);
    assert_eq!(report.target.census, crate::plan::Census { nr_1g: 0, nr_2m: 3, nr_4k: 8 });
    assert_eq!(bench.xen.nr_contiguous(Order::PAGE_2M), 3);
    assert_eq!((bench.xen.nr_owned(), report.target.nr_owned, report.target.nr_expected), (1544, 1544, 1544));
    assert_eq!((bench.xen.nr_orphans(), bench.xen.nr_mapped()), (0, 0));
    assert_eq!((report.tally.nr_pages, report.tally.pass), (1536 + 8 + 2, 2));
}

#[test]
fn its_pages_hold_what_the_stream_brought() {
    let mut bench = Bench::new(1800);
    bench.restore(&small_guest(), 1000).expect("sound");
    for gfn in bench.xen.gfns().collect::<Vec<_>>() {
        let cleared = [STORE, CONSOLE].contains(&gfn.raw());
        let expected = if cleared { [0; PAGE_SIZE] } else { contents(gfn, 0) };
        assert!(bench.xen.page(gfn) == Some(expected), "{gfn}");
    }
}

#[test]
fn parameters_channels_grants_and_dom0s_part_are_set() {
    let mut bench = Bench::new(1800);
    let report = bench.restore(&small_guest(), 4096).expect("sound");
    assert_eq!(report.target.store, Some(Gfn::new(STORE)));
    assert_eq!(report.target.console, Some(Gfn::new(CONSOLE)));
    let params: Vec<(u32, u64)> = bench.xen.params.iter().map(|(index, value)| (*index, *value)).collect();
    assert_eq!(params, [(1, STORE), (2, 1), (17, CONSOLE), (18, 2)]);
    let grants: Vec<_> = bench.xen.grants.iter().map(|(gref, grant)| (*gref, *grant)).collect();
    let console = (0, (Domid::new(5), Gfn::new(CONSOLE)));
    assert_eq!(grants, [console, (1, (Domid::DOM0, Gfn::new(STORE)))]);
    assert_eq!(bench.dom0.static_data, Some(Missing { cpuid: false, msr: false }));
    assert_eq!((bench.dom0.hvm_context.len(), bench.dom0.nr_contexts), (100, 1));
    assert!(bench.dom0.tsc_info.is_some());
}

#[test]
fn every_way_of_cutting_the_bytes_ends_in_the_same_calls() {
    let bytes = small_guest();
    let ledger = |piece_bytes| {
        let mut bench = Bench::new(1800);
        bench.restore(&bytes, piece_bytes).expect("sound");
        bench.xen.ledger
    };
    let whole = ledger(bytes.len());
    for piece_bytes in [1, 7, 4096, 65_536] {
        assert_eq!(ledger(piece_bytes), whole, "{piece_bytes} bytes at a time");
    }
}

/// Takes the stream in pieces, contents as far as they may unseen.
fn restore_unseen(bench: &mut Bench, mut bytes: &[u8], piece_bytes: usize) -> (Report, usize) {
    let mut restore = Restore::new(config(1800), &mut bench.xen).expect("room");
    let mut nr_unseen = 0;
    while !bytes.is_empty() {
        let piece = &bytes[..piece_bytes.min(bytes.len())];
        let wanted = u32::try_from(piece.len()).unwrap();
        let room = restore.nr_unseen();
        let mut nr_taken = restore
            .fill(wanted, |slot, at| bench.xen.fill(slot, at, &piece[..wanted.min(room) as usize]))
            as usize;
        nr_unseen += nr_taken;
        if nr_taken == 0 {
            nr_taken = restore.push(piece, &mut bench.xen, &mut bench.dom0).expect("sound");
        }
        bytes = &bytes[nr_taken..];
    }
    (restore.close(&mut bench.xen).expect("complete"), nr_unseen)
}

#[test]
fn contents_that_pass_unseen_end_in_the_same_guest() {
    let bytes = small_guest();
    let mut seen = Bench::new(1800);
    let report = seen.restore(&bytes, 65_536).expect("sound");
    for piece_bytes in [333, 4096, 65_536] {
        let mut unseen = Bench::new(1800);
        let (other, nr_unseen) = restore_unseen(&mut unseen, &bytes, piece_bytes);
        assert_eq!((other, &unseen.xen.ledger), (report, &seen.xen.ledger));
        assert!(nr_unseen > bytes.len() / 2, "{nr_unseen} of {} bytes", bytes.len());
        assert!(seen.xen.gfns().all(|gfn| unseen.xen.page(gfn) == seen.xen.page(gfn)));
    }
}

#[test]
fn contents_after_verify_do_not_pass_unseen() {
    let mut writer = Writer::begin();
    writer.pages(&data(0..20).collect::<Vec<_>>());
    let nr_filled = writer.bytes.len();
    writer.record(RecordType::VERIFY, &[]);
    writer.pages(&data(0..20).collect::<Vec<_>>());
    let mut bench = Bench::new(1800);
    let mut restore = Restore::new(config(1800), &mut bench.xen).expect("room");
    restore.push(&writer.bytes[..nr_filled - 9], &mut bench.xen, &mut bench.dom0).expect("sound");
    assert_eq!(restore.nr_unseen(), 9);
    restore
        .push(&writer.bytes[nr_filled - 9..writer.bytes.len() - 9], &mut bench.xen, &mut bench.dom0)
        .expect("sound");
    assert_eq!(restore.nr_unseen(), 0);
}

#[test]
fn bytes_after_end_are_left_and_then_refused() {
    let mut bytes = small_guest();
    let len = bytes.len();
    bytes.extend([0; 5]);
    let mut bench = Bench::new(1800);
    let mut restore = Restore::new(config(1800), &mut bench.xen).expect("room");
    assert_eq!(restore.push(&bytes, &mut bench.xen, &mut bench.dom0), Ok(len));
    assert!(restore.report().is_some());
    let error = restore.push(&bytes[len..], &mut bench.xen, &mut bench.dom0).expect_err("data after END");
    assert_eq!(error.fault, Fault::Trailing { nr_bytes: 5 });
    assert_eq!(restore.push(&[], &mut bench.xen, &mut bench.dom0), Err(error));
    assert_eq!((restore.close(&mut bench.xen), restore.report()), (Err(error), None));
}

#[test]
fn a_stream_that_stops_anywhere_is_an_error_that_leaves_no_frame_mapped() {
    let bytes = small_guest();
    let boundaries = boundaries(&bytes);
    // Three records before the memory, four of it, four behind: each one's start, and the end of the last.
    assert_eq!((boundaries.len(), boundaries.last()), (12, Some(&bytes.len())));
    let inside = boundaries.iter().flat_map(|at| [at - 1, at + 1]).filter(|len| *len < bytes.len());
    let at_records = boundaries.iter().copied().filter(|len| *len < bytes.len());
    for len in (0..bytes.len()).step_by(50_021).chain([0, 1, 24, 39]).chain(inside).chain(at_records) {
        let mut bench = Bench::new(1800);
        let error = bench.restore(&bytes[..len], 9000).expect_err("truncated");
        assert_eq!((error.fault, error.place.offset), (Fault::Truncated, len as u64));
        assert_eq!((bench.xen.nr_mapped(), bench.xen.nr_orphans()), (0, 0));
    }
}

/// Where records start, and where the last one ends, by the lengths in their headers.
fn boundaries(bytes: &[u8]) -> Vec<usize> {
    let next = |at: &usize| {
        let length = bytes.get(at + 4..at + 8)?;
        Some(at + 8 + u32::from_le_bytes(length.try_into().ok()?).next_multiple_of(8) as usize)
    };
    core::iter::successors(Some(crate::sample::HEADERS_BYTES), next).collect()
}

#[test]
fn a_stream_of_version_2_restores_the_same_guest() {
    let mut v3 = Bench::new(1800);
    let expected = v3.restore(&small_guest(), 65_536).expect("sound");
    // Version 2 has neither policies nor an end of the static data: its first other record is that end.
    let mut writer = Writer::new(2);
    writer.bytes.extend(&small_guest()[boundaries(&small_guest())[3]..]);
    let mut v2 = Bench::new(1800);
    let report = v2.restore(&writer.bytes, 1000).expect("sound");
    assert_eq!((report.tally, report.target), (expected.tally, expected.target));
    assert_eq!(v2.xen.ledger, v3.xen.ledger);
    assert_eq!((&v2.xen.params, &v2.xen.grants), (&v3.xen.params, &v3.xen.grants));
    assert!(v3.xen.gfns().all(|gfn| v2.xen.page(gfn) == v3.xen.page(gfn)));
    assert_eq!(v2.dom0.static_data, Some(Missing { cpuid: true, msr: true }));
    assert_eq!((v2.dom0.hvm_context, v2.dom0.tsc_info), (v3.dom0.hvm_context, v3.dom0.tsc_info));
}

#[test]
fn an_error_is_one_clear_line_and_stays() {
    let mut writer = Writer::begin();
    writer.pages(&[Entry::Data(Gfn::new(1 << 40), 0)]);
    let mut bench = Bench::new(1800);
    let mut restore = Restore::new(config(1800), &mut bench.xen).expect("room");
    let error = restore.push(&writer.bytes, &mut bench.xen, &mut bench.dom0).expect_err("beyond the guest");
    assert_eq!(
        error.to_string(),
        "stream offset 168, record PAGE_DATA: expected pages below gfn:0x1000000000, got gfn:0x10000000000"
    );
    assert_eq!(restore.push(&[], &mut bench.xen, &mut bench.dom0), Err(error));
    assert_eq!(restore.close(&mut bench.xen), Err(error));
}

#[test]
fn after_verify_pages_are_compared_and_the_first_mismatches_told() {
    let mut writer = Writer::begin();
    writer.pages(&data(0..20).collect::<Vec<_>>());
    writer.record(RecordType::VERIFY, &[]);
    let verified = (0..20).map(|raw| Entry::Data(Gfn::new(raw), u64::from(raw >= 9)));
    writer.pages(&verified.collect::<Vec<_>>());
    writer.finish(&[]);
    for piece_bytes in [1000, 65_536] {
        let mut bench = Bench::new(1800);
        let tally = bench.restore(&writer.bytes, piece_bytes).expect("sound").tally;
        assert_eq!(tally.nr_mismatches, 11);
        assert_eq!(tally.mismatches, core::array::from_fn(|nr| Some(Gfn::new(9 + nr as u64))));
        assert!(bench.xen.page(Gfn::new(9)) == Some(contents(Gfn::new(9), 0)), "compared, not written");
    }
}

#[test]
fn a_page_that_becomes_a_hole_goes_back() {
    let mut writer = Writer::begin();
    writer.pages(&data(0..512).collect::<Vec<_>>());
    writer.pages(&holes(5..7).collect::<Vec<_>>());
    writer.finish(&[]);
    let mut bench = Bench::new(1800);
    let report = bench.restore(&writer.bytes, 65_536).expect("sound");
    assert_eq!((bench.xen.nr_owned(), report.tally.nr_given_back), (510, 2));
    assert_eq!(bench.xen.page(Gfn::new(5)), None);
}

#[test]
fn pages_without_contents_are_populated_and_broken_ones_are_not() {
    let mut writer = Writer::begin();
    let entries = data(0..3).chain([Entry::Broken(Gfn::new(3))]);
    writer.pages(&entries.chain((4..3000).map(|raw| Entry::Alloc(Gfn::new(raw)))).collect::<Vec<_>>());
    writer.finish(&[]);
    let mut bench = Bench::new(4000);
    let report = bench.restore(&writer.bytes, 65_536).expect("sound");
    assert_eq!(bench.xen.nr_owned(), 2999);
    assert_eq!(report.target.census.nr_2m, 4);
    assert_eq!(bench.xen.page(Gfn::new(3)), None);
    assert!((4..3000).all(|raw| bench.xen.page(Gfn::new(raw)) == Some([0; PAGE_SIZE])), "nothing of others");
}

#[test]
fn a_page_that_comes_without_contents_keeps_those_that_came_before() {
    let mut writer = Writer::begin();
    writer.pages(&data(0..20).collect::<Vec<_>>());
    writer.pages(&(10..30).map(|raw| Entry::Alloc(Gfn::new(raw))).collect::<Vec<_>>());
    writer.finish(&[]);
    let mut bench = Bench::new(1800);
    bench.restore(&writer.bytes, 65_536).expect("sound");
    for raw in 0..30 {
        let expected = if raw < 20 { contents(Gfn::new(raw), 0) } else { [0; PAGE_SIZE] };
        assert!(bench.xen.page(Gfn::new(raw)) == Some(expected), "page {raw}");
    }
}

#[test]
fn a_page_that_comes_only_to_be_compared_holds_zeroes() {
    let mut writer = Writer::begin();
    writer.pages(&data(0..20).collect::<Vec<_>>());
    writer.record(RecordType::VERIFY, &[]);
    writer.pages(&data(10..30).collect::<Vec<_>>());
    writer.finish(&[]);
    let mut bench = Bench::new(1800);
    let report = bench.restore(&writer.bytes, 65_536).expect("sound");
    assert_eq!(report.tally.nr_mismatches, 10);
    assert!((20..30).all(|raw| bench.xen.page(Gfn::new(raw)) == Some([0; PAGE_SIZE])), "nothing of others");
}

#[test]
fn what_goes_back_is_zeroed_in_batches_and_what_nobody_named_costs_nothing() {
    let calls = |records: &[Vec<Entry>]| {
        let mut writer = Writer::begin();
        records.iter().for_each(|entries| writer.pages(entries));
        writer.finish(&[]);
        let mut bench = Bench::new(4000);
        bench.restore(&writer.bytes, 65_536).expect("sound");
        (bench.xen.ledger.count("map"), bench.xen.ledger.count("decrease 2M"))
    };
    let batch = |first: u64| data(first..first + 1024).collect::<Vec<_>>();
    assert_eq!(calls(&[batch(0), batch(1024)]), (2, 0));
    assert_eq!(calls(&[batch(0), batch(1024), holes(0..2048).collect()]), (2 + 2, 1));
    assert_eq!(calls(&[data(0..1).collect(), holes(512..1024).collect()]), (1, 0), "never named");
}

#[test]
fn a_guest_with_its_memory_far_apart_is_restored() {
    let mut writer = Writer::begin();
    writer.pages(&data(0..512).collect::<Vec<_>>());
    writer.pages(&holes(0x8_0000..0x8_0400).collect::<Vec<_>>());
    writer.pages(&data(0x16_bd30..0x16_be00).collect::<Vec<_>>());
    writer.finish(&[]);
    let mut bench = Bench::new(1024);
    bench.restore(&writer.bytes, 65_536).expect("sound");
    assert_eq!(bench.xen.nr_owned(), 512 + 0xd0);
    assert!(bench.xen.gfns().all(|gfn| bench.xen.page(gfn) == Some(contents(gfn, 0))));
}

#[test]
fn a_stream_of_pages_far_apart_ends_with_what_the_stub_is_short_of() {
    let mut writer = Writer::begin();
    writer.pages(&(0..1000).map(|nr| Entry::Alloc(Gfn::new(nr << 18))).collect::<Vec<_>>());
    let mut bench = Bench::new(4000);
    let error = bench.restore(&writer.bytes, 65_536).expect_err("too far apart").to_string();
    let expected = "record PAGE_DATA: no memory to keep track of gfn:0x740000: give the stub";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_parameter_that_names_a_page_the_guest_does_not_have_is_passed_over() {
    let mut writer = Writer::begin();
    writer.pages(&data(0..3).collect::<Vec<_>>());
    writer.finish(&[(1, u64::MAX), (17, 400)]);
    let mut bench = Bench::new(4000);
    bench.restore(&writer.bytes, 65_536).expect("sound");
    assert!(bench.xen.grants.is_empty());
    assert_eq!(bench.xen.nr_owned(), 3);
}
