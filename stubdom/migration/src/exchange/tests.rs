use super::*;
use crate::fake::{Call, FakeXen, Offline, Page, Pinned};
use crate::sample::contents;
use crate::xen::Xen;
use alloc::string::{String, ToString};
use core::cell::Cell;
use proptest::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use xen_abi::types::Gref;

/// Where a new superpage may wait: past the guest.
const SCRATCH_REGION: Gfn = Gfn::new(0x1000);

const STORE: Gfn = Gfn::new(0xfeffc);

/// A guest of four superpages and some single pages, on a host of 64 MiB.
fn guest() -> FakeXen {
    let mut xen = FakeXen::new(1 << 14, 1 << 14);
    xen.populate_physmap(Order::PAGE_2M, &[0, 512, 1024, 1536].map(Gfn::new));
    let single: Vec<Gfn> = (0x2000..0x2010).map(Gfn::new).chain([STORE]).collect();
    xen.populate_physmap(Order::PAGE_4K, &single);
    xen.set_param(1, STORE.raw()).expect("a parameter");
    for gfn in xen.gfns().collect::<Vec<_>>() {
        xen.write(gfn, &contents(gfn, 0));
    }
    xen.ledger.0.clear();
    xen
}

fn request(mfn: Mfn) -> Request<'static> {
    Request { mfn, reserved: &[], scratch_region: Some(SCRATCH_REGION), now_ns: FakeXen::NOW_NS }
}

fn memory(xen: &FakeXen) -> Vec<(Gfn, Page)> {
    xen.gfns().map(|gfn| (gfn, xen.page(gfn).expect("populated"))).collect()
}

/// All but what waits for an exchange.
fn memory_but_scratch(xen: &FakeXen) -> Vec<(Gfn, Page)> {
    let waits = |gfn: &Gfn| SCRATCH_PAGES.contains(gfn) || gfn.align_down(Order::PAGE_2M) == SCRATCH_REGION;
    memory(xen).into_iter().filter(|(gfn, _)| !waits(gfn)).collect()
}

fn frames(xen: &FakeXen) -> Vec<(Gfn, Option<Mfn>)> {
    xen.gfns().map(|gfn| (gfn, xen.frame(gfn))).collect()
}

/// What was populated, and how often.
fn populated(xen: &FakeXen) -> Vec<Call> {
    xen.ledger.0.iter().filter(|call| matches!(call, Call::Populate { .. })).cloned().collect()
}

/// Marks the frame of `gfn` offline and exchanges it, all three phases.
fn exchange(xen: &mut FakeXen, gfn: Gfn) -> Result<Report, Error> {
    let mfn = xen.frame(gfn).expect("populated");
    xen.offline(mfn);
    let mut exchange = Exchange::prepare(&request(mfn), xen)?;
    let swapped = exchange.swap(xen);
    let report = exchange.finish(xen)?;
    swapped.map(|_| report.expect("swapped"))
}

#[test]
fn a_page_alone_gets_a_new_frame_and_keeps_its_contents() {
    let mut xen = guest();
    let (gfn, before) = (Gfn::new(0x2003), memory(&guest()));
    let old = xen.frame(gfn).expect("populated");
    let report = exchange(&mut xen, gfn).expect("an ordinary page");
    let new = xen.frame(gfn).expect("populated");
    let expected = Report { gfn, old, new, outcome: Outcome::Page, held: vec![], lost_read_only: None };
    assert_eq!(report, expected);
    assert_ne!(new, old);
    assert_eq!(xen.offline_status(old), Offline::Done);
    assert!(memory(&xen) == before);
    assert_eq!((xen.nr_orphans(), xen.nr_mapped()), (0, 0));
}

#[test]
fn a_superpage_gets_512_new_frames_and_stays_one() {
    let mut xen = guest();
    let gfn = Gfn::new(700);
    let old = xen.frame(gfn).expect("populated");
    let (before, owned) = (memory(&xen), xen.nr_owned());
    let report = exchange(&mut xen, gfn).expect("an ordinary superpage");
    assert_eq!((report.outcome, report.held), (Outcome::Superpage, vec![]));
    assert!(xen.is_superpage(gfn) && xen.is_contiguous(Order::PAGE_2M, Gfn::new(512)));
    assert!(memory(&xen) == before);
    assert_eq!((xen.nr_owned(), xen.nr_orphans(), xen.nr_mapped()), (owned, 0, 0));
    assert_eq!(xen.offline_status(old), Offline::Done);
}

