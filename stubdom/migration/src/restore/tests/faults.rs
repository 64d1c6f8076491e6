//! The n-th call fails, for every n; memory runs out; counts come short.

use super::*;
use crate::fake::{Call, Page};
use crate::plan::Census;
use crate::xen::Errno;
use alloc::vec;
use xen_abi::types::Gref;

/// What a target is, as far as a guest can tell.
fn memory(xen: &FakeXen) -> Vec<(Gfn, Option<Page>)> {
    xen.gfns().map(|gfn| (gfn, xen.page(gfn))).collect()
}

/// A stream in which everything happens: superpages, a hole found late, single pages, repeats, a page lost.
fn eventful_guest() -> Vec<u8> {
    let mut writer = Writer::begin();
    writer.pages(&data(0..512).chain(data(600..700)).collect::<Vec<_>>());
    writer.pages(&holes(0x3ff..0x400).chain(data(0x2f0..0x3ff)).collect::<Vec<_>>());
    writer.pages(&data(0x600..0x610).collect::<Vec<_>>());
    writer.pages(&holes(0x10..0x11).chain(data(0xfeff8..0xff000)).collect::<Vec<_>>());
    writer.finish(&PARAMS);
    writer.bytes
}

/// Restores with this call failing; the bench is checked for leaks.
fn with_failing_call(nr: usize) -> (Bench, Result<Report, Error>) {
    let mut bench = Bench::new(3000);
    bench.xen.fail_call = Some(nr);
    let outcome = bench.restore(&eventful_guest(), 65_536);
    assert_eq!((bench.xen.nr_orphans(), bench.xen.nr_mapped()), (0, 0), "call {nr}");
    assert_eq!(bench.xen.nr_free() + bench.xen.nr_owned(), HOST_FRAMES, "call {nr}");
    (bench, outcome)
}

#[test]
fn whichever_call_fails_once_nothing_leaks_and_only_what_cannot_be_retried_ends_the_restore() {
    let (sound, outcome) = with_failing_call(usize::MAX);
    assert!(outcome.is_ok());
    for (nr, call) in sound.xen.ledger.0.iter().enumerate() {
        let (bench, outcome) = with_failing_call(nr);
        match call {
            Call::Other(name) => assert!(outcome.is_err(), "{name}, call {nr}"),
            Call::Populate { .. }
            | Call::Decrease { .. }
            | Call::Map { .. }
            | Call::Unmap
            | Call::UnmapAt { .. } => {
                assert!(outcome.is_ok(), "call {nr}, {call:?}: {outcome:?}");
                assert!(memory(&bench.xen) == memory(&sound.xen), "call {nr}, {call:?}");
            }
        }
    }
}

#[test]
fn a_superpage_that_fails_once_comes_in_pages_and_the_others_stay() {
    let sound = with_failing_call(usize::MAX).0;
    let is_superpage = |call: &Call| matches!(call, Call::Populate { order: Order::PAGE_2M, .. });
    let nr = sound.xen.ledger.0.iter().position(is_superpage).expect("a superpage");
    let (bench, outcome) = with_failing_call(nr);
    assert_eq!(outcome.expect("sound").target.census.nr_2m, 0);
    assert_eq!(bench.xen.ledger.0[nr], Call::Populate { order: Order::PAGE_2M, nr_asked: 2, nr_done: 0 });
}

#[test]
fn each_refusal_has_its_own_error() {
    let sound = with_failing_call(usize::MAX).0;
    let named = |name| {
        let calls = sound.xen.ledger.0.iter().enumerate();
        calls.filter(|(_, call)| **call == Call::Other(name)).map(|(nr, _)| nr).collect::<Vec<_>>()
    };
    let fault = |nr| with_failing_call(nr).1.expect_err("it fails").fault;
    let errno = Errno::EINVAL;
    let params: Vec<_> = named("set_param").into_iter().map(fault).collect();
    assert_eq!(params, [1, 17, 2, 18].map(|index| Fault::Engine(engine::Error::Param { index, errno })));
    let grants: Vec<_> = named("seed_grant").into_iter().map(fault).collect();
    let grant = |gref| Fault::Engine(engine::Error::Grant { gref: Gref::new(gref), errno });
    assert_eq!(grants, [grant(0), grant(1)]);
    let reservation = Fault::Engine(engine::Error::Reservation(errno));
    assert_eq!(named("current_reservation").into_iter().map(fault).collect::<Vec<_>>(), vec![reservation; 2]);
}

#[test]
fn each_refusal_of_dom0_has_its_own_error() {
    let errno = Errno::EINVAL;
    let errors =
        [engine::Error::StaticData(errno), engine::Error::TscInfo(errno), engine::Error::Context(errno)];
    for (nr, error) in errors.into_iter().enumerate() {
        let mut bench = Bench::new(3000);
        bench.dom0.fail_call = Some(nr);
        let outcome = bench.restore(&eventful_guest(), 65_536).expect_err("dom0 refuses");
        assert_eq!(outcome.fault, Fault::Engine(error));
        assert_eq!((bench.xen.nr_orphans(), bench.xen.nr_mapped()), (0, 0));
    }
    let mut bench = Bench::new(3000);
    bench.dom0.refuses_blobs = true;
    let outcome = bench.restore(&eventful_guest(), 65_536).expect_err("dom0 refuses");
    let kind = crate::xen::BlobKind::CpuidPolicy;
    assert_eq!(outcome.fault, Fault::Engine(engine::Error::Blob { kind, errno: Errno::ENOMEM }));
}

