//! For any page lists, in any order, cut anywhere.

use super::*;
use alloc::collections::{BTreeMap, BTreeSet};
use proptest::prelude::*;

/// The naive reference: what a receiver of single pages ends up with.
#[derive(Default)]
struct Reference {
    pages: BTreeMap<Gfn, Option<u64>>, // the seed of the contents; None: zeroes
    holed: BTreeSet<Gfn>,              // regions in which a hole was ever named
    nr_peak: u64,
}

impl Reference {
    /// Takes a record: what comes without contents, then what comes with them.
    fn record(&mut self, entries: &[Entry]) {
        for entry in entries {
            match *entry {
                Entry::Hole(gfn) | Entry::Broken(gfn) => {
                    self.pages.remove(&gfn);
                    self.holed.insert(gfn.align_down(Order::PAGE_2M));
                }
                Entry::Alloc(gfn) => _ = self.pages.entry(gfn).or_default(),
                Entry::Data(..) => {}
            }
            self.nr_peak = self.nr_peak.max(self.pages.len() as u64);
        }
        for entry in entries {
            if let Entry::Data(gfn, seed) = *entry {
                self.pages.insert(gfn, Some(seed));
            }
        }
        self.nr_peak = self.nr_peak.max(self.pages.len() as u64);
    }

    /// Returns the regions of which every page is there and no hole ever was.
    fn whole_regions(&self) -> impl Iterator<Item = Gfn> {
        let mut counts = BTreeMap::new();
        for gfn in self.pages.keys() {
            *counts.entry(gfn.align_down(Order::PAGE_2M)).or_insert(0) += 1;
        }
        counts.into_iter().filter(|(gfn, nr)| *nr == 512 && !self.holed.contains(gfn)).map(|(gfn, _)| gfn)
    }
}

fn stream(records: &[Vec<Entry>]) -> Vec<u8> {
    let mut writer = Writer::begin();
    records.iter().for_each(|entries| writer.pages(entries));
    writer.finish(&[]);
    writer.bytes
}

/// Restores records within `max_pages` and compares with the reference.
fn assert_like_reference(records: &[Vec<Entry>], headroom: u64, fragmented: bool) -> (Bench, Reference) {
    let mut reference = Reference::default();
    records.iter().for_each(|record| reference.record(record));
    let mut bench = Bench::new(reference.nr_peak + headroom);
    if fragmented {
        bench.xen.fragment(Order::PAGE_2M, 30);
    }
    let report = bench.restore(&stream(records), 65_536).expect("sound");
    assert!(bench.xen.gfns().eq(reference.pages.keys().copied()), "exactly the named pages");
    for (gfn, seed) in &reference.pages {
        let expected = seed.map_or([0; PAGE_SIZE], |seed| contents(*gfn, seed));
        assert!(bench.xen.page(*gfn) == Some(expected), "{gfn}");
    }
    let nr_pages = reference.pages.len() as u64;
    assert_eq!((bench.xen.nr_owned(), report.target.nr_expected), (nr_pages, nr_pages));
    assert_eq!((bench.xen.nr_orphans(), bench.xen.nr_mapped()), (0, 0));
    (bench, reference)
}

/// What a run of gfns is named as.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Hole,
    Broken,
    Alloc,
    Data,
}

/// Consecutive gfns of one kind.
#[derive(Clone, Copy, Debug)]
struct Run(Kind, u64, u64, u64);

impl Run {
    fn entries(self) -> impl Iterator<Item = Entry> {
        let Self(kind, first, nr_frames, seed) = self;
        (first..first + nr_frames).map(Gfn::new).map(move |gfn| match kind {
            Kind::Hole => Entry::Hole(gfn),
            Kind::Broken => Entry::Broken(gfn),
            Kind::Alloc => Entry::Alloc(gfn),
            Kind::Data => Entry::Data(gfn, seed),
        })
    }
}

/// Records of a few runs in two giants; short runs are frequent.
fn records() -> impl Strategy<Value = Vec<Vec<Run>>> {
    let kind = prop_oneof![
        2 => Just(Kind::Hole),
        1 => Just(Kind::Broken),
        1 => Just(Kind::Alloc),
        4 => Just(Kind::Data),
    ];
    let place = prop_oneof![0..2200_u64, 0x3_fd00..0x4_0300_u64];
    let length = prop_oneof![1..9_u64, 1..700_u64];
    let run =
        (kind, place, length, 0..1000_u64).prop_map(|(kind, first, nr, seed)| Run(kind, first, nr, seed));
    proptest::collection::vec(proptest::collection::vec(run, 1..4), 1..6)
}

