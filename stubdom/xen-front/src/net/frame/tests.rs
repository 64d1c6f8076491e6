#![allow(clippy::cast_possible_truncation, reason = "the values of these tests are small")]

use super::*;
use std::vec::Vec;

fn data(slot: u16, status: i16, flags: RxFlags) -> RxResponse {
    RxResponse { id: slot, offset: 0, flags: flags.bits(), status }
}

fn extra(kind: u8, flags: u8) -> RxResponse {
    let extra = ExtraInfo { kind, flags, u: [1448, u16::from(xen_abi::netif::XEN_NETIF_GSO_TYPE_TCPV6), 0] };
    zerocopy::transmute!(extra)
}

/// Feeds responses from slot `first` on and returns what each became.
fn steps(first: u16, responses: &[RxResponse]) -> (Assembly, Vec<Result<Step, NetError>>) {
    let mut assembly = Assembly::new();
    let steps = (0_u16..)
        .zip(responses)
        .map(|(i, &response)| assembly.step((first + i) % NR_RX_SLOTS as u16, response))
        .collect();
    (assembly, steps)
}

#[test]
fn a_small_frame_is_whole_after_one_slot() {
    let (assembly, steps) = steps(5, &[data(5, 60, RxFlags::DATA_VALIDATED)]);
    assert_eq!(steps, [Ok(Step::Whole)]);
    assert_eq!(assembly.fragments(), [Fragment { slot: 5, offset: 0, len: 60 }]);
    assert_eq!(assembly.flags(), RxFlags::DATA_VALIDATED);
}

#[test]
fn an_aggregate_is_data_then_extra_then_data() {
    let first = RxFlags::MORE_DATA | RxFlags::EXTRA_INFO | RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED;
    let responses = [
        data(254, 4096, first),
        extra(XEN_NETIF_EXTRA_TYPE_GSO, XEN_NETIF_EXTRA_FLAG_MORE),
        extra(XEN_NETIF_EXTRA_TYPE_HASH, 0),
        data(1, 4096, RxFlags::MORE_DATA),
        data(2, 7, RxFlags::empty()),
    ];
    let (assembly, steps) = steps(254, &responses);
    assert_eq!(steps, [Ok(Step::More), Ok(Step::More), Ok(Step::More), Ok(Step::More), Ok(Step::Whole)]);
    let slots: Vec<_> = assembly.fragments().iter().map(|f| (f.slot, f.len)).collect();
    assert_eq!(slots, [(254, 4096), (1, 4096), (2, 7)]);
    assert!(assembly.flags().contains(RxFlags::CSUM_BLANK));
}

#[test]
fn a_failed_part_drops_the_frame_and_the_next_is_whole_again() {
    let responses = [
        data(0, 4096, RxFlags::MORE_DATA),
        data(1, -1, RxFlags::MORE_DATA),
        data(2, 10, RxFlags::empty()),
        data(3, 60, RxFlags::empty()),
    ];
    let (assembly, steps) = steps(0, &responses);
    assert_eq!(steps, [Ok(Step::More), Ok(Step::More), Ok(Step::Dropped), Ok(Step::Whole)]);
    assert_eq!(assembly.fragments().len(), 1);
}

#[test]
fn a_response_in_the_wrong_slot_is_an_error() {
    assert_eq!(steps(3, &[data(4, 60, RxFlags::empty())]).1, [Err(NetError::RxId { expected: 3, got: 4 })]);
}

#[test]
fn data_over_the_end_of_its_page_is_an_error() {
    for (offset, status) in [(1, 4096), (4096, 1), (u16::MAX, 1), (0, i16::MAX)] {
        let response = RxResponse { id: 0, offset, flags: 0, status };
        let len = status as u16;
        assert_eq!(steps(0, &[response]).1, [Err(NetError::RxBounds { slot: 0, offset, len })]);
    }
}

