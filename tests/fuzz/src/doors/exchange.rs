//! Exchange and repair, with calls that fail, a stub that dies and a guest that changes its own memory meanwhile.

use crate::choices::Choices;
use migration::exchange::{self, Exchange, Plan, Request, Swapping};
use migration::fake::FakeXen;
use migration::sample::contents;
use migration::xen::{Xen, XenExchange};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use xen_abi::types::{Gfn, Gref, Mfn, Order};

/// Where a new superpage may wait: past the guest.
const SCRATCH_REGION: Gfn = Gfn::new(0x1000);

/// The most pages that a guest which meddles may end up with beyond its own: those that waited behind a hole that it made,
/// and one.
const MAX_EXCESS: u64 = 513;

const CALLS: [&str; 4] = ["map", "populate", "decrease", "move_page"];

/// Exchanges one page of a guest of four superpages and 16 pages.
///
/// # Panics
/// Something is left mapped; or, of a guest that keeps still and with at most one failing call: its memory is not as it was,
/// or it owns more or less than before.
pub fn exchange(input: &[u8]) {
    let mut choices = Choices::new(input);
    let mut xen = guest();
    let owned = xen.nr_owned();
    xen.max_pages = owned + if choices.one_in(4) { choices.below(1100) } else { 1024 };
    if choices.one_in(4) {
        xen.fragment(Order::PAGE_2M, choices.index(30));
    }
    let gfn = Gfn::new(if choices.one_in(3) { 0x2000 + choices.below(16) } else { choices.below(2048) });
    let Some(mfn) = xen.frame(gfn) else { return };
    xen.offline(mfn);
    xen.fail_call = choices.one_in(3).then(|| choices.index(30));
    xen.fail_name = if choices.one_in(6) { choices.pick(&CALLS) } else { None };
    let is_still = choices.one_in(2);
    let is_lost = phases(mfn, is_still, &mut xen, &mut choices);
    assert!(!is_lost || xen.fail_name.is_some() || !is_still, "a page is lost by one failing call");
    xen.unmap();
    assert_eq!(xen.nr_mapped(), 0, "mapped frames");
    if is_still && xen.fail_name.is_none() {
        assert!(is_whole(&xen), "the guest's memory is as it was");
        let may_wait = if xen.fail_call.is_some() { MAX_EXCESS } else { 0 };
        assert!(
            (owned..=owned + may_wait).contains(&xen.nr_owned()),
            "{} pages, {owned} before",
            xen.nr_owned()
        );
    }
}

/// From prepare to finish, or to repair where the stub dies; tells whether a page was given up as lost.
fn phases(mfn: Mfn, is_still: bool, xen: &mut FakeXen, choices: &mut Choices<'_>) -> bool {
    let scratch_region = (!choices.one_in(5)).then_some(SCRATCH_REGION);
    let request = Request { mfn, reserved: &[], scratch_region, now_ns: FakeXen::NOW_NS };
    if !is_still {
        meddle(xen, choices);
    }
    let Ok(mut exchange) = Exchange::prepare(&request, xen) else { return false };
    if !is_still {
        meddle(xen, choices);
    }
    if choices.one_in(8) {
        xen.fail_name = choices.pick(&CALLS);
    }
    if choices.one_in(5) {
        xen.die_at = Some(xen.ledger.0.len() + choices.index(14));
    }
    let waiting = scratch_region.filter(|_| exchange.plan() == Plan::Superpage);
    let mut swapping = waiting.map(|waiting| Swapping { gfn: exchange.gfn(), mfn, waiting });
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let swapped = exchange.swap(xen);
        if swapped.is_ok() {
            swapping = None;
        }
        if !is_still {
            meddle(xen, choices);
        }
        let finished = exchange.finish(xen);
        (swapped.is_err_and(|error| !error.leaves_guest_intact()), finished.is_err())
    }));
    xen.die_at = None;
    let (is_lost, is_unfinished) = match ended {
        Ok(ended) => ended,
        Err(panic) => {
            let words = panic.downcast_ref::<&str>().copied();
            let words = words.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            if words != Some(FakeXen::DEATH) {
                resume_unwind(panic);
            }
            (false, true)
        }
    };
    if is_unfinished {
        xen.bury();
        xen.fail_call = None;
        // Every step may be done twice.
        for _ in 0..2 {
            let _ = exchange::repair(swapping, scratch_region, xen);
        }
    }
    is_lost
}

/// A guest of four superpages and some single pages, on a host of 64 MiB.
fn guest() -> FakeXen {
    static GUEST: OnceLock<FakeXen> = OnceLock::new();
    let make = || {
        let mut xen = FakeXen::new(1 << 14, 1 << 14);
        xen.populate_physmap(Order::PAGE_2M, &[0, 512, 1024, 1536].map(Gfn::new));
        xen.populate_physmap(Order::PAGE_4K, &(0x2000..0x2010).map(Gfn::new).collect::<Vec<_>>());
        for gfn in marked() {
            xen.write(gfn, &contents(gfn, 0)[..64]);
        }
        xen.ledger.0.clear();
        xen
    };
    GUEST.get_or_init(make).clone()
}

/// Pages with contents: enough to see a page that is missing or another, few enough for many executions.
fn marked() -> impl Iterator<Item = Gfn> {
    (0..2048).step_by(7).chain(0x2000..0x2010).map(Gfn::new)
}

fn is_whole(xen: &FakeXen) -> bool {
    let is_there = (0..2048).chain(0x2000..0x2010).all(|gfn| xen.frame(Gfn::new(gfn)).is_some());
    is_there && marked().all(|gfn| xen.page(gfn).is_some_and(|page| page[..64] == contents(gfn, 0)[..64]))
}

fn any_gfn(choices: &mut Choices<'_>) -> Gfn {
    Gfn::new(match choices.below(5) {
        0 => SCRATCH_REGION.raw() + choices.below(512),
        1 => 0xfef00 + choices.below(8),
        2 => 0x2000 + choices.below(16),
        _ => choices.below(2048),
    })
}

/// What a guest may do to its own memory while it runs.
fn meddle(xen: &mut FakeXen, choices: &mut Choices<'_>) {
    let die_at = xen.die_at.take();
    xen.as_guest(|xen| (0..choices.below(4)).for_each(|_| meddle_once(xen, choices)));
    xen.die_at = die_at;
}

fn meddle_once(xen: &mut FakeXen, choices: &mut Choices<'_>) {
    let gfn = any_gfn(choices);
    match choices.below(6) {
        0 => drop(xen.decrease_reservation(Order::PAGE_4K, &[gfn])),
        1 => {
            let to = any_gfn(choices);
            if to != gfn {
                let _ = xen.move_page(gfn, to);
            }
        }
        2 if xen.frame(gfn).is_none() => drop(xen.populate_physmap(Order::PAGE_4K, &[gfn])),
        3 => xen.write(gfn, b"guest writes"),
        4 => drop(xen.granted.insert(gfn, Gref::new(3))),
        _ => xen.granted.clear(),
    }
}