fn expand(records: &[Vec<Run>]) -> Vec<Vec<Entry>> {
    records.iter().map(|runs| runs.iter().flat_map(|run| run.entries()).collect()).collect()
}

/// A guest whose every gfn is named once: some regions whole, some with holes; shuffled.
fn guest_in_any_order() -> impl Strategy<Value = Vec<Entry>> {
    let regions = proptest::collection::vec(prop_oneof![Just(512_u64), 1..512_u64], 1..6);
    let entries = regions.prop_map(|sizes| {
        let region = |(nr, size): (u64, u64)| {
            (nr * 512..nr * 512 + size)
                .map(|raw| Entry::Data(Gfn::new(raw), 0))
                .chain(holes(nr * 512 + size..nr * 512 + 512))
        };
        (0..).zip(sizes).flat_map(region).collect::<Vec<_>>()
    });
    entries.prop_shuffle().no_shrink()
}

fn contiguous(bench: &Bench) -> Vec<Gfn> {
    let starts = bench.xen.gfns().filter(|gfn| gfn.is_aligned(Order::PAGE_2M));
    starts.filter(|gfn| bench.xen.is_contiguous(Order::PAGE_2M, *gfn)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_page_lists_end_like_the_naive_reference_at_any_reservation(
        records in records(),
        headroom in prop_oneof![Just(0_u64), 0..700_u64, Just(10_000)],
        fragmented: bool,
    ) {
        assert_like_reference(&expand(&records), headroom, fragmented);
    }

    #[test]
    fn with_room_every_region_without_a_hole_is_a_superpage(
        records in records(),
    ) {
        let (bench, reference) = assert_like_reference(&expand(&records), 10_000, false);
        for region in reference.whole_regions() {
            prop_assert!(bench.xen.is_contiguous(Order::PAGE_2M, region), "{}", region);
        }
        prop_assert_eq!(bench.xen.ledger.count("populate 1G"), bench.xen.ledger.nr_short());
    }

    #[test]
    fn neither_page_order_nor_batch_boundaries_matter(
        entries in guest_in_any_order(),
        batch_pages in prop_oneof![Just(1_usize), Just(7), Just(1024), 1..2000_usize],
    ) {
        let records: Vec<_> = entries.chunks(batch_pages).map(<[Entry]>::to_vec).collect();
        let mut in_order = entries;
        in_order.sort_by_key(|entry| match *entry {
            Entry::Data(gfn, _) | Entry::Hole(gfn) | Entry::Broken(gfn) | Entry::Alloc(gfn) => gfn,
        });
        let (shuffled, _) = assert_like_reference(&records, 3000, false);
        let (reference, _) = assert_like_reference(&[in_order], 3000, false);
        prop_assert_eq!(contiguous(&shuffled), contiguous(&reference));
    }

    #[test]
    fn the_same_pages_twice_change_nothing(records in records()) {
        let mut records = expand(&records);
        let (once, reference) = assert_like_reference(&records, 10_000, false);
        let again = |(gfn, seed): (&Gfn, &Option<u64>)| Some(Entry::Data(*gfn, (*seed)?));
        records.push(reference.pages.iter().filter_map(again).collect());
        let (twice, _) = assert_like_reference(&records, 10_000, false);
        prop_assert_eq!(contiguous(&twice), contiguous(&once));
    }
}

#[test]
fn a_guest_that_fills_its_reservation_keeps_its_superpages_in_any_order_of_batches() {
    let mut records: Vec<Vec<Entry>> =
        (0..6).map(|nr| data(nr * 512..nr * 512 + 512).collect::<Vec<_>>()).collect();
    records.push(holes(0xfee00..0xfeff8).chain(data(0xfeff8..0xff000)).collect());
    for rotation in 0..records.len() {
        records.rotate_left(1);
        let (bench, _) = assert_like_reference(&records, 256, false);
        assert_eq!(contiguous(&bench).len(), 6, "rotated by {rotation}");
    }
    let small: Vec<Vec<Entry>> = records.concat().chunks(7).map(<[Entry]>::to_vec).collect();
    let (bench, _) = assert_like_reference(&small, 256, false);
    assert_eq!(contiguous(&bench).len(), 6);
}
