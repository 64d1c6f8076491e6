use super::*;
use alloc::string::{String, ToString};

const LARGE: u64 = 1 << 20;

/// Bookkeeping for some GiB.
const MAP_BYTES: usize = 1 << 20;

fn gfns(raws: impl IntoIterator<Item = u64>) -> Vec<Gfn> {
    raws.into_iter().map(Gfn::new).collect()
}

fn everything(plan: &Plan) -> Outcome {
    Outcome {
        nr_populated_1g: plan.populate_1g.len(),
        nr_populated_2m: plan.populate_2m.len(),
        nr_populated_4k: plan.populate_4k.len(),
    }
}

/// A population on a Xen that allows no 1 GiB extents, and its next plan.
struct Bench {
    population: Population,
    plan: Plan,
}

impl Bench {
    fn new(max_pages: u64) -> Self {
        let mut population = Population::new(max_pages, 0, MAP_BYTES).expect("room");
        population.backoff_1g.record(1, 0);
        population.backoff_1g.record(1, 0);
        Self { population, plan: Plan::new() }
    }

    /// Names and plans once, and prints the plan.
    fn plan(&mut self, raws: impl IntoIterator<Item = u64>) -> String {
        let pages = gfns(raws);
        self.population.name(&pages).expect("within the guest");
        self.population.plan_pages(&pages, &mut self.plan).expect("within the reservation");
        self.plan.to_string()
    }

    /// Populates these pages on a Xen that does all it is asked for.
    fn populate(&mut self, raws: impl IntoIterator<Item = u64>) {
        let pages = gfns(raws);
        loop {
            self.population.name(&pages).expect("within the guest");
            self.population.plan_pages(&pages, &mut self.plan).expect("within the reservation");
            if self.plan.is_empty() {
                return;
            }
            self.commit();
        }
    }

    fn commit(&mut self) {
        self.population.commit(&self.plan, &everything(&self.plan));
    }

    fn holes(&mut self, first: u64, nr_frames: u64) -> String {
        let next = self.population.plan_holes(Gfn::new(first), nr_frames, &mut self.plan);
        assert_eq!(next, None);
        let text = self.plan.to_string();
        self.commit();
        self.population.note_holes(Gfn::new(first), nr_frames);
        text
    }

    fn unnamed(&mut self) -> String {
        assert_eq!(self.population.plan_unnamed(Gfn::new(0), &mut self.plan), None);
        let text = self.plan.to_string();
        self.commit();
        text
    }

    fn census(&self) -> (u64, u64, u64) {
        let census = self.population.census();
        (census.nr_1g, census.nr_2m, census.nr_4k)
    }
}

#[test]
fn two_adjacent_regions_become_two_superpages() {
    assert_eq!(Bench::new(LARGE).plan(0x200..0x600), "populate order 9: 0x200..0x600\n");
}

#[test]
fn the_order_of_the_pages_does_not_matter() {
    let plan = Bench::new(LARGE).plan((0x200..0x600).rev());
    assert_eq!(plan, "populate order 9: 0x200..0x600\n");
}

#[test]
fn one_page_of_an_untouched_region_brings_its_superpage() {
    assert_eq!(Bench::new(LARGE).plan([0x3ff]), "populate order 9: 0x200..0x400\n");
}

#[test]
fn a_page_that_comes_again_needs_nothing() {
    let mut bench = Bench::new(LARGE);
    bench.populate([5]);
    assert_eq!(bench.plan([5, 5, 6]), "");
}

#[test]
fn a_region_with_a_known_hole_comes_in_pages() {
    let mut bench = Bench::new(LARGE);
    assert_eq!(bench.holes(0xa0, 0x20), "");
    assert_eq!(bench.plan([0, 1, 1, 0xc0]), "populate order 0: 0x0..0x2 0xc0..0xc1\n");
}

#[test]
fn a_hole_in_a_superpage_gives_back_all_that_nobody_has_named() {
    let mut bench = Bench::new(LARGE);
    bench.populate(0..0xa0);
    assert_eq!(bench.holes(0xa0, 0x20), "give back order 0: 0xa0..0x200\n");
    assert_eq!(bench.plan(0xc0..0x200), "populate order 0: 0xc0..0x200\n");
    assert_eq!((bench.census(), bench.population.nr_owned()), ((0, 0, 0xa0), 0xa0));
}

#[test]
fn holes_where_nothing_is_ask_for_nothing() {
    let mut bench = Bench::new(LARGE);
    bench.populate(0..512);
    assert_eq!(bench.holes(512, LARGE), "");
    assert_eq!(bench.holes(1 << 40, 1 << 11), "");
    assert_eq!(bench.census(), (0, 1, 0));
}

#[test]
fn holes_over_a_whole_superpage_give_it_back_as_one() {
    let mut bench = Bench::new(LARGE);
    bench.populate(0..1024);
    assert_eq!(
        bench.holes(0x1ff, 0x201),
        "give back order 9: 0x200..0x400\ngive back order 0: 0x1ff..0x200\n"
    );
    assert_eq!(bench.census(), (0, 0, 511));
}

