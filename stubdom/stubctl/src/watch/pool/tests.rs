use super::*;

/// A worker that answers at once that a frame is out of use, and hangs at those of 0x1000 to 0x1fff; it ends when it is told
/// to stop, also then.
const WORKER: &str = r#"
while read -r lot; do
    for mfn in $lot; do
        case $mfn in 0x1???) sed d; exit 3 ;; 0xdead) exit 4 ;; esac
        echo "{\"verdict\":{\"mfn\":$((mfn)),\"reason\":\"exchanged\"},\"ending\":\"offline\",\"line\":\"$mfn by $$\"}"
    done
done"#;

const HANGING: Mfn = Mfn::new(0x1234);

fn pool(patience: Duration, deadline: Duration) -> Pool {
    let make = || {
        let mut command = Command::new("sh");
        command.args(["-c", WORKER]);
        command
    };
    Pool::new(make, Limits { patience, deadline })
}

const NEVER: Duration = Duration::from_secs(1 << 20);

fn lot(mfns: &[u64]) -> Lot {
    Lot { mfns: mfns.iter().copied().map(Mfn::new).collect(), is_split: false }
}

/// Waits for so many answers, however slow the host is.
fn answers(pool: &mut Pool, nr: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    while answers.len() < nr {
        let polled = pool.polled();
        sys::poll(&polled.iter().collect::<Vec<_>>(), Duration::from_millis(20)).unwrap();
        answers.append(&mut pool.answers());
    }
    answers
}

#[test]
fn one_worker_does_one_lot_after_another() {
    let mut pool = pool(NEVER, NEVER);
    pool.begin(&lot(&[0x20, 0x21])).unwrap();
    assert!(!pool.has_room(), "it has not answered");
    let first = answers(&mut pool, 2);
    assert!(pool.is_idle() && pool.has_room());
    pool.begin(&lot(&[0x40])).unwrap();
    let second = answers(&mut pool, 1);
    let worker = |answer: &Answer| answer.line.split_once(" by ").unwrap().1.to_owned();
    assert_eq!(worker(&first[1]), worker(&second[0]));
    assert_eq!(second[0].mfn, Mfn::new(0x40));
}

#[test]
fn a_worker_that_hangs_at_one_guest_keeps_its_lot_and_another_serves_the_others() {
    let mut pool = pool(Duration::ZERO, NEVER);
    pool.begin(&lot(&[0x1234])).unwrap();
    assert!(pool.has_room(), "nobody waits for it any more");
    pool.begin(&lot(&[0x40])).unwrap();
    assert_eq!(answers(&mut pool, 1)[0].mfn, Mfn::new(0x40));
    assert!(!pool.is_idle(), "the first owes its answer still");
}

#[test]
fn workers_that_hang_are_bounded_in_number() {
    let mut pool = pool(Duration::ZERO, NEVER);
    for _ in 0..MAX_WORKERS {
        assert!(pool.has_room());
        pool.begin(&lot(&[0x1234])).unwrap();
    }
    assert!(!pool.has_room() && pool.is_stuck());
}

#[test]
fn a_daemon_that_a_worker_leaves_behind_does_not_keep_the_worker() {
    let make = || {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 20 2>&- & read -r lot; exit 3"]);
        command
    };
    let mut pool = Pool::new(make, Limits { patience: NEVER, deadline: NEVER });
    pool.begin(&lot(&[0x20])).unwrap();
    assert_eq!(answers(&mut pool, 1)[0].outcome.reason, "worker-ended");
    assert!(pool.workers.is_empty());
}

#[test]
fn after_the_deadline_a_worker_is_told_to_stop_and_its_frames_are_tried_later() {
    let mut pool = pool(Duration::ZERO, Duration::ZERO);
    pool.begin(&lot(&[0x1234])).unwrap();
    let answer = &answers(&mut pool, 1)[0];
    assert_eq!((answer.mfn, answer.outcome.ending), (HANGING, Ending::Later));
    assert_eq!(answer.outcome.reason, "no-answer");
    assert!(pool.is_idle());
    while !pool.workers.is_empty() {
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(pool.answers(), []);
    }
}

#[test]
fn the_frames_of_a_worker_that_dies_are_tried_later() {
    let mut pool = pool(NEVER, NEVER);
    pool.begin(&lot(&[0x20, 0xdead, 0x22])).unwrap();
    let answers = answers(&mut pool, 3);
    let reasons: Vec<&str> = answers.iter().map(|answer| answer.outcome.reason.as_str()).collect();
    assert_eq!(reasons, ["exchanged", "worker-ended", "worker-ended"]);
    assert!(pool.is_idle());
}

#[test]
fn a_worker_without_work_ends() {
    let mut pool = pool(NEVER, NEVER);
    pool.begin(&lot(&[0x20])).unwrap();
    answers(&mut pool, 1);
    pool.dismiss_free();
    while !pool.workers.is_empty() {
        std::thread::sleep(Duration::from_millis(10));
        pool.answers();
    }
}
