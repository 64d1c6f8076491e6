use super::*;
use crate::xen::XenExchange;

const GFN: [Gfn; 1] = [Gfn::new(5)];

#[test]
fn populating_over_an_occupied_gfn_leaks_the_frame() {
    let mut xen = FakeXen::new(64, 64);
    assert_eq!(
        (xen.populate_physmap(Order::PAGE_4K, &GFN), xen.populate_physmap(Order::PAGE_4K, &GFN)),
        (1, 1)
    );
    assert_eq!((xen.nr_owned(), xen.nr_orphans()), (2, 1));
}

#[test]
fn populating_stops_at_the_reservation_at_the_memory_and_at_the_order() {
    let three = [0, 1, 2].map(Gfn::new);
    assert_eq!(FakeXen::new(64, 2).populate_physmap(Order::PAGE_4K, &three), 2);
    assert_eq!(FakeXen::new(2, 64).populate_physmap(Order::PAGE_4K, &three), 2);
    assert_eq!(FakeXen::new(1 << 19, 1 << 19).populate_physmap(Order::PAGE_1G, &[Gfn::new(0)]), 0);
}

#[test]
fn a_mapped_frame_stays_allocated_until_it_is_unmapped() {
    let mut xen = FakeXen::new(64, 64);
    xen.populate_physmap(Order::PAGE_4K, &GFN);
    let mut errors = [1];
    xen.map(Access::Write, &GFN, &mut errors);
    xen.fill(0, 4090, b"abcdef");
    assert_eq!((errors, xen.decrease_reservation(Order::PAGE_4K, &GFN)), ([0], 1));
    assert_eq!((xen.nr_owned(), xen.nr_free(), xen.matches(0, 4090, b"abcdef")), (1, 63, true));
    xen.zero(0);
    xen.unmap();
    assert_eq!((xen.nr_owned(), xen.nr_free()), (0, 64));
}

/// A target with a page that holds bytes of its own, and the page's frame.
fn target_with_a_secret() -> (FakeXen, Mfn) {
    let mut xen = FakeXen::new(64, 64);
    xen.populate_physmap(Order::PAGE_4K, &GFN);
    xen.write(GFN[0], b"secret");
    let mfn = xen.frame(GFN[0]).expect("populated");
    (xen, mfn)
}

#[test]
#[should_panic(expected = "freed with bytes of the target in it")]
fn freeing_a_frame_with_bytes_of_the_target_ends_the_test() {
    target_with_a_secret().0.decrease_reservation(Order::PAGE_4K, &GFN);
}

#[test]
#[should_panic(expected = "freed with bytes of the target in it")]
fn moving_over_a_page_with_bytes_of_the_target_ends_the_test() {
    let (mut xen, _) = target_with_a_secret();
    xen.populate_physmap(Order::PAGE_4K, &[Gfn::new(6)]);
    let _ = xen.move_page(Gfn::new(6), GFN[0]);
}

#[test]
fn a_frame_is_handed_out_with_what_its_last_owner_left_there() {
    let (mut xen, mfn) = target_with_a_secret();
    assert!(xen.page(GFN[0]).expect("populated")[8..].iter().any(|byte| *byte != 0), "never all zeroes");
    xen.as_guest(|xen| xen.decrease_reservation(Order::PAGE_4K, &GFN));
    assert_eq!((xen.spilled().count(), xen.populate_physmap(Order::PAGE_4K, &GFN)), (0, 1));
    assert_eq!(xen.frame(GFN[0]), Some(mfn));
    assert!(xen.page(GFN[0]).expect("populated").starts_with(b"secret"));
}

#[test]
fn what_only_a_dead_caller_held_is_spilled() {
    let (mut xen, mfn) = target_with_a_secret();
    xen.map(Access::Write, &GFN, &mut [0]);
    xen.decrease_reservation(Order::PAGE_4K, &GFN);
    assert_eq!(xen.spilled().count(), 0);
    xen.bury();
    assert!(xen.spilled().eq([mfn]));
}

#[test]
fn a_hole_cannot_be_mapped_and_does_not_keep_others_from_it() {
    let mut xen = FakeXen::new(64, 64);
    xen.populate_physmap(Order::PAGE_4K, &GFN);
    let mut errors = [1; 3];
    xen.map(Access::Read, &[Gfn::new(4), GFN[0], GFN[0]], &mut errors);
    assert_eq!(errors, [Errno::EINVAL.raw(), 0, 0]);
    assert_eq!((xen.mfn(0), xen.mfn(1)), (None, xen.mfn(2)));
}

#[test]
#[should_panic(expected = "page fault")]
fn writing_to_a_frame_that_is_mapped_for_reading_faults() {
    let mut xen = FakeXen::new(64, 64);
    xen.populate_physmap(Order::PAGE_4K, &GFN);
    xen.map(Access::Read, &GFN, &mut [0]);
    xen.zero(0);
}

#[test]
fn freed_frames_merge_into_extents_again() {
    let mut xen = FakeXen::new(1024, 1024);
    let pages: Vec<Gfn> = (0..1024).map(Gfn::new).collect();
    assert_eq!(xen.populate_physmap(Order::PAGE_4K, &pages), 1024);
    assert_eq!(xen.decrease_reservation(Order::PAGE_4K, &pages), 1024);
    assert_eq!(xen.populate_physmap(Order::PAGE_2M, &[Gfn::new(0), Gfn::new(512)]), 2);
    assert_eq!(xen.nr_contiguous(Order::PAGE_2M), 2);
}

#[test]
fn a_fragmented_host_has_memory_but_no_extents() {
    let mut xen = FakeXen::new(1024, 1024);
    xen.fragment(Order::PAGE_2M, 2);
    assert_eq!((xen.nr_free(), xen.populate_physmap(Order::PAGE_2M, &[Gfn::new(0)])), (1022, 0));
    xen.defragment();
    assert_eq!((xen.nr_free(), xen.populate_physmap(Order::PAGE_2M, &[Gfn::new(0)])), (1024, 1));
}

#[test]
fn a_frame_marked_offline_is_retired_when_its_last_user_goes() {
    let mut xen = FakeXen::new(64, 64);
    xen.populate_physmap(Order::PAGE_4K, &GFN);
    let mfn = xen.frame(GFN[0]).expect("populated");
    xen.offline(mfn);
    xen.map(Access::Read, &GFN, &mut [0]);
    xen.decrease_reservation(Order::PAGE_4K, &GFN);
    assert_eq!(xen.offline_status(mfn), Offline::Pending);
    xen.unmap();
    assert_eq!((xen.offline_status(mfn), xen.nr_free()), (Offline::Done, 63));
}
