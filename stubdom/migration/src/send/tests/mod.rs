mod faults;
mod ledger;
mod properties;

use super::*;
use crate::engine::{self, Service};
use crate::fake::{Act, FakeDom0, FakeSource, FakeXen, Page, SendCall};
use crate::restore::Restore;
use alloc::collections::BTreeMap;
use alloc::vec;
use xen_abi::types::{Domid, Port};

const STORE: u64 = 0xffc;
const CONSOLE: u64 = 0xfff;

/// The passes of libxenguest and no earlier end: a guest as small as these would be sent in one.
const BUSY: Policy =
    Policy { max_passes: 5, few_pages: 0, downtime_ms: 0, most_bytes_a_second: None, timeout: None };

fn config(mode: Mode) -> Config {
    Config { xen_version: (4, 17), mode, verify: false }
}

/// A guest of 700 pages with a hole, special pages and some of Xen's own.
fn guest() -> FakeSource {
    let mut source = FakeSource::new((0..0xa0).chain(0xc0..700).chain([STORE, CONSOLE]), 1024);
    source.add_special(Gfn::new(0xff0));
    source.params = [(1, STORE), (17, CONSOLE), (36, 8)].into();
    source
}

/// Sends with room for so many bytes a turn; returns what came of it.
fn send(source: &mut FakeSource, config: Config, room: usize) -> Result<Tally, Error> {
    let mut send = Send::new(config);
    loop {
        source.room = room;
        match send.turn(source)? {
            Turn::Complete => return Ok(send.tally()),
            Turn::More | Turn::Full => {}
            Turn::At(ns) => source.call_ns = ns.div_ceil(source.calls.len() as u64),
        }
    }
}

/// Receives a stream; returns the guest that came of it.
fn receive(stream: &[u8]) -> (FakeXen, FakeDom0, engine::Tally) {
    let service = |port| Service { port: Port::new(port), domid: Domid::DOM0 };
    let config =
        engine::Config { max_pages: 6000, map_bytes: 1 << 20, store: service(1), console: service(2) };
    let (mut xen, mut dom0) = (FakeXen::new(1 << 14, 6000), FakeDom0::default());
    let mut restore = Restore::new(config, &mut xen).expect("room");
    assert_eq!(restore.push(stream, &mut xen, &mut dom0), Ok(stream.len()));
    let report = restore.close(&mut xen).expect("a whole stream");
    (xen, dom0, report.tally)
}

/// Checks that a receiver of the stream has what the source has, but for the rings, which it clears.
fn assert_arrived(source: &FakeSource) {
    let (xen, ..) = receive(&source.output);
    let mut expected = source.memory();
    for ring in [STORE, CONSOLE] {
        expected.entry(Gfn::new(ring)).and_modify(|page| *page = [0; PAGE_SIZE]);
    }
    let arrived: BTreeMap<Gfn, Page> = xen.gfns().map(|gfn| (gfn, xen.page(gfn).expect("a page"))).collect();
    let differs = |gfn: &&Gfn| expected.get(*gfn) != arrived.get(*gfn);
    let gfns: Vec<&Gfn> = expected.keys().chain(arrived.keys()).filter(differs).collect();
    assert_eq!(gfns, [] as [&Gfn; 0], "pages differ");
}

#[test]
fn a_suspended_guest_arrives_with_its_state() {
    let mut source = guest();
    let tally = send(&mut source, config(Mode::Suspended), usize::MAX).expect("sound");
    assert_eq!((tally.nr_pages, tally.nr_last, tally.nr_passes), (670, 670, 1));
    assert_arrived(&source);
    let (xen, dom0, _) = receive(&source.output);
    assert_eq!(dom0.cpuid_policy, [0x11; 48]);
    assert_eq!(dom0.msr_policy, [0x22; 32]);
    assert_eq!((dom0.hvm_context.as_slice(), dom0.nr_contexts), ([0x33; 100].as_slice(), 1));
    assert_eq!(dom0.tsc_info, Some(source.tsc_info().expect("sound")));
    // Those of the source that are not 0, and the receiver's own two channels.
    assert_eq!(xen.params, [(1, STORE), (2, 1), (17, CONSOLE), (18, 2), (36, 8)].into());
    assert!(source.is_suspended);
    assert_eq!(source.nr_shown(), 0);
}

#[test]
fn the_headers_are_those_of_a_stock_sender() {
    let mut source = guest();
    send(&mut source, config(Mode::Suspended), usize::MAX).expect("sound");
    let image = b"\xff\xff\xff\xff\xff\xff\xff\xffXENF\0\0\0\x03\0\0\0\0\0\0\0\0";
    let domain = b"\x02\0\0\0\x0c\0\0\0\x04\0\0\0\x11\0\0\0";
    assert_eq!(source.output[..40], [image.as_slice(), domain].concat());
}

#[test]
fn however_little_room_there_is_the_bytes_are_the_same() {
    let mut whole = guest();
    send(&mut whole, config(Mode::Suspended), usize::MAX).expect("sound");
    for room in [1, 7, 4095, 4097, 65_536] {
        let mut source = guest();
        send(&mut source, config(Mode::Suspended), room).expect("sound");
        assert!(source.output == whole.output, "{room} bytes at a time");
        assert_eq!(source.calls, whole.calls);
    }
}

