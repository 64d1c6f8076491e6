use super::*;
use crate::fake::pv::{FakePv, NR_PAGES, PINNED_TABLE, ROOT, SHARED_PAGE, TABLES};
use alloc::vec;
use proptest::prelude::*;

/// Exchanges one page's frame.
fn exchange(guest: &mut FakePv, pfn: Pfn) -> Result<Exchanged, Error> {
    let mfn = guest.mfn(pfn);
    Exchanger::new(guest.facts(), &[mfn], guest)?.exchange(mfn, guest)
}

fn refusal(guest: &mut FakePv, facts: Facts, mfn: Mfn) -> Refusal {
    let before = guest.view();
    let mut exchanger = Exchanger::new(facts, &[mfn], guest).expect("a sound guest");
    let outcome = exchanger.exchange(mfn, guest);
    assert!(guest.view() == before && guest.retired.is_empty(), "a refusal touches nothing");
    match outcome {
        Err(Error::Refused { mfn: refused, refusal }) if refused == mfn => refusal,
        other => panic!("expected a refusal of {mfn}, got {other:?}"),
    }
}

#[test]
fn a_page_that_is_mapped_twice_has_a_new_frame_behind_both_entries() {
    let mut guest = FakePv::new();
    let (before, old) = (guest.view(), guest.mfn(SHARED_PAGE));
    let done = exchange(&mut guest, SHARED_PAGE).expect("an ordinary page");
    let new = guest.mfn(SHARED_PAGE);
    assert_eq!(done, Exchanged { pfn: SHARED_PAGE, old, new, nr_entries: 2, level: None });
    assert!(guest.retired.contains(&old));
    assert!(guest.view() == before);
}

#[test]
fn page_tables_of_every_level_move_and_stay_what_they_are() {
    for pfn in TABLES.map(Pfn::new) {
        let mut guest = FakePv::new();
        let (before, old) = (guest.view(), guest.mfn(pfn));
        let done = exchange(&mut guest, pfn).expect("a table that is not loaded");
        assert!(done.level.is_some() && guest.retired.contains(&old), "{pfn}: {done:?}");
        assert!(guest.view() == before, "{pfn}");
    }
}

#[test]
fn all_pages_move_in_one_call_tables_first_or_last() {
    let mut guest = FakePv::new();
    let before = guest.view();
    let pages: Vec<Pfn> = TABLES.chain([100, 600, 1100]).map(Pfn::new).collect();
    let mut mfns: Vec<Mfn> = pages.iter().map(|pfn| guest.mfn(*pfn)).collect();
    for _ in 0..2 {
        let mut exchanger = Exchanger::new(guest.facts(), &mfns, &mut guest).expect("a sound guest");
        for mfn in &mfns {
            exchanger.exchange(*mfn, &mut guest).expect("it may move");
        }
        assert!(guest.view() == before);
        mfns = pages.iter().rev().map(|pfn| guest.mfn(*pfn)).collect();
    }
    assert_eq!(guest.retired.len(), 2 * pages.len());
}

#[test]
fn what_others_know_by_its_number_is_refused_by_name() {
    let mut guest = FakePv::new();
    let sound = guest.facts();
    let p2m = guest.mfn(Pfn::new(1));
    assert_eq!(refusal(&mut guest, sound.clone(), p2m), Refusal::Reserved(Role::P2m));
    let root = guest.mfn(ROOT);
    assert_eq!(refusal(&mut guest, sound.clone(), root), Refusal::Reserved(Role::Root));
    let unloaded = Facts { reserved: Vec::new(), ..sound.clone() };
    assert_eq!(refusal(&mut guest, unloaded, root), Refusal::Reserved(Role::P2m), "shared_info names it");
    let page = guest.mfn(SHARED_PAGE);
    let granted = Facts { granted: [(page, Gref::new(9))].into(), ..sound.clone() };
    assert_eq!(refusal(&mut guest, granted, page), Refusal::Granted(Gref::new(9)));
    assert_eq!(refusal(&mut guest, sound, Mfn::new(0x9999)), Refusal::NoPfn);
}

