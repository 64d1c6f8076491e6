use super::*;
use crate::ring::testing::{BackRing, pair};
use crate::shared_mem::testing::pages;

fn queue() -> (TxQueue, BackRing<TxRequest, TxResponse>) {
    let (front, back) = pair();
    let grefs = (100..).take(NR_TX_PAGES).map(Gref::new).collect();
    // SAFETY: fresh pages that only the queue touches.
    #[allow(unsafe_code, reason = "a test's own pages")]
    let pages = unsafe { TxPages::new(pages(NR_TX_PAGES), grefs) };
    (TxQueue::new(front, pages), back)
}

fn send(queue: &mut TxQueue, len: usize) {
    queue.send(len, |bytes| assert_eq!(bytes.len(), len));
}

#[test]
fn a_frame_goes_out_in_one_slot_that_says_where_it_lies() {
    let (mut queue, mut back) = queue();
    send(&mut queue, 60);
    send(&mut queue, 1514);
    assert_eq!(back.pop(), None);
    assert_eq!(queue.publish(), Notify::Wanted);
    assert_eq!(back.pop(), Some(TxRequest { gref: 100, offset: 0, flags: 0, id: 0, size: 60 }));
    assert_eq!(back.pop(), Some(TxRequest { gref: 100, offset: 2048, flags: 0, id: 1, size: 1514 }));
}

#[test]
fn without_a_free_buffer_there_is_no_room_until_the_back_end_answers() {
    let (mut queue, mut back) = queue();
    for _ in 0..NR_BUFFERS {
        assert_eq!(queue.has_room(), Ok(true));
        send(&mut queue, 60);
    }
    let _ = queue.publish();
    assert_eq!(queue.has_room(), Ok(false));
    assert_eq!(queue.request_event(), Ok(false));
    assert!(back.push(TxResponse { id: 17, status: 0 }));
    assert_eq!(queue.request_event(), Ok(true));
    assert_eq!(queue.has_room(), Ok(true));
    send(&mut queue, 60);
    let _ = queue.publish();
    assert_eq!((0..=NR_BUFFERS).filter_map(|_| back.pop()).last().map(|request| request.id), Some(17));
}

#[test]
fn an_answer_for_a_buffer_that_is_not_on_its_way_is_an_error() {
    for got in [1, 63, 64, u16::MAX] {
        let (mut queue, mut back) = queue();
        send(&mut queue, 60);
        let _ = queue.publish();
        back.push(TxResponse { id: got, status: 0 });
        assert_eq!(queue.reap(), Err(NetError::TxId { got }));
    }
}

#[test]
fn a_second_answer_for_the_same_buffer_is_an_error() {
    let (mut queue, mut back) = queue();
    send(&mut queue, 60);
    send(&mut queue, 60);
    let _ = queue.publish();
    back.push(TxResponse { id: 0, status: -1 });
    back.push(TxResponse { id: 0, status: 0 });
    assert_eq!(queue.reap(), Err(NetError::TxId { got: 0 }));
    assert_eq!(queue.counters.nr_failed, 1);
}

#[test]
fn a_frame_that_does_not_fit_is_lost_and_harms_nothing() {
    let (mut queue, mut back) = queue();
    send(&mut queue, TX_BUFFER_BYTES + 1);
    assert_eq!(queue.publish(), Notify::NotWanted);
    assert_eq!(back.pop(), None);
}