#[test]
fn the_guest_stands_still_for_a_handful_of_calls() {
    let calls = |gfn| {
        let mut xen = guest();
        let mut exchange =
            Exchange::prepare(&request(xen.frame(gfn).expect("populated")), &mut xen).expect("fine");
        xen.ledger.0.clear();
        exchange.swap(&mut xen).expect("fine");
        let ledger = xen.ledger.to_string();
        exchange.finish(&mut xen).expect("fine");
        ledger
    };
    assert_eq!(calls(Gfn::new(0x2003)), "map 1\ngrant_in_force\nmove_page\nmap 1\nnote_modified\n");
    let superpage = "map 512\ngrant_in_force\ndecrease 2M 1/1\npopulate 2M 1/1\nmap 512\nnote_modified\n";
    assert_eq!(calls(Gfn::new(3)), superpage);
}

#[test]
fn without_a_second_superpage_the_first_is_split_and_nothing_lost() {
    let mut xen = guest();
    let before = memory(&xen);
    xen.fragment(Order::PAGE_2M, 26); // leaves one free extent of 2 MiB
    let report = exchange(&mut xen, Gfn::new(700)).expect("split");
    assert_eq!(report.outcome, Outcome::SplitSuperpage);
    assert!(!xen.is_superpage(Gfn::new(700)));
    assert!(memory(&xen) == before);
    assert_eq!((xen.nr_orphans(), xen.nr_mapped(), report.held), (0, 0, vec![]));
}

#[test]
fn nothing_is_populated_where_the_guest_has_mapped_anothers_memory() {
    for offset in [0, 5, 511] {
        let mut xen = guest();
        let before = memory(&xen);
        // A grant: no memory of the guest's, so that it cannot be mapped, and yet no hole.
        xen.page_types.insert(Gfn::new(SCRATCH_REGION.raw() + offset), PageType::Ram);
        let report = exchange(&mut xen, Gfn::new(700)).expect("the page alone");
        assert_eq!(report.outcome, Outcome::Page);
        assert!(
            populated(&xen).iter().all(|call| matches!(call, Call::Populate { order: Order::PAGE_4K, .. }))
        );
        assert!(memory(&xen) == before);
    }
}

#[test]
fn without_any_superpage_the_page_alone_is_exchanged() {
    let mut xen = guest();
    let before = memory(&xen);
    xen.fragment(Order::PAGE_2M, usize::MAX);
    let report = exchange(&mut xen, Gfn::new(700)).expect("split");
    assert_eq!((report.outcome, xen.is_superpage(Gfn::new(700))), (Outcome::Page, false));
    assert!(memory(&xen) == before);
}

#[test]
fn one_page_of_room_under_max_pages_is_enough() {
    let mut xen = guest();
    xen.max_pages = xen.nr_owned() + 1;
    assert_eq!(exchange(&mut xen, Gfn::new(700)).expect("one page").outcome, Outcome::Page);
    xen.max_pages = xen.nr_owned();
    assert_eq!(exchange(&mut xen, Gfn::new(701)), Err(Error::NoMemory));
}

#[test]
fn the_failing_frame_is_retired_before_free_memory_is_beside_it() {
    for gfn in [512, 700, 701, 767, 1023, 0x2003].map(Gfn::new) {
        let mut xen = guest();
        exchange(&mut xen, gfn).expect("exchanged");
        assert_eq!(xen.nr_cut_out(), 0, "{gfn}");
    }
}

#[test]
fn old_frames_are_scrubbed() {
    let mut xen = guest();
    let old = xen.frame(Gfn::new(0x2003)).expect("populated");
    xen.hold(old);
    let report = exchange(&mut xen, Gfn::new(0x2003)).expect("held, which nobody can see before");
    assert_eq!(report.held, [old]);
    assert_eq!(xen.offline_status(old), Offline::Pending);
    assert_eq!(xen.contents_of(old), [0; 4096]);
}

#[test]
fn what_waits_shows_the_guest_nothing_of_others() {
    for gfn in [0x2003, 700].map(Gfn::new) {
        let mut xen = guest();
        let exchange = Exchange::prepare(&request(xen.frame(gfn).expect("populated")), &mut xen);
        let exchange = exchange.expect("fine");
        for &waiting in &exchange.scratch {
            let page = xen.page(waiting).expect("populated");
            let original = Gfn::new(gfn.align_down(Order::PAGE_2M).raw() + waiting.raw() % 512);
            assert!(page == [0; 4096] || Some(page) == xen.page(original), "{waiting}");
        }
        assert_eq!(exchange.finish(&mut xen), Ok(None));
    }
}

/// A guest that changes what waits after the exchange was prepared; it must not own more pages than before.
fn assert_owns_no_more(gfn: Gfn, change: impl Fn(&mut FakeXen)) {
    for grants in [false, true] {
        let mut xen = guest();
        let mfn = xen.frame(gfn).expect("populated");
        xen.offline(mfn);
        let owned = xen.nr_owned();
        let mut exchange = Exchange::prepare(&request(mfn), &mut xen).expect("fine");
        xen.as_guest(&change);
        if grants {
            xen.granted.insert(gfn, Gref::new(9));
        }
        let swapped = exchange.swap(&mut xen);
        assert!(swapped.is_err() || !grants, "{swapped:?}");
        assert!(exchange.finish(&mut xen).is_ok());
        assert!(xen.nr_owned() <= owned, "{} pages, {owned} before", xen.nr_owned());
        assert!(xen.frame(SCRATCH_REGION).is_none() && xen.nr_mapped() == 0);
    }
}