#[test]
fn what_a_running_guest_writes_arrives() {
    let mut source = guest();
    // Calls 0 to 4 are the static data and the log's start.
    source.acts = (3..40).map(|nr| (nr, vec![Act::Write(Gfn::new(nr as u64 * 7), nr as u64)])).collect();
    let tally = send(&mut source, config(Mode::Live(BUSY)), 100_000).expect("sound");
    assert_eq!(tally.nr_passes, 6, "five while it runs, one after");
    assert!(tally.nr_kept > 0);
    assert_arrived(&source);
}

#[test]
fn a_quiet_guest_is_suspended_after_the_first_pass() {
    let mut source = guest();
    let tally = send(&mut source, config(Mode::Live(Policy::default())), usize::MAX).expect("sound");
    assert_eq!((tally.nr_passes, tally.nr_last), (2, 0));
    assert_arrived(&source);
}

#[test]
fn a_page_that_the_guest_gives_back_becomes_a_hole() {
    for nr in 4..20 {
        let mut source = guest();
        let gfn = Gfn::new(650);
        source.acts.insert(nr, vec![Act::Write(gfn, 1), Act::BalloonOut(gfn)]);
        send(&mut source, config(Mode::Live(BUSY)), usize::MAX).expect("sound");
        assert_arrived(&source);
    }
}

#[test]
fn a_page_that_the_guest_gets_meanwhile_arrives() {
    for gfn in [0xa7, 699, 700, 0x1200] {
        for nr in 4..20 {
            let mut source = guest();
            source.acts.insert(nr, vec![Act::BalloonIn(Gfn::new(gfn), 9)]);
            send(&mut source, config(Mode::Live(BUSY)), usize::MAX).expect("sound");
            assert_arrived(&source);
        }
    }
}

#[test]
fn a_mapping_from_a_pass_before_is_not_used_once_its_page_has_moved() {
    for nr in 6..24 {
        let mut source = guest();
        source.acts.insert(nr, vec![Act::Move(Gfn::new(3), Gfn::new(9))]);
        // Written, so that the pages are looked at again; what was there before stays readable through the window.
        source.acts.entry(nr).or_default().extend([Act::Write(Gfn::new(4), 1)]);
        send(&mut source, config(Mode::Live(BUSY)), usize::MAX).expect("sound");
        assert_arrived(&source);
    }
}

#[test]
fn a_page_that_becomes_xens_own_is_neither_mapped_nor_sent() {
    for gfn in [0xff1, 650] {
        for nr in 4..24 {
            let mut source = guest();
            source.acts.insert(nr, vec![Act::GrowTable(Gfn::new(gfn))]);
            source.acts.insert(nr + 1, vec![Act::Write(Gfn::new(3), 1)]);
            send(&mut source, config(Mode::Live(BUSY)), usize::MAX).expect("sound");
            assert_arrived(&source);
        }
    }
}

#[test]
fn a_guest_that_is_larger_than_the_window_arrives() {
    let mut source = FakeSource::new(0..3000, 1024);
    source.acts = (8..20).map(|nr| (nr, vec![Act::Write(Gfn::new(nr as u64 * 130), 1)])).collect();
    send(&mut source, config(Mode::Live(BUSY)), usize::MAX).expect("sound");
    assert_arrived(&source);
}

#[test]
fn everything_comes_again_when_the_receiver_is_to_compare() {
    let mut source = guest();
    let verify = Config { verify: true, ..config(Mode::Suspended) };
    let tally = send(&mut source, verify, usize::MAX).expect("sound");
    assert_eq!((tally.nr_pages, tally.nr_last), (2 * 670, 670));
    let (.., received) = receive(&source.output);
    assert_eq!((received.nr_mismatches, received.nr_pages), (0, 2 * 670));
}

#[test]
fn a_send_that_takes_too_long_ends_with_the_guest_running() {
    let timeout = Some(Timeout::AbortAfter(1));
    let mut source = guest();
    source.call_ns = 1_000_000_000;
    let error = send(&mut source, config(Mode::Live(Policy { timeout, ..BUSY })), usize::MAX);
    assert_eq!(error.map(|_| ()), Err(Error::Timeout { seconds: 1, nr_dirty: 0 }));
    assert!(!source.is_suspended);
    assert_eq!(source.nr_shown(), 0);
}

#[test]
fn a_limit_of_bytes_a_second_makes_the_send_wait() {
    let limited = Policy { most_bytes_a_second: Some(1 << 20), ..BUSY };
    let mut source = guest();
    let mut send = Send::new(config(Mode::Live(limited)));
    let turns: Vec<Turn> = (0..4).map(|_| send.turn(&mut source).expect("sound")).collect();
    let Turn::At(ns) = turns[2] else { panic!("{turns:?}") };
    // 670 pages at 256 a second.
    assert!((2_600_000_000..2_800_000_000).contains(&ns), "{ns}");
    assert_eq!(turns[3], turns[2]);
}

#[test]
fn hardly_anything_is_said_of_a_send_but_its_state() {
    assert!(alloc::format!("{:?}", Send::new(config(Mode::Suspended))).starts_with("Send { state: Opening"));
}
