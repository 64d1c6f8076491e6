use super::*;

const PAGE: Mfn = Mfn::new(0x1234);
const GUEST: Domid = Domid::new(5);
const RETRY_S: u64 = 60;

fn with(errors: u64) -> Ledger {
    let mut ledger = Ledger::default();
    add(&mut ledger, PAGE, errors);
    ledger
}

fn add(ledger: &mut Ledger, mfn: Mfn, errors: u64) {
    ledger.take(Report { mfn, errors }).unwrap();
}

/// Deals with the page at second 0; gives the seconds until it is tried again.
fn settled(ledger: &mut Ledger, ending: Ending, reason: &str) -> Option<u64> {
    ledger.begin(PAGE);
    let outcome = Outcome { ending, reason: reason.to_owned(), owner: Some(GUEST) };
    ledger.settle(PAGE, &outcome, 0, RETRY_S)
}

fn is_due(ledger: &Ledger, now_s: u64) -> bool {
    let due = ledger.due(3, now_s);
    due.iter().flat_map(|(_, mfns)| mfns).any(|mfn| *mfn == PAGE)
}

/// As a new process reads it.
fn restarted(ledger: &Ledger) -> Ledger {
    let read = Ledger::parse(&ledger.json().to_string()).unwrap();
    assert_eq!(read, *ledger);
    read
}

#[test]
fn a_page_is_due_at_the_threshold_and_not_before() {
    assert!(!is_due(&with(2), 0));
    assert!(is_due(&with(3), 0));
}

#[test]
fn a_page_that_xen_has_out_of_use_is_not_due_whatever_is_reported() {
    let mut ledger = with(3);
    settled(&mut ledger, Ending::Offline, "exchanged");
    add(&mut ledger, PAGE, 1000);
    assert_eq!(ledger.doubt(|_| Some(true)), []);
    assert!(!is_due(&ledger, u64::MAX));
}

#[test]
fn a_page_that_fails_though_it_should_be_out_of_use_is_due_if_xen_has_it_in_use() {
    for ending in [Ending::Offline, Ending::Held] {
        let mut ledger = with(3);
        settled(&mut ledger, ending, "exchanged");
        let asked = std::cell::Cell::new(0);
        let ask = |answer| {
            let asked = &asked;
            move |_| {
                asked.set(asked.get() + 1);
                answer
            }
        };
        assert_eq!(ledger.doubt(ask(Some(false))), [], "no new errors");
        assert_eq!(asked.get(), 0, "Xen is asked only about pages that failed");
        add(&mut ledger, PAGE, 1);
        assert_eq!(ledger.doubt(ask(None)), [], "Xen did not answer");
        assert!(!is_due(&ledger, 0));
        assert_eq!(ledger.doubt(ask(Some(false))), [PAGE]);
        assert!(is_due(&ledger, 0), "{ending:?}");
    }
}

#[test]
fn after_a_reboot_pages_that_are_in_use_again_are_due_before_they_fail() {
    let mut ledger = with(3);
    ledger.resume("one", |_| None);
    settled(&mut ledger, Ending::Offline, "exchanged");
    let mut same = restarted(&ledger);
    assert_eq!(same.resume("one", |_| Some(true)), []);
    assert!(!is_due(&same, 0));
    let mut rebooted = restarted(&ledger);
    assert_eq!(rebooted.resume("two", |_| Some(false)), [PAGE]);
    assert!(is_due(&rebooted, 0));
}

#[test]
fn after_a_reboot_a_refused_page_has_another_owner_and_is_due() {
    let mut ledger = with(3);
    ledger.resume("one", |_| None);
    settled(&mut ledger, Ending::Refused, "xens");
    let mut same = restarted(&ledger);
    same.resume("one", |_| Some(false));
    assert!(!is_due(&same, u64::MAX));
    let mut rebooted = restarted(&ledger);
    rebooted.resume("two", |_| Some(false));
    assert!(is_due(&rebooted, 0));
}

#[test]
fn a_page_is_due_again_once_the_guest_that_had_it_is_gone() {
    let mut ledger = with(3);
    settled(&mut ledger, Ending::Refused, "passthrough");
    ledger.forget_owners(|owner| owner == GUEST);
    assert!(!is_due(&ledger, u64::MAX));
    ledger.forget_owners(|_| false);
    assert!(is_due(&ledger, 0));
    let asked = |_| unreachable!("nobody is known to have it");
    ledger.forget_owners(asked);
}

#[test]
fn a_refused_page_is_due_again_after_as_many_errors_as_before() {
    let mut ledger = with(3);
    assert_eq!(settled(&mut ledger, Ending::Refused, "xens"), None);
    add(&mut ledger, PAGE, 2);
    assert!(!is_due(&ledger, u64::MAX));
    add(&mut ledger, PAGE, 1);
    assert!(is_due(&ledger, 0));
}