#[test]
fn a_guest_that_gives_up_what_waits_ends_with_no_more_pages() {
    for waiting in [0, 1, 188, 511] {
        let hole = Gfn::new(SCRATCH_REGION.raw() + waiting);
        assert_owns_no_more(Gfn::new(700), |xen| _ = xen.decrease_reservation(Order::PAGE_4K, &[hole]));
    }
    let all: Vec<Gfn> = region(SCRATCH_REGION).into_iter().step_by(2).collect();
    assert_owns_no_more(Gfn::new(700), |xen| _ = xen.decrease_reservation(Order::PAGE_4K, &all));
}

#[test]
fn a_guest_that_puts_its_own_page_where_one_waits_ends_with_no_more_pages() {
    for waiting in [0, 188, 511] {
        let place = Gfn::new(SCRATCH_REGION.raw() + waiting);
        assert_owns_no_more(Gfn::new(700), |xen| {
            xen.move_page(Gfn::new(0x2004), place).expect("the guest's own affair");
        });
    }
}

#[test]
fn what_cannot_be_given_back_is_scrubbed_and_waits_for_the_repair() {
    for stuck in [SCRATCH_REGION.raw() + 3, SCRATCH_REGION.raw() + 188] {
        let mut xen = guest();
        let (before, owned) = (memory(&xen), xen.nr_owned());
        xen.unremovable.insert(Gfn::new(stuck));
        assert_eq!(exchange(&mut xen, Gfn::new(700)), Err(release::DECREASE_FAILED));
        xen.unremovable.clear();
        assert_eq!(repair(None, Some(SCRATCH_REGION), &mut xen), Ok(()));
        assert!(memory(&xen) == before && xen.nr_owned() == owned);
    }
}

#[test]
fn a_neighbour_that_somebody_holds_is_told_until_he_lets_go() {
    let mut xen = guest();
    let neighbour = xen.frame(Gfn::new(701)).expect("populated");
    xen.hold(neighbour);
    let mut held = exchange(&mut xen, Gfn::new(700)).expect("held, which nobody can see before").held;
    assert_eq!(held, [neighbour]);
    xen.let_go(neighbour);
    xen.retain_orphans(&mut held);
    assert_eq!((held, xen.nr_orphans()), (vec![], 0));
}

#[test]
fn a_guest_that_balloons_meanwhile_holds_nothing() {
    let mut xen = guest();
    let mfn = xen.frame(Gfn::new(700)).expect("populated");
    let mut exchange = Exchange::prepare(&request(mfn), &mut xen).expect("fine");
    exchange.swap(&mut xen).expect("fine");
    xen.populate_physmap(Order::PAGE_4K, &[Gfn::new(0x3000)]);
    assert_eq!(exchange.finish(&mut xen).expect("fine").expect("swapped").held, []);
}

#[test]
fn a_read_only_page_stays_read_only() {
    let mut xen = guest();
    let gfn = Gfn::new(0x2003);
    xen.page_types.insert(gfn, PageType::ReadOnly);
    let report = exchange(&mut xen, gfn).expect("a ROM");
    assert_eq!((report.lost_read_only, xen.page_type(gfn)), (None, Ok(PageType::ReadOnly)));
}

/// Expects this refusal of the frame at `gfn` of a guest changed so, and the guest untouched.
fn assert_refused(gfn: Gfn, reserved: &[Reserved], change: impl FnOnce(&mut FakeXen), error: Error) {
    let mut xen = guest();
    let mfn = xen.frame(gfn).expect("populated");
    change(&mut xen);
    let before = (memory(&xen), frames(&xen), xen.nr_owned(), xen.nr_free());
    let request = Request { reserved, ..request(mfn) };
    assert_eq!(Exchange::prepare(&request, &mut xen).map(|exchange| exchange.plan), Err(error), "{error}");
    assert!((memory(&xen), frames(&xen), xen.nr_owned(), xen.nr_free()) == before, "{error}");
    assert_eq!((xen.nr_mapped(), populated(&xen)), (0, vec![]), "{error}");
}