#[test]
fn a_frame_that_the_p2m_names_and_xen_denies_is_refused() {
    let mut guest = FakePv::new();
    guest.poke(Pfn::new(2), 511, 0x9999);
    let facts = Facts { max_pfn: 1536, ..guest.facts() };
    let mut exchanger = Exchanger::new(facts, &[Mfn::new(0x9999)], &mut guest).expect("readable");
    let foreign = Error::Refused { mfn: Mfn::new(0x9999), refusal: Refusal::Foreign };
    assert_eq!(exchanger.exchange(Mfn::new(0x9999), &mut guest), Err(foreign));
}

#[test]
fn a_frame_that_somebody_holds_gets_all_its_entries_back() {
    for pfn in [SHARED_PAGE, PINNED_TABLE] {
        let mut guest = FakePv::new();
        let (before, mfn) = (guest.view(), guest.mfn(pfn));
        guest.held.insert(mfn);
        assert_eq!(exchange(&mut guest, pfn), Err(Error::Held { mfn }));
        assert!(guest.view() == before && guest.mfn(pfn) == mfn);
    }
}

#[test]
fn no_memory_is_said_and_changes_nothing() {
    let mut guest = FakePv::new();
    let before = guest.view();
    guest.free.clear();
    assert_eq!(exchange(&mut guest, SHARED_PAGE), Err(Error::NoMemory));
    assert!(guest.view() == before);
}

#[test]
fn a_p2m_that_is_a_tree_is_followed_and_its_frames_stay() {
    let mut guest = FakePv::new();
    let (top, mid) = (Pfn::new(200), Pfn::new(201));
    let leaves = [0, 1, 2].map(|pfn| guest.mfn(Pfn::new(pfn)).raw());
    guest.poke(top, 0, guest.mfn(mid).raw());
    (0..).zip(leaves).for_each(|(index, mfn)| guest.poke(mid, index, mfn));
    let facts = Facts { p2m: Some(Root::Tree(guest.mfn(top))), ..guest.facts() };
    for pfn in [top, mid, Pfn::new(2)] {
        let mfn = guest.mfn(pfn);
        assert_eq!(refusal(&mut guest, facts.clone(), mfn), Refusal::Reserved(Role::P2m), "{pfn}");
    }
    let mfn = guest.mfn(Pfn::new(1100));
    let before = guest.view();
    let mut exchanger = Exchanger::new(facts, &[mfn], &mut guest).expect("a sound guest");
    exchanger.exchange(mfn, &mut guest).expect("an ordinary page");
    assert!(guest.retired.contains(&mfn));
    // The two pages of the tree hold frame numbers of the p2m, which stayed.
    assert!(guest.view() == before);
}

#[test]
fn a_guest_that_lies_about_its_p2m_is_refused() {
    let mut guest = FakePv::new();
    let refused =
        |facts: Facts, guest: &mut FakePv| Exchanger::new(facts, &[], guest).map(drop).expect_err("a lie");
    let huge = Facts { max_pfn: u64::MAX, ..guest.facts() };
    assert!(matches!(refused(huge, &mut guest), Error::HugeP2m { max_pfn: u64::MAX, .. }));
    let none = Facts { p2m: None, ..guest.facts() };
    assert_eq!(refused(none, &mut guest), Error::NoP2m { pfn: Pfn::new(0) });
    let long = Facts { max_pfn: 1201 * 512, ..guest.facts() };
    let Error::NoP2m { .. } = refused(long, &mut guest) else { panic!("no table maps as much") };
    for vaddr in [0, 0xffff_8000_0000_0000, u64::MAX - 4095] {
        let root = Root::Linear { cr3: guest.mfn(ROOT), vaddr };
        let astray = Facts { p2m: Some(root), ..guest.facts() };
        refused(astray, &mut guest);
    }
    let nowhere = Facts { p2m: Some(Root::Tree(Mfn::new(0x9999))), ..guest.facts() };
    assert_eq!(refused(nowhere, &mut guest), Error::NoP2m { pfn: Pfn::new(0) });
}

/// How many calls a survey makes: a failure among them is not tried again.
fn nr_survey_calls(pfn: Pfn) -> usize {
    let mut guest = FakePv::new();
    let mfn = guest.mfn(pfn);
    Exchanger::new(guest.facts(), &[mfn], &mut guest).expect("a sound guest");
    guest.calls.len()
}