#[test]
fn a_frame_without_end_is_an_error_at_its_eighteenth_slot() {
    let responses: Vec<_> = (0..18).map(|slot| data(slot, 4096, RxFlags::MORE_DATA)).collect();
    assert_eq!(steps(0, &responses).1.last(), Some(&Err(NetError::RxTooLong { slot: 17 })));
}

#[test]
fn unknown_or_endless_extras_are_an_error() {
    let first = data(0, 60, RxFlags::EXTRA_INFO);
    for kind in [0, 2, 3, 6, 255] {
        assert_eq!(
            steps(0, &[first, extra(kind, 0)]).1.last(),
            Some(&Err(NetError::RxExtra { slot: 1, kind }))
        );
    }
    let more = extra(XEN_NETIF_EXTRA_TYPE_GSO, XEN_NETIF_EXTRA_FLAG_MORE);
    assert_eq!(
        steps(0, &[first, more, more, more, more]).1.last(),
        Some(&Err(NetError::RxExtra { slot: 4, kind: XEN_NETIF_EXTRA_TYPE_GSO }))
    );
}

/// Lays out fragments of a frame in pages, closes them up and compares with the plain concatenation.
fn closes_up(first_page: usize, lens: &[(usize, usize, usize)]) -> (usize, usize) {
    let placed: Vec<_> = lens
        .iter()
        .map(|&(page, offset, len)| Placed { page: first_page + page, wrapped: None, offset, len })
        .collect();
    let nr_pages = lens.iter().map(|&(page, ..)| page + 1).max().unwrap_or(0);
    let mut row: Vec<u8> = (0..nr_pages * PAGE_SIZE).map(|i| (i / 7 + i / PAGE_SIZE) as u8).collect();
    let before = row.clone();
    let expected: Vec<u8> = lens
        .iter()
        .flat_map(|&(page, offset, len)| &before[page * PAGE_SIZE + offset..][..len])
        .copied()
        .collect();
    let range = close_up(&mut row, first_page, &placed).expect("the fragments are in the row");
    assert_eq!(row[range.clone()], expected);
    (range.start, row.iter().zip(&before).filter(|(a, b)| a != b).count())
}

#[test]
fn only_the_first_page_of_an_aggregate_moves() {
    let mut lens = std::vec![(0, 0, 4096)];
    lens.extend((2..17).map(|page| (page, 0, 4096)));
    lens.push((17, 0, 54));
    let (start, nr_changed) = closes_up(200, &lens);
    assert_eq!(start, PAGE_SIZE);
    assert!(nr_changed <= PAGE_SIZE);
}

#[test]
fn full_pages_in_a_row_do_not_move_at_all() {
    assert_eq!(closes_up(0, &[(0, 0, 4096), (1, 0, 4096), (2, 0, 1)]), (0, 0));
    assert_eq!(closes_up(0, &[(0, 100, 60)]), (100, 0));
}

#[test]
fn fragments_anywhere_in_their_pages_come_together() {
    closes_up(7, &[(0, 3, 1), (1, 4095, 1), (2, 0, 4096), (4, 17, 0), (5, 1, 4000)]);
    closes_up(0, &[(0, 0, 4096), (1, 4000, 96), (2, 4000, 96), (3, 4095, 1)]);
    let mut seed = 1_u32;
    for _ in 0..200 {
        let mut next = |below: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as usize % below
        };
        let mut page = 0;
        let lens: Vec<_> = (0..1 + next(MAX_FRAME_PAGES))
            .map(|_| {
                let offset = next(PAGE_SIZE);
                let fragment = (page, offset, next(PAGE_SIZE - offset + 1));
                page += 1 + next(2);
                fragment
            })
            .collect();
        closes_up(0, &lens);
    }
}

#[test]
fn fragments_past_the_end_of_the_ring_continue_behind_it() {
    let placed = |slot, first| Placed::new(Fragment { slot, offset: 8, len: 9 }, first);
    assert_eq!(placed(255, 254), Placed { page: 255, wrapped: None, offset: 8, len: 9 });
    assert_eq!(placed(1, 254), Placed { page: 257, wrapped: Some(1), offset: 8, len: 9 });
}