#[test]
fn what_must_stay_is_refused_by_name_and_nothing_is_touched() {
    let gfn = Gfn::new(0x2003);
    let blocked = |gfn, blocker| Error::Refused(Refusal::Blocked { gfn, blocker });
    let vram = Reserved { first: Gfn::new(0x2000), nr_frames: 16, role: Role::DeviceModel };
    let none = |_: &mut FakeXen| {};
    assert_refused(STORE, &[], none, blocked(STORE, Blocker::Reserved(Role::Store)));
    assert_refused(gfn, &[vram], none, blocked(gfn, Blocker::Reserved(Role::DeviceModel)));
    let grant = |xen: &mut FakeXen| _ = xen.granted.insert(gfn, Gref::new(9));
    assert_refused(gfn, &[], grant, blocked(gfn, Blocker::Granted(Gref::new(9))));
    let table = |xen: &mut FakeXen| _ = xen.grant_table.insert(gfn);
    assert_refused(gfn, &[], table, blocked(gfn, Blocker::Reserved(Role::XenHeap)));
    let broken = |xen: &mut FakeXen| _ = xen.unmappable.insert(gfn);
    assert_refused(gfn, &[], broken, blocked(gfn, Blocker::Unmappable(Errno::EINVAL)));
    for page_type in [PageType::None, PageType::Ioreq] {
        let change = |xen: &mut FakeXen| _ = xen.page_types.insert(gfn, page_type);
        assert_refused(gfn, &[], change, blocked(gfn, Blocker::Type(page_type)));
    }
    let params =
        [(5, gfn.raw()), (12, gfn.raw() << 12), (32, gfn.raw() - 7), (37, (gfn.raw() << 12) | 128 << 32)];
    for ((index, value), role) in
        params.into_iter().zip([Role::Ioreq, Role::IdentPt, Role::Ioreq, Role::VmTss])
    {
        let change = |xen: &mut FakeXen| _ = xen.params.insert(index, value);
        assert_refused(gfn, &[], change, blocked(gfn, Blocker::Reserved(role)));
    }
}

#[test]
fn a_frame_without_a_gfn_is_refused() {
    let mut xen = guest();
    let mfn = Mfn::new((1 << 14) - 1);
    assert_eq!(
        Exchange::prepare(&request(mfn), &mut xen).map(|exchange| exchange.plan),
        Err(Error::NoGfn { mfn })
    );
}

#[test]
fn a_frame_that_is_another_domains_is_refused() {
    let (gfn, mfn, got) = (Gfn::new(5), Mfn::new(0x77), Mfn::new(0x88));
    let mut frames = vec![None; 512];
    frames[5] = Some(got);
    for blockers in [vec![], vec![(gfn, Blocker::Reserved(Role::Store))]] {
        let survey = Survey { mfn, gfn, frames: frames.clone(), blockers };
        assert_eq!(survey.plan(), Err(Refusal::NotTheTargets { gfn, got }));
    }
}

#[test]
fn a_superpage_with_a_page_that_must_stay_is_split() {
    let mut xen = guest();
    xen.granted.insert(Gfn::new(513), Gref::new(9));
    let report = exchange(&mut xen, Gfn::new(700)).expect("the page itself is free");
    assert_eq!((report.outcome, xen.is_superpage(Gfn::new(700))), (Outcome::Page, false));
}

#[test]
fn a_page_that_xen_has_pinned_is_refused_before_anything_is_populated() {
    for gfn in [0x2003, 700].map(Gfn::new) {
        for pinned in Pinned::ALL {
            let blocked = Refusal::Blocked { gfn, blocker: Blocker::LooksPinned };
            assert_refused(gfn, &[], |xen| xen.pin(gfn, pinned), blocked.into());
        }
    }
}

#[test]
fn what_xen_says_of_a_page_goes_before_its_look() {
    let gfn = Gfn::new(700);
    let change = |xen: &mut FakeXen| {
        xen.pin(gfn, Pinned::VcpuInfo);
        xen.granted.insert(gfn, Gref::new(9));
    };
    let blocked = Refusal::Blocked { gfn, blocker: Blocker::Granted(Gref::new(9)) };
    assert_refused(gfn, &[], change, blocked.into());
}

/// A guest with a page that Xen has pinned in its second superpage.
fn guest_with_pinned(neighbour: u64, pinned: Pinned) -> FakeXen {
    let mut xen = guest();
    xen.pin(Gfn::new(neighbour), pinned);
    xen
}

#[test]
fn beside_a_page_that_xen_has_pinned_a_page_is_exchanged_alone_after_one_survey() {
    let gfn = Gfn::new(700);
    for (neighbour, pinned) in [512, 699, 1023].into_iter().zip(Pinned::ALL) {
        let mut xen = guest_with_pinned(neighbour, pinned);
        let (before, owned) = (memory(&xen), xen.nr_owned());
        let frames_but_one = |xen: &FakeXen| {
            let mut frames = frames(xen);
            frames.retain(|(at, _)| *at != gfn);
            frames
        };
        let others = frames_but_one(&xen);
        let old = xen.frame(gfn).expect("populated");
        let mut exchange = Exchange::prepare(&request(old), &mut xen).expect("the page itself is free");
        assert_eq!((exchange.plan(), exchange.alone()), (Plan::Page, Some(Alone::Neighbour)), "{pinned:?}");
        assert_eq!(populated(&xen), [Call::Populate { order: Order::PAGE_4K, nr_asked: 1, nr_done: 1 }]);
        exchange.swap(&mut xen).expect("nothing fails");
        let report = exchange.finish(&mut xen).expect("nothing fails").expect("swapped");
        assert_eq!((report.outcome, report.held, report.old), (Outcome::Page, vec![], old));
        assert_eq!(populated(&xen).len(), 1, "{pinned:?}");
        assert!(memory(&xen) == before && frames_but_one(&xen) == others, "{pinned:?}");
        assert_eq!((xen.nr_owned(), xen.nr_orphans(), xen.nr_mapped()), (owned, 0, 0), "{pinned:?}");
    }
}