#[test]
fn what_was_never_named_goes_back_at_the_end() {
    let mut bench = Bench::new(LARGE);
    bench.populate([3]);
    bench.populate(0x200..0x400);
    assert_eq!(bench.unnamed(), "give back order 0: 0x0..0x3 0x4..0x200\n");
    assert_eq!((bench.census(), bench.population.nr_owned()), ((0, 1, 1), 513));
    assert_eq!(bench.unnamed(), "");
}

#[test]
fn a_giant_is_one_extent_and_its_first_hole_splits_it() {
    let mut bench =
        Bench { population: Population::new(LARGE, 0, MAP_BYTES).expect("room"), plan: Plan::new() };
    assert_eq!(bench.plan([7, 0x40001]), "populate order 18: 0x0..0x80000\n");
    bench.commit();
    assert_eq!(bench.census(), (2, 0, 0));
    bench.populate([7, 0x40001]);
    let next = bench.population.plan_holes(Gfn::new(0x3ff), 1, &mut bench.plan);
    assert_eq!(next, Some(Gfn::new(0x3ff)));
    assert_eq!(bench.plan.to_string(), "give back order 9: 0x200..0x40000\n");
    bench.commit();
    assert_eq!(bench.holes(0x3ff, 1), "");
    assert_eq!(bench.census(), (1, 1, 0));
    assert_eq!(
        bench.plan([0x400, 0x200]),
        "populate order 9: 0x400..0x600\npopulate order 0: 0x200..0x201\n"
    );
}

#[test]
fn a_giant_that_is_named_whole_stays() {
    let mut bench =
        Bench { population: Population::new(LARGE, 0, MAP_BYTES).expect("room"), plan: Plan::new() };
    for first in (0..1 << 18).step_by(1024) {
        bench.populate(first..first + 1024);
    }
    assert_eq!(bench.unnamed(), "");
    assert_eq!(bench.census(), (1, 0, 0));
}

#[test]
fn speculation_ends_where_the_reservation_does() {
    let mut bench = Bench::new(700);
    bench.populate([0]);
    assert_eq!(bench.plan([0x200]), "populate order 0: 0x200..0x201\n");
}

#[test]
fn a_region_that_is_shown_whole_takes_the_room_of_one_that_is_not() {
    let mut bench = Bench::new(700);
    bench.populate([0]);
    assert_eq!(bench.plan(0x200..0x400), "give back order 0: 0x1..0x200\n");
    bench.commit();
    assert_eq!(bench.plan(0x200..0x400), "populate order 9: 0x200..0x400\n");
}

#[test]
fn named_pages_never_make_room() {
    let mut bench = Bench::new(700);
    bench.populate(0..0x1ff);
    bench.populate(0x200..0x200 + 700 - 0x1ff);
    assert_eq!((bench.census(), bench.population.nr_owned()), ((0, 0, 700), 700));
    let error = bench.population.plan_pages(&gfns([0x1ff]), &mut bench.plan);
    assert_eq!(error, Err(Error::OverReservation { gfn: Gfn::new(0x1ff), max_pages: 700 }));
}

#[test]
fn a_superpage_and_many_single_pages_share_a_tight_reservation() {
    let mut bench = Bench::new(600);
    bench.holes(0x1ff, 1);
    bench.populate((0..200).chain([0x200]));
    assert_eq!((bench.census(), bench.population.nr_owned()), ((0, 0, 201), 201));
}

#[test]
fn nothing_is_populated_before_xen_has_answered() {
    let mut bench = Bench::new(LARGE);
    let first = bench.plan(0..1024);
    bench.population.commit(&bench.plan, &Outcome { nr_populated_2m: 1, ..Outcome::default() });
    assert_eq!(first, "populate order 9: 0x0..0x400\n");
    assert_eq!(bench.plan(0..1024), "populate order 0: 0x200..0x400\n");
    bench.population.commit(&bench.plan, &Outcome { nr_populated_4k: 12, ..Outcome::default() });
    assert_eq!(bench.plan(0..1024), "populate order 0: 0x20c..0x400\n");
    assert_eq!((bench.census(), bench.population.nr_owned()), ((0, 1, 12), 524));
}

#[test]
fn contiguous_memory_is_looked_for_again_ever_more_rarely() {
    let mut bench = Bench::new(LARGE);
    let mut tries = Vec::new();
    for region in 0..400_u64 {
        let pages = region * 512..region * 512 + 512;
        bench.plan(pages.clone());
        if !bench.plan.populate_2m.is_empty() {
            tries.push(region);
            bench.population.commit(&bench.plan, &Outcome::default());
        }
        bench.populate(pages);
    }
    assert_eq!(tries, [0, 1, 3, 7, 15, 31, 63, 127, 191, 255, 319, 383]);
}

#[test]
fn one_success_ends_the_waiting() {
    let mut bench = Bench::new(LARGE);
    bench.plan([0]);
    bench.population.commit(&bench.plan, &Outcome::default());
    bench.populate([0]);
    bench.populate([0x200]);
    assert_eq!(bench.census(), (0, 1, 1));
    assert_eq!(bench.plan([0x400]), "populate order 9: 0x400..0x600\n");
}