#[test]
fn a_frame_that_cannot_be_mapped_is_named() {
    let mut bench = Bench::new(3000);
    bench.xen.unmappable.insert(Gfn::new(0x2f3));
    let error = bench.restore(&eventful_guest(), 65_536).expect_err("unmappable");
    let fault = engine::Error::Map { gfn: Gfn::new(0x2f3), errno: Errno::EINVAL };
    assert_eq!((error.fault, bench.xen.nr_mapped()), (Fault::Engine(fault), 0));
}

#[test]
fn a_xen_that_does_one_extent_a_call_is_asked_until_all_is_done() {
    let mut bench = Bench::new(3000);
    bench.xen.max_extents = 1;
    bench.restore(&eventful_guest(), 65_536).expect("slow but sound");
    assert!(memory(&bench.xen) == memory(&with_failing_call(usize::MAX).0.xen));
}

#[test]
fn a_host_without_contiguous_memory_gives_single_pages() {
    let mut bench = Bench::new(3000);
    bench.xen.fragment(Order::PAGE_2M, usize::MAX);
    let report = bench.restore(&eventful_guest(), 65_536).expect("fragmented");
    assert_eq!(report.target.census.nr_2m, 0);
    assert!(memory(&bench.xen) == memory(&with_failing_call(usize::MAX).0.xen));
}

#[test]
fn contiguous_memory_that_appears_is_used() {
    let mut bench = Bench::new(1 << 14);
    bench.xen.fragment(Order::PAGE_2M, usize::MAX);
    let mut restore = Restore::new(config(1 << 14), &mut bench.xen).expect("room");
    let mut writer = Writer::begin();
    for region in 0..16 {
        if region == 6 {
            bench.xen.defragment();
        }
        writer.pages(&data(region * 512..region * 512 + 1).collect::<Vec<_>>());
        restore.push(&core::mem::take(&mut writer.bytes), &mut bench.xen, &mut bench.dom0).expect("sound");
    }
    // Tried, and fallen back, at regions 0, 1 and 3; the next look, at region 7, finds it.
    assert_eq!(bench.xen.nr_contiguous(Order::PAGE_2M), 9);
    assert_eq!(bench.xen.ledger.count("populate 2M"), 3 + 9);
}

#[test]
fn a_host_out_of_memory_takes_speculation_back_before_it_gives_up() {
    let mut writer = Writer::begin();
    [0, 512, 1024].into_iter().for_each(|raw| writer.pages(&[Entry::Data(Gfn::new(raw), 0)]));
    writer.finish(&[]);
    let mut bench = Bench { xen: FakeXen::new(1024, 4096), dom0: FakeDom0::default() };
    let report = bench.restore(&writer.bytes, 65_536).expect("three pages fit 1024");
    assert_eq!((report.target.nr_owned, bench.xen.nr_free()), (3, 1021));
}

#[test]
fn a_host_without_memory_says_how_much_is_missing() {
    let mut writer = Writer::begin();
    writer.pages(&data(0..600).collect::<Vec<_>>());
    let mut bench = Bench { xen: FakeXen::new(550, 4096), dom0: FakeDom0::default() };
    let error = bench.restore(&writer.bytes, 65_536).expect_err("too small");
    let fault = engine::Error::NoMemory { gfn: Gfn::new(550), nr_missing: 50 };
    assert_eq!(error.fault, Fault::Engine(fault));
    assert_eq!((bench.xen.nr_mapped(), bench.xen.nr_orphans()), (0, 0));
}

/// A stream of 1 GiB and a little more, named without contents, in batches as a stock sender cuts them.
fn giant_guest() -> Vec<u8> {
    let mut writer = Writer::begin();
    for first in (0..(1 << 18) + 2048).step_by(1024) {
        writer.pages(&(first..first + 1024).map(|raw| Entry::Alloc(Gfn::new(raw))).collect::<Vec<_>>());
    }
    writer.finish(&[]);
    writer.bytes
}

#[test]
fn a_gigabyte_is_one_extent_where_xen_allows_it_and_regions_where_it_does_not() {
    let max_pages = (1 << 18) + 2048 + 256;
    for (max_order, census) in [
        (Order::PAGE_1G, Census { nr_1g: 1, nr_2m: 4, nr_4k: 0 }),
        (Order::PAGE_2M, Census { nr_1g: 0, nr_2m: 516, nr_4k: 0 }),
    ] {
        let mut bench = Bench { xen: FakeXen::new(1 << 20, max_pages), dom0: FakeDom0::default() };
        bench.xen.max_order = max_order;
        let report = bench.restore(&giant_guest(), 65_536).expect("sound");
        assert_eq!(report.target.census, census);
        assert_eq!(bench.xen.nr_contiguous(Order::PAGE_2M), 516);
        assert_eq!(bench.xen.ledger.nr_short(), usize::from(max_order == Order::PAGE_2M));
    }
}