#[test]
fn a_reason_that_may_pass_is_tried_again_by_time_and_each_wait_is_twice_the_one_before() {
    let mut ledger = with(3);
    assert_eq!(settled(&mut ledger, Ending::Later, "no-owner"), Some(RETRY_S));
    assert!(!is_due(&ledger, RETRY_S - 1));
    assert!(is_due(&ledger, RETRY_S));
    assert_eq!(settled(&mut ledger, Ending::Later, "no-owner"), Some(2 * RETRY_S));
    assert_eq!(settled(&mut ledger, Ending::Held, "held"), Some(RETRY_S), "another reason begins anew");
    for _ in 0..40 {
        settled(&mut ledger, Ending::Later, "no-owner");
    }
    assert_eq!(settled(&mut ledger, Ending::Later, "no-owner"), Some(RETRY_S << MAX_DOUBLINGS));
}

#[test]
fn a_wait_ends_early_when_the_page_has_failed_as_often_again_even_across_a_restart() {
    let mut ledger = with(3);
    settled(&mut ledger, Ending::Later, "being-saved");
    let mut restarted = restarted(&ledger);
    assert!(!is_due(&restarted, RETRY_S - 1));
    add(&mut restarted, PAGE, 3);
    assert!(is_due(&restarted, 0));
}

#[test]
fn a_count_at_its_maximum_is_no_reason_to_try_again() {
    let mut ledger = with(u64::MAX);
    settled(&mut ledger, Ending::Refused, "xens");
    assert!(!is_due(&ledger, u64::MAX));
    add(&mut ledger, PAGE, u64::MAX);
    assert!(!is_due(&ledger, u64::MAX));
}

#[test]
fn what_was_under_way_at_a_crash_is_due_after_the_restart_and_not_before() {
    let mut ledger = with(3);
    ledger.begin(PAGE);
    assert!(!is_due(&ledger, u64::MAX), "it is being dealt with");
    let mut restarted = restarted(&ledger);
    restarted.resume("", |_| None);
    assert!(is_due(&restarted, 0));
}

#[test]
fn frames_of_one_superpage_are_due_together_and_those_tried_less_often_come_first() {
    let mut ledger = with(3);
    settled(&mut ledger, Ending::Later, "no-owner");
    let others = [0x1235, 0x13ff, 0x5000, 0x5001].map(Mfn::new);
    others.iter().for_each(|mfn| add(&mut ledger, *mfn, 3));
    let [first, last] = [0x1200, 0x5000].map(Mfn::new);
    assert_eq!(ledger.due(3, 0), [(first, others[..2].to_vec()), (last, others[2..].to_vec())]);
    assert_eq!(ledger.nr_failing(first), 3);
    for mfn in &others[..2] {
        let outcome = Outcome { ending: Ending::Later, reason: "no-owner".to_owned(), owner: None };
        ledger.begin(*mfn);
        ledger.settle(*mfn, &outcome, 0, RETRY_S);
    }
    assert_eq!(ledger.due(3, RETRY_S)[0].0, last);
}

#[test]
fn pages_of_a_superpage_that_was_exchanged_are_due_below_the_threshold() {
    let mut ledger = with(3);
    let (near, far) = (Mfn::new(0x1235), Mfn::new(0x5000));
    add(&mut ledger, near, 1);
    add(&mut ledger, far, 1);
    settled(&mut ledger, Ending::Offline, "exchanged");
    ledger.hasten(region_of(PAGE));
    assert_eq!(ledger.due(3, 0), [(region_of(PAGE), vec![near])]);
}

#[test]
fn a_spool_file_counts_once_even_across_a_crash() {
    let mut ledger = with(1);
    assert!(ledger.take_file("/spool/a"));
    let mut restarted = restarted(&ledger);
    assert!(!restarted.take_file("/spool/a"));
    restarted.forget_files(|_| false);
    assert!(restarted.take_file("/spool/a"));
}

#[test]
fn pages_beyond_the_maximum_are_not_counted_and_known_ones_are() {
    let mut ledger = Ledger::default();
    for mfn in 1..=MAX_PAGES as u64 {
        add(&mut ledger, Mfn::new(mfn), 1);
    }
    assert_eq!(ledger.take(Report { mfn: Mfn::new(1 << 30), errors: 1 }), None);
    assert_eq!(ledger.take(Report { mfn: Mfn::new(7), errors: 1 }), Some(2));
}

#[test]
fn what_is_no_state_is_not_taken_for_an_empty_one() {
    for bad in ["", "{}", "{\"version\": 2, \"boot\": \"\", \"offset\": 0, \"files\": [], \"pages\": []}"] {
        assert_eq!(Ledger::parse(bad), None, "{bad}");
    }
}