#[test]
fn what_the_guest_changes_meanwhile_is_found_before_anything_is_swapped() {
    let gfn = Gfn::new(0x2003);
    let swap = |change: &dyn Fn(&mut FakeXen)| {
        let mut xen = guest();
        let mfn = xen.frame(gfn).expect("populated");
        let mut exchange = Exchange::prepare(&request(mfn), &mut xen).expect("fine");
        xen.as_guest(change);
        let before = xen.nr_owned();
        let error = exchange.swap(&mut xen).expect_err("changed");
        assert_eq!(exchange.finish(&mut xen), Ok(None));
        assert_eq!(xen.nr_mapped(), 0);
        assert!(xen.gfns().all(|gfn| !SCRATCH_PAGES.contains(&gfn)));
        assert!(xen.nr_owned() < before && xen.nr_orphans() == 0);
        error
    };
    let grant = swap(&|xen| _ = xen.granted.insert(gfn, Gref::new(4)));
    assert_eq!(grant, Error::Refused(Refusal::Blocked { gfn, blocker: Blocker::Granted(Gref::new(4)) }));
    let moved = swap(&|xen| xen.move_page(Gfn::new(0x2004), gfn).expect("the guest's own affair"));
    assert_eq!(moved, Error::Moved { gfn });
}

#[test]
fn what_the_guest_writes_meanwhile_is_kept() {
    for gfn in [Gfn::new(0x2003), Gfn::new(700)] {
        let mut xen = guest();
        let mut exchange =
            Exchange::prepare(&request(xen.frame(gfn).expect("populated")), &mut xen).expect("fine");
        xen.write(gfn, b"written while the exchange was prepared");
        let before = xen.page(gfn);
        exchange.swap(&mut xen).expect("fine");
        exchange.finish(&mut xen).expect("fine");
        assert!(xen.page(gfn) == before);
    }
}

#[test]
fn a_page_that_xen_loses_on_the_way_is_populated_and_filled_anew() {
    let mut xen = guest();
    let (gfn, before) = (Gfn::new(0x2003), memory(&guest()));
    xen.unmovable.insert(gfn);
    let report = exchange(&mut xen, gfn).expect("refilled");
    assert_eq!(report.held.len(), 1, "the page that was to be moved has no gfn now");
    assert!(memory(&xen) == before);
    assert_eq!((xen.nr_orphans(), xen.nr_mapped()), (1, 0));
}

#[test]
fn a_superpage_that_goes_only_in_part_is_patched() {
    for stuck in [520, 700, 1000] {
        let mut xen = guest();
        let (gfn, before) = (Gfn::new(700), memory(&guest()));
        xen.unremovable.insert(Gfn::new(stuck));
        let mfn = xen.frame(gfn).expect("populated");
        xen.offline(mfn);
        let mut exchange = Exchange::prepare(&request(mfn), &mut xen).expect("fine");
        let outcome = exchange.swap(&mut xen);
        exchange.finish(&mut xen).expect("fine");
        assert!(memory(&xen) == before, "stuck at {stuck}");
        assert_eq!((xen.nr_orphans(), xen.nr_mapped()), (0, 0), "stuck at {stuck}");
        // A page that cannot be taken away cannot be moved over either.
        let refused = Error::Xen { step: Step::Move, errno: Errno::EINVAL };
        let expected = if stuck == 700 { Err(refused) } else { Ok(Outcome::SplitSuperpage) };
        assert_eq!(outcome, expected, "stuck at {stuck}");
    }
}

#[test]
fn a_back_end_that_copies_into_a_granted_page_at_any_moment_loses_nothing() {
    let (failing, granted) = (Gfn::new(700), Gfn::new(701));
    let guest_with_grant = || {
        let mut xen = guest();
        xen.granted.insert(granted, Gref::new(9));
        xen
    };
    let mut sound = guest_with_grant();
    let report = exchange(&mut sound, failing).expect("the page itself is not granted");
    assert_eq!(report.outcome, Outcome::Page, "a superpage with a granted page is split");
    for nr in telling(&sound.ledger.0) {
        let mut xen = guest_with_grant();
        xen.back_end = Some((nr, granted));
        exchange(&mut xen, failing).expect("the page itself is not granted");
        let page = xen.page(granted).expect("populated");
        assert!(page.starts_with(FakeXen::COPIED), "copied before call {nr}");
    }
}