#[test]
fn pages_beyond_every_guest_are_refused_and_holes_are_not() {
    let mut population = Population::new(1000, 0, MAP_BYTES).expect("room");
    let end = Population::end();
    assert_eq!(end, Gfn::new(1 << 36));
    assert_eq!(population.name(&[end]), Err(Error::BeyondGuest { gfn: end, end }));
    assert_eq!(population.name(&[Gfn::new(end.raw() - 1)]), Ok(()));
    assert_eq!(population.plan_holes(end, u64::MAX >> 12, &mut Plan::new()), None);
    population.note_holes(end, 1);
}

#[test]
fn where_a_guests_memory_ends_does_not_depend_on_how_much_it_owns() {
    let mut bench = Bench::new(131_328);
    bench.populate((0..0x400).chain(0x16_bc00..0x16_be00).chain([0x100_0000]));
    assert_eq!((bench.census(), bench.population.nr_owned()), ((0, 4, 0), 2048));
    assert_eq!(bench.unnamed(), "give back order 0: 0x1000001..0x1000200\n");
    assert_eq!((bench.census(), bench.population.nr_owned()), ((0, 3, 1), 1537));
}

#[test]
fn a_guest_of_64_gib_is_kept_track_of_in_3_mib() {
    let mut population = Population::new(16 << 20, 0, 5 << 19).expect("room");
    for giant in 0..68 {
        population.name(&[Gfn::new(giant << 18)]).expect("room");
    }
}

#[test]
fn a_page_high_up_costs_no_more_than_its_own_gib() {
    let mut population = Population::new(1000, 0, MAP_BYTES).expect("room");
    population.name(&[Gfn::new(1 << 30)]).expect("room");
    assert!(MAP_BYTES - population.map.nr_bytes_left() < 48 << 10, "4 TiB up");
}

#[test]
fn a_guest_too_large_to_keep_track_of_is_an_error_that_says_what_is_missing() {
    for max_pages in [u64::MAX, 1 << 60, 31 << 18] {
        let error = Population::new(max_pages, 0, MAP_BYTES).expect_err("too large");
        let Error::TooLarge { max_pages: named, nr_missing } = error else { panic!("{error}") };
        assert_eq!(named, max_pages);
        let enough = usize::try_from(nr_missing).ok().and_then(|nr| nr.checked_add(MAP_BYTES));
        let is_enough = |bytes| Population::new(max_pages, 0, bytes).is_ok();
        assert!(nr_missing > 1 << 30 || enough.is_some_and(is_enough));
    }
}

#[test]
fn pages_all_over_the_place_take_no_more_than_the_bookkeeping_may() {
    let mut population = Population::new(LARGE, 0, MAP_BYTES).expect("room");
    let page = |nr: u64| Gfn::new((nr * 7) << 18);
    let nr_kept = (0..).take_while(|nr| population.name(&[page(*nr)]).is_ok()).count() as u64;
    assert!((20..31).contains(&nr_kept), "{nr_kept} GiB");
    let error = population.name(&[page(nr_kept)]).expect_err("the same again");
    assert!(
        matches!(error, Error::NoMemory { gfn, nr_missing } if gfn == page(nr_kept) && nr_missing > 0),
        "{error}"
    );
    assert_eq!(population.name(&[page(3)]), Ok(()), "what is kept stays");
}

#[test]
fn holes_all_over_the_place_leave_room_for_pages() {
    let mut bench = Bench::new(LARGE);
    for nr in 0..1000 {
        bench.holes((nr << 18) | 5, 1);
    }
    assert!(bench.population.map.nr_bytes_left() >= MAP_BYTES / 2);
    assert_eq!(bench.plan([6]), "populate order 0: 0x6..0x7\n", "a hole that is known");
    for nr in 0..28_u64 {
        bench.populate([(nr * 7) << 18]);
    }
    let (nr_1g, nr_2m, nr_4k) = bench.census();
    assert_eq!(nr_1g + nr_2m + nr_4k, 28);
}

#[test]
fn a_stub_gets_the_memory_that_its_guests_size_needs() {
    const GIB: u64 = 1 << 18;
    assert_eq!([0, 1, 64, 128].map(|gib| stub_memory_mib(gib * GIB)), [LEAST_MIB; 4]);
    assert_eq!([400, 1024].map(|gib| stub_memory_mib(gib * GIB)), [33, 75]);
    // The largest that Xen supports.
    assert_eq!(stub_memory_mib(12 * 1024 * GIB), 831);
    for gib in (0..12 * 1024).step_by(7) {
        let max_pages = gib * GIB + 12_345;
        let bytes = stub_memory_mib(max_pages) << 20;
        let heap = bytes - bytes / 256 - (5 << 20);
        let share = usize::try_from(heap / u64::from(HEAP_SHARE)).unwrap();
        let population = Population::new(max_pages, 0, share);
        assert!(population.is_ok(), "{gib} GiB: {:?}", population.err());
    }
    assert!(
        stub_memory_mib(u64::MAX) > 1 << 20,
        "nonsense is refused where it is compared with the host's memory"
    );
}
