//! The n-th call fails, for every n.

use super::*;

/// A guest that does everything while it is sent.
fn eventful() -> FakeSource {
    let mut source = guest();
    source.acts.insert(7, vec![Act::Write(Gfn::new(5), 1), Act::BalloonIn(Gfn::new(0xa1), 3)]);
    source.acts.insert(10, vec![Act::BalloonOut(Gfn::new(6)), Act::Write(Gfn::new(7), 2)]);
    source
}

#[test]
fn whichever_call_fails_no_frame_is_held_and_only_a_mapping_is_tried_again() {
    let mut sound = eventful();
    send(&mut sound, config(Mode::Live(BUSY)), usize::MAX).expect("sound");
    assert_arrived(&sound);
    for (nr, call) in sound.calls.iter().enumerate() {
        let mut source = eventful();
        source.fail_call = Some(nr);
        let outcome = send(&mut source, config(Mode::Live(BUSY)), usize::MAX);
        assert_eq!(source.nr_shown(), 0, "call {nr}, {call:?}");
        match call {
            SendCall::Other(name) => assert!(outcome.is_err(), "call {nr}, {name}"),
            SendCall::Show(_) | SendCall::Release => {
                assert!(outcome.is_ok(), "call {nr}, {call:?}: {outcome:?}");
                assert_arrived(&source);
            }
        }
    }
}

#[test]
fn a_failed_send_stays_failed_and_asks_for_nothing_more() {
    let mut source = guest();
    source.fail_call = Some(2);
    let mut send = Send::new(config(Mode::Suspended));
    let error = send.turn(&mut source).expect_err("it fails");
    let nr_calls = source.calls.len();
    assert_eq!(error, Error::Suspend(crate::xen::Errno::ENOMEM));
    assert_eq!((send.turn(&mut source), source.calls.len()), (Err(error), nr_calls));
}