/// The calls that are worth failing: of many equal ones in a row, the first and the last.
fn telling(calls: &[Call]) -> impl Iterator<Item = usize> {
    let is_inner =
        |nr: usize| nr > 0 && calls.get(nr - 1) == calls.get(nr) && calls.get(nr) == calls.get(nr + 1);
    (0..calls.len()).filter(move |nr| !is_inner(*nr))
}

/// Runs a whole exchange with one call failing; the guest must be whole and the page exchanged all the same.
fn sweep(guest: impl Fn() -> FakeXen, gfn: Gfn) {
    let (mut sound, before, owned) = (guest(), memory(&guest()), guest().nr_owned());
    exchange(&mut sound, gfn).expect("nothing fails");
    let calls = &sound.ledger.0;
    for nr in telling(calls) {
        let mut xen = guest();
        let old = xen.frame(gfn).expect("populated");
        xen.fail_call = Some(nr);
        let outcome = exchange(&mut xen, gfn);
        assert!(memory(&xen) == before, "call {nr}: {outcome:?}");
        assert_eq!((xen.nr_orphans(), xen.nr_mapped()), (0, 0), "call {nr}: {outcome:?}");
        assert_eq!(xen.nr_owned(), owned, "call {nr}: {outcome:?}");
        let is_exchanged = xen.offline_status(old) == Offline::Done;
        assert_eq!(outcome.is_ok(), is_exchanged, "call {nr}: {outcome:?}");
        assert!(outcome.is_ok(), "one failure is retried, call {nr}, {:?}: {outcome:?}", calls[nr]);
    }
}

#[test]
fn whichever_call_fails_once_a_page_is_exchanged_all_the_same() {
    sweep(guest, Gfn::new(0x2003));
}

#[test]
fn whichever_call_fails_once_a_superpage_is_exchanged_all_the_same() {
    sweep(guest, Gfn::new(700));
}

#[test]
fn whichever_call_fails_once_a_read_only_page_is_exchanged_and_stays_read_only() {
    let gfn = Gfn::new(0x2003);
    let rom = || {
        let mut xen = guest();
        xen.page_types.insert(gfn, PageType::ReadOnly);
        xen
    };
    sweep(rom, gfn);
    for call in ["set_read_only", "note_modified"] {
        let mut sound = rom();
        exchange(&mut sound, gfn).expect("nothing fails");
        let mut xen = rom();
        xen.fail_call = sound.ledger.0.iter().position(|made| *made == Call::Other(call));
        assert!(xen.fail_call.is_some(), "{call}");
        exchange(&mut xen, gfn).expect("one failure is retried");
        xen.fail_call = None;
        assert_eq!(xen.page_type(gfn), Ok(PageType::ReadOnly), "{call}");
    }
}

#[test]
fn whichever_call_fails_once_a_superpage_is_exchanged_though_the_host_is_fragmented() {
    let fragmented = || {
        let mut xen = guest();
        xen.fragment(Order::PAGE_2M, 26); // leaves one free extent of 2 MiB: the superpage is patched
        xen
    };
    sweep(fragmented, Gfn::new(700));
}

/// As [`sweep`], where the exchange may fail: then the guest must be as it was. `nr_stray` frames may stay with it that
/// were to be moved and that Xen has lost.
fn sweep_a_failing_host(guest: impl Fn() -> FakeXen, gfn: Gfn, nr_stray: u64) {
    let (mut sound, before) = (guest(), memory(&guest()));
    let _ = exchange(&mut sound, gfn);
    for nr in telling(&sound.ledger.0) {
        let mut xen = guest();
        xen.fail_call = Some(nr);
        let outcome = exchange(&mut xen, gfn);
        assert!(!matches!(outcome, Err(Error::Lost { .. })), "call {nr}: {outcome:?}");
        assert!(memory(&xen) == before, "call {nr}: {outcome:?}");
        assert!(xen.nr_orphans() <= nr_stray && xen.nr_mapped() == 0, "call {nr}: {outcome:?}");
    }
}

#[test]
fn whichever_call_fails_once_a_page_that_cannot_be_moved_over_is_filled_anew() {
    let unmovable = || {
        let mut xen = guest();
        xen.unmovable.insert(Gfn::new(0x2003));
        xen
    };
    sweep_a_failing_host(unmovable, Gfn::new(0x2003), 1);
}

#[test]
fn whichever_call_fails_once_a_superpage_that_goes_only_in_part_is_whole() {
    for stuck in [520, 700, 1000] {
        let in_part = || {
            let mut xen = guest();
            xen.unremovable.insert(Gfn::new(stuck));
            xen
        };
        sweep_a_failing_host(in_part, Gfn::new(700), 0);
    }
}

