use super::testing::{BackRing, pair};
use super::{FrontRing, Indices, Notify, RingError, notify};

type Front = FrontRing<[u32; 3], u32>;
type Back = BackRing<[u32; 3], u32>;

fn ring() -> (Front, Back) {
    pair()
}

#[test]
fn a_ring_has_as_many_slots_as_a_power_of_two_fits() {
    assert_eq!(Front::NR_SLOTS, 256);
    assert_eq!(FrontRing::<u64, u64>::NR_SLOTS, 256);
    assert_eq!(FrontRing::<[u8; 112], u32>::NR_SLOTS, 32);
}

#[test]
fn requests_are_seen_only_once_published() {
    let (mut front, mut back) = ring();
    assert!(front.push([1, 2, 3]));
    assert_eq!(back.pop(), None);
    assert_eq!(front.publish(), Notify::Wanted);
    assert_eq!(back.pop(), Some([1, 2, 3]));
}

#[test]
fn a_full_ring_takes_no_request_until_a_response_is_taken() {
    let (mut front, mut back) = ring();
    for i in 0..Front::NR_SLOTS {
        assert!(front.push([i; 3]));
    }
    assert!(!front.push([0; 3]));
    let _ = front.publish();
    back.push(7);
    assert!(!front.push([0; 3]));
    assert_eq!(front.pop(), Ok(Some((0, 7))));
    assert_eq!(front.next_slot(), 0);
    assert!(front.push([0; 3]));
    assert_eq!(front.nr_free(), 0);
}

#[test]
fn a_back_end_that_looks_by_itself_gets_no_event() {
    let (mut front, mut back) = ring();
    assert!(front.push([0; 3]));
    assert_eq!(front.publish(), Notify::Wanted);
    assert!(front.push([1; 3]));
    assert_eq!(front.publish(), Notify::NotWanted);
    back.request_event(3);
    assert!(front.push([2; 3]));
    assert_eq!(front.publish(), Notify::Wanted);
    assert_eq!(front.publish(), Notify::NotWanted);
}

#[test]
fn a_response_before_the_last_look_is_not_slept_over() {
    let (mut front, mut back) = ring();
    for i in 0..3 {
        assert!(front.push([i; 3]));
    }
    let _ = front.publish();
    assert_eq!(front.request_event(), Ok(false));
    assert!(back.push(1));
    assert_eq!(front.pop(), Ok(Some((0, 1))));
    back.push(2);
    assert_eq!(front.request_event(), Ok(true));
}

#[test]
fn responses_nobody_asked_for_end_the_connection() {
    let (mut front, mut back) = ring();
    for claim in [1, 2, u32::MAX, 1 << 31] {
        back.claim(claim);
        let error = RingError { rsp_prod: claim, rsp_cons: 0, req_prod: 0 };
        assert_eq!(front.pop(), Err(error));
        assert_eq!(front.request_event(), Err(error));
    }
    assert!(front.push([0; 3]));
    let _ = front.publish();
    assert!(front.push([1; 3])); // not published: the peer cannot have answered it
    back.claim(2);
    assert_eq!(front.pop(), Err(RingError { rsp_prod: 2, rsp_cons: 0, req_prod: 1 }));
}

#[test]
fn a_response_index_that_goes_back_is_an_error() {
    let (mut front, mut back) = ring();
    assert!(front.push([0; 3]));
    let _ = front.publish();
    back.push(1);
    assert_eq!(front.pop(), Ok(Some((0, 1))));
    back.claim(0);
    assert_eq!(front.pop(), Err(RingError { rsp_prod: 0, rsp_cons: 1, req_prod: 1 }));
}

#[test]
fn indices_wrap_without_a_jolt() {
    let near_end = Indices { req_prod: 2, published: 2, rsp_cons: u32::MAX - 1, nr_slots: 8 };
    assert_eq!(near_end.nr_free(), 4);
    assert_eq!(near_end.slot(near_end.rsp_cons), 6);
    assert_eq!(near_end.nr_responses(u32::MAX), Ok(1));
    assert_eq!(near_end.nr_responses(2), Ok(4));
    assert!(near_end.nr_responses(3).is_err());
    assert_eq!(notify(u32::MAX - 1, 2, u32::MAX), Notify::Wanted);
    assert_eq!(notify(u32::MAX - 1, 2, 2), Notify::Wanted);
    assert_eq!(notify(u32::MAX - 1, 2, u32::MAX - 1), Notify::NotWanted);
    assert_eq!(notify(u32::MAX - 1, 2, 3), Notify::NotWanted);
}

#[test]
fn many_rounds_go_round_the_ring() {
    let (mut front, mut back) = ring();
    for i in 0..1000_u32 {
        assert_eq!(front.next_slot(), i % Front::NR_SLOTS);
        assert!(front.push([i; 3]));
        let _ = front.publish();
        assert_eq!(back.pop(), Some([i; 3]));
        back.push(i);
        assert_eq!(front.pop(), Ok(Some((i % Front::NR_SLOTS, i))));
        assert_eq!(front.pop(), Ok(None));
    }
}