#[test]
fn whichever_call_fails_once_the_guest_is_whole() {
    for pfn in [SHARED_PAGE, PINNED_TABLE, Pfn::new(6), Pfn::new(4)] {
        let mut sound = FakePv::new();
        let before = sound.view();
        exchange(&mut sound, pfn).expect("nothing fails");
        for call in 0..sound.calls.len() {
            let mut guest = FakePv::new();
            guest.fail_call = Some(call);
            let old = guest.mfn(pfn);
            let outcome = exchange(&mut guest, pfn);
            assert!(guest.view() == before, "{pfn}, call {call}: {outcome:?}");
            assert_eq!(outcome.is_ok(), guest.retired.contains(&old), "{pfn}, call {call}");
            assert_eq!(outcome.is_ok(), call >= nr_survey_calls(pfn), "{pfn}, call {call}: {outcome:?}");
        }
    }
}

#[test]
fn a_call_that_fails_for_good_is_undone_or_said_to_be_lost() {
    for pfn in [SHARED_PAGE, PINNED_TABLE] {
        let mut sound = FakePv::new();
        let before = sound.view();
        exchange(&mut sound, pfn).expect("nothing fails");
        let mut nr_intact = 0;
        for (first, name) in sound.calls.iter().enumerate() {
            let mut guest = FakePv::new();
            guest.fail_name = Some((first, name));
            let error = exchange(&mut guest, pfn).expect_err("it fails for good");
            nr_intact += usize::from(error.leaves_guest_intact());
            let is_whole = guest.view_if_sound().is_some_and(|view| view == before);
            assert!(is_whole || !error.leaves_guest_intact(), "{pfn}, {name} from {first} on: {error:?}");
            let is_after = guest.retired.contains(&sound.retired.first().copied().expect("exchanged"));
            assert!(!is_after || !error.leaves_guest_intact(), "{pfn}, {name} from {first} on: {error:?}");
        }
        assert!(nr_intact > nr_survey_calls(pfn), "{pfn}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_pages_in_any_order_leave_the_guest_as_it_was(
        pages in proptest::collection::btree_set(4..NR_PAGES, 1..8),
        seed in any::<u64>(),
    ) {
        let mut pages: Vec<u64> = pages.into_iter().collect();
        pages.sort_by_key(|pfn| pfn.wrapping_mul(seed | 1));
        let mut guest = FakePv::new();
        let before = guest.view();
        let mfns: Vec<Mfn> = pages.iter().map(|pfn| guest.mfn(Pfn::new(*pfn))).collect();
        let mut exchanger = Exchanger::new(guest.facts(), &mfns, &mut guest).expect("a sound guest");
        let outcomes: Vec<_> = mfns.iter().map(|mfn| exchanger.exchange(*mfn, &mut guest)).collect();
        prop_assert!(outcomes.iter().all(Result::is_ok), "{:?}", outcomes);
        prop_assert!(mfns.iter().all(|mfn| guest.retired.contains(mfn)));
        prop_assert!(guest.view() == before);
    }
}

#[test]
fn what_is_cleared_is_zero_and_names_no_frame() {
    let mut guest = FakePv::new();
    let mfn = guest.mfn(SHARED_PAGE);
    guest.held.insert(mfn);
    guest.fail_name = Some((nr_survey_calls(SHARED_PAGE) + 3, "mmu_update")); // read and two entries done
    let error = exchange(&mut guest, SHARED_PAGE).expect_err("it is held and cannot be undone");
    assert!(matches!(error, Error::Lost { step: Step::Exchange, .. }), "{error:?}");
    let cleared: Vec<u64> = vec![guest.peek(Pfn::new(10), 5), guest.peek(PINNED_TABLE, 100)];
    assert_eq!(cleared, [0, 0]);
}

#[test]
fn what_is_known_before_the_guest_is_suspended_is_told_before() {
    let guest = FakePv::new();
    let (sound, page, root) = (guest.facts(), guest.mfn(SHARED_PAGE), guest.mfn(ROOT));
    assert_eq!(sound.check(page), Ok(()));
    let reserved = Error::Refused { mfn: root, refusal: Refusal::Reserved(Role::Root) };
    assert_eq!(sound.check(root), Err(reserved));
    let granted = Facts { granted: [(page, Gref::new(9))].into(), ..sound.clone() };
    assert_eq!(
        granted.check(page),
        Err(Error::Refused { mfn: page, refusal: Refusal::Granted(Gref::new(9)) })
    );
    let none = Facts { p2m: None, ..sound.clone() };
    assert_eq!(none.check(page).map_err(|error| error.name()), Err("no-p2m"));
    let (booted_with, has) = (6 << 18, 1 << 16);
    let ballooned = Facts { max_pfn: booted_with, max_frames: has, ..sound };
    assert_eq!(ballooned.check(page).map_err(|error| error.name()), Err("huge-p2m"));
}

/// A guest that is all page tables, every entry of which maps one frame.
struct Greedy {
    nr_pages: u64,
    nr_updates: usize,
}

/// The frame that all entries map, the first of the guest's.
const MAPPED: u64 = 0x10_0000;
/// The frames of its p2m: a top, its nodes and its leaves.
const P2M_TOP: u64 = 0x7_0000;
const P2M_NODES: u64 = 0x7_1000;
const P2M_LEAVES: u64 = 0x8_0000;

impl Greedy {
    fn word(&self, mfn: u64, index: u64) -> u64 {
        match mfn {
            P2M_TOP => P2M_NODES + index,
            P2M_NODES..P2M_LEAVES => P2M_LEAVES + (mfn - P2M_NODES) * 512 + index,
            P2M_LEAVES..MAPPED => {
                let pfn = (mfn - P2M_LEAVES) * 512 + index;
                if pfn < self.nr_pages { MAPPED + pfn } else { u64::MAX }
            }
            _ => MAPPED << 12 | 0x25,
        }
    }
}

impl PvGuest for Greedy {
    fn read(&mut self, mfns: &[Mfn], pages: &mut [Words]) -> Result<(), Errno> {
        for (mfn, page) in mfns.iter().zip(pages) {
            (0..).zip(page).for_each(|(index, word)| *word = self.word(mfn.raw(), index));
        }
        Ok(())
    }
    fn write(&mut self, _: Mfn, _: &Words) -> Result<(), Errno> {
        Ok(())
    }
    fn write_word(&mut self, _: Mfn, _: usize, _: u64) -> Result<(), Errno> {
        Ok(())
    }
    fn page_types(&mut self, mfns: &[Mfn], types: &mut [PageType]) -> Result<(), Errno> {
        let table = PageType::Table(Table { level: 1, is_pinned: true });
        let of = |mfn: &Mfn| if mfn.raw() == MAPPED { PageType::Data } else { table };
        mfns.iter().zip(types).for_each(|(mfn, page_type)| *page_type = of(mfn));
        Ok(())
    }
    fn mmu_update(&mut self, updates: &[Update]) -> Result<(), (usize, Errno)> {
        assert!(updates.len() <= BATCH_UPDATES);
        self.nr_updates += updates.len();
        Ok(())
    }
    fn pin(&mut self, _: Mfn, _: u8) -> Result<(), Errno> {
        Ok(())
    }
    fn unpin(&mut self, _: Mfn) -> Result<(), Errno> {
        Ok(())
    }
    fn exchange(&mut self, _: Mfn, _: Pfn) -> Result<Mfn, Errno> {
        Ok(Mfn::new(1))
    }
}

#[test]
fn a_guest_whose_tables_all_map_one_frame_keeps_it() {
    let exchange = |nr_pages| {
        let p2m = Some(Root::Tree(Mfn::new(P2M_TOP)));
        let facts = Facts { p2m, max_pfn: nr_pages, max_frames: nr_pages, ..Facts::default() };
        let mut guest = Greedy { nr_pages, nr_updates: 0 };
        let mut exchanger = Exchanger::new(facts, &[Mfn::new(MAPPED)], &mut guest).expect("a sound p2m");
        (exchanger.exchange(Mfn::new(MAPPED), &mut guest), guest.nr_updates)
    };
    let most = MAX_ENTRIES as u64 / 512;
    let (done, nr_updates) = exchange(most + 1);
    assert_eq!(done.map(|done| done.nr_entries), Ok(MAX_ENTRIES));
    assert_eq!(nr_updates, 2 * MAX_ENTRIES, "cleared and restored");
    let (refused, nr_updates) = exchange(most + 2);
    let refusal = Refusal::MappedTooOften;
    assert_eq!((refused, nr_updates), (Err(Error::Refused { mfn: Mfn::new(MAPPED), refusal }), 0));
}