#[test]
fn whichever_call_fails_once_a_page_beside_a_pinned_one_is_exchanged_all_the_same() {
    sweep(|| guest_with_pinned(699, Pinned::ControlBlock), Gfn::new(700));
}

#[test]
fn whichever_call_fails_once_a_pinned_page_is_refused_all_the_same() {
    let gfn = Gfn::new(700);
    let pinned_guest = || guest_with_pinned(gfn.raw(), Pinned::VcpuInfo);
    let reference = pinned_guest();
    let refused = Err(Error::Refused(Refusal::Blocked { gfn, blocker: Blocker::LooksPinned }));
    let mut sound = pinned_guest();
    assert_eq!(exchange(&mut sound, gfn), refused);
    for nr in telling(&sound.ledger.0) {
        let mut xen = pinned_guest();
        xen.fail_call = Some(nr);
        assert_eq!(exchange(&mut xen, gfn), refused, "call {nr}");
        assert!(memory(&xen) == memory(&reference) && frames(&xen) == frames(&reference), "call {nr}");
        assert_eq!((xen.nr_free(), xen.nr_mapped()), (reference.nr_free(), 0), "call {nr}");
    }
}

#[test]
fn a_call_that_fails_for_good_leaves_the_guest_as_it_was() {
    for gfn in [0x2003, 700].map(Gfn::new) {
        for name in ["param", "page_type", "grant_in_force", "map", "populate", "move_page", "decrease"] {
            let mut xen = guest();
            let before = (memory(&xen), frames(&xen));
            xen.fail_name = Some(name);
            let outcome = exchange(&mut xen, gfn);
            assert!(!matches!(outcome, Err(Error::Lost { .. })), "{name}, {gfn}: {outcome:?}");
            let is_done = outcome.is_ok();
            xen.fail_name = None;
            // What could not be given back waits where nobody looks.
            let left = repair(None, Some(SCRATCH_REGION), &mut xen);
            assert_eq!(left, Ok(()), "{name}, {gfn}");
            assert!(memory(&xen) == before.0, "{name}, {gfn}: {outcome:?}");
            assert!(is_done || frames(&xen) == before.1, "{name}, {gfn}: {outcome:?}");
            assert_eq!((xen.nr_orphans(), xen.nr_mapped()), (0, 0), "{name}, {gfn}: {outcome:?}");
        }
    }
}

/// Runs a stub to its death at [`FakeXen::die_at`].
fn die(stub: impl FnOnce()) {
    let death = catch_unwind(AssertUnwindSafe(stub)).expect_err("the stub dies");
    let text = death.downcast_ref::<String>().map_or("?", String::as_str);
    assert_eq!(text, FakeXen::DEATH);
}

/// Expects that the dead stub was alone in holding bytes of the guest only while the old frames were out of it and not yet
/// scrubbed: from the taking of a superpage to the end of the swap.
fn assert_spilled_at_most(spilled: &[Mfn], old: &[Option<Mfn>], in_swap: bool, nr: usize) {
    assert!(spilled.iter().all(|mfn| old.contains(&Some(*mfn))), "dead at call {nr}");
    assert!(spilled.is_empty() || in_swap, "dead at call {nr}: {} frames", spilled.len());
}

/// Has a stub die at each call of an exchange, and another put the guest right with what dom0 knows.
fn outlive(guest: impl Fn() -> FakeXen, gfn: Gfn) {
    let mut sound = guest();
    exchange(&mut sound, gfn).expect("nothing fails");
    let (calls, before, owned) = (&sound.ledger.0, memory(&guest()), guest().nr_owned());
    for nr in telling(calls) {
        let mut xen = guest();
        let mfn = xen.frame(gfn).expect("populated");
        xen.offline(mfn);
        let (in_swap, mut asked, mut is_swapped, mut expected) =
            (Cell::new(false), None, false, before.clone());
        let old: Vec<_> = region(gfn).into_iter().map(|gfn| xen.frame(gfn)).collect();
        xen.die_at = Some(nr);
        die(|| {
            let mut exchange = Exchange::prepare(&request(mfn), &mut xen).expect("fine");
            xen.write(gfn, b"written while the exchange was prepared");
            expected = memory_but_scratch(&xen);
            let is_whole = exchange.plan() == Plan::Superpage;
            asked = is_whole.then_some(Swapping { gfn, mfn, waiting: SCRATCH_REGION });
            in_swap.set(true);
            exchange.swap(&mut xen).expect("fine");
            in_swap.set(false);
            is_swapped = true;
            exchange.finish(&mut xen).expect("fine");
        });
        xen.bury();
        let spilled: Vec<Mfn> = xen.spilled().collect();
        assert_spilled_at_most(&spilled, &old, in_swap.get(), nr);
        // Dom0 may have died too, before it could note that the swap had ended.
        for swapping in [asked.filter(|_| !is_swapped), asked] {
            let mut xen = xen.clone();
            repair(swapping, Some(SCRATCH_REGION), &mut xen).expect("nothing fails any more");
            assert!(memory(&xen) == expected, "dead at call {nr}");
            assert_eq!(
                (xen.nr_owned(), xen.nr_mapped(), xen.nr_orphans()),
                (owned, 0, 0),
                "dead at call {nr}"
            );
            assert!(xen.spilled().eq(spilled.iter().copied()), "dead at call {nr}");
        }
    }
}

#[test]
fn a_repair_in_which_a_call_fails_or_the_stub_dies_can_be_done_again() {
    let gfn = Gfn::new(700);
    let (mut sound, before) = (guest(), memory(&guest()));
    exchange(&mut sound, gfn).expect("nothing fails");
    let is_end = |call: &Call| *call == Call::Populate { order: Order::PAGE_2M, nr_asked: 1, nr_done: 1 };
    let died_at = sound.ledger.0.iter().rposition(is_end).expect("a superpage");
    let left_by_the_dead = |die_at| {
        let mut xen = guest();
        let mfn = xen.frame(gfn).expect("populated");
        xen.die_at = Some(die_at);
        die(|| _ = exchange(&mut xen, gfn));
        xen.bury();
        xen.ledger.0.clear();
        (xen, Some(Swapping { gfn, mfn, waiting: SCRATCH_REGION }))
    };
    // With the superpage gone, and with another at its place that is not filled.
    for die_at in [died_at, died_at + 1] {
        let (mut whole, swapping) = left_by_the_dead(die_at);
        repair(swapping, Some(SCRATCH_REGION), &mut whole).expect("nothing fails");
        for nr in telling(&whole.ledger.0) {
            let (mut xen, swapping) = left_by_the_dead(die_at);
            xen.fail_call = Some(nr);
            let outcome = repair(swapping, Some(SCRATCH_REGION), &mut xen);
            xen.fail_call = None;
            if let Err(error) = outcome {
                assert!(error.leaves_guest_intact(), "call {nr}: {error}");
                repair(swapping, Some(SCRATCH_REGION), &mut xen).expect("nothing fails any more");
            }
            assert!(memory(&xen) == before, "dead at call {die_at}, call {nr} of the repair");
            assert_eq!((xen.nr_orphans(), xen.nr_mapped()), (0, 0), "call {nr}");
            let (mut xen, swapping) = left_by_the_dead(die_at);
            let spilled: Vec<Mfn> = xen.spilled().collect();
            xen.die_at = Some(nr);
            die(|| _ = repair(swapping, Some(SCRATCH_REGION), &mut xen));
            xen.bury();
            repair(swapping, Some(SCRATCH_REGION), &mut xen).expect("nothing fails any more");
            assert!(memory(&xen) == before, "dead at call {die_at} and at call {nr} of the repair");
            assert!(xen.spilled().eq(spilled), "dead at call {die_at} and at call {nr} of the repair");
        }
    }
}

#[test]
fn whenever_the_stub_dies_another_can_put_a_page_right() {
    outlive(guest, Gfn::new(0x2003));
}

#[test]
fn whenever_the_stub_dies_another_can_put_a_superpage_right() {
    outlive(guest, Gfn::new(700));
}

#[test]
fn whenever_the_stub_dies_another_can_put_a_superpage_right_on_a_fragmented_host() {
    let fragmented = || {
        let mut xen = guest();
        xen.fragment(Order::PAGE_2M, 26);
        xen
    };
    outlive(fragmented, Gfn::new(700));
}

#[test]
fn whenever_the_stub_dies_another_can_put_a_page_beside_a_pinned_one_right() {
    outlive(|| guest_with_pinned(699, Pinned::EventArray), Gfn::new(700));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_exchanges_one_after_another_leave_the_guest_as_it_was(
        offsets in proptest::collection::vec(0_usize..2064, 1..12),
        nr_spoiled in 0_usize..32,
    ) {
        let mut xen = guest();
        let before = memory(&xen);
        let owned = xen.nr_owned();
        xen.fragment(Order::PAGE_2M, nr_spoiled);
        for offset in offsets {
            let gfn = xen.gfns().nth(offset).expect("a guest of 2065 pages");
            let old = xen.frame(gfn).expect("populated");
            let was_superpage = xen.is_superpage(gfn);
            let report = exchange(&mut xen, gfn).expect("an ordinary page");
            prop_assert_eq!(xen.offline_status(old), Offline::Done);
            prop_assert_eq!(xen.is_superpage(gfn), report.outcome == Outcome::Superpage);
            prop_assert!(was_superpage || report.outcome != Outcome::Superpage || xen.is_superpage(gfn));
        }
        prop_assert!(memory(&xen) == before);
        prop_assert_eq!((xen.nr_owned(), xen.nr_orphans(), xen.nr_mapped()), (owned, 0, 0));
    }
}
