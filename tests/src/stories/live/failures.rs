//! Everything that can go wrong on the way: whatever breaks, exactly one guest runs on, nothing is left behind, and the
//! operator reads what happened.

use super::cases::{CASES, Case, End, NR_SHORT};
use super::receiver::{FALLS, Migration, Receiver, with_new_guest};
use super::traces::Traces;
use crate::machine::Options;
use crate::soak::{Chance, Soak};
use crate::story::{Stage, Stop, Story, Telling, Verdict, ensure};
use std::time::Instant;

/// The failures that differ most.
pub(in crate::stories) const FAILURES: Story = Story {
    name: "live-failures",
    proves: "a live migration that breaks (stub crashed or hanging, relay or receiver killed) leaves the source running and \
             nothing else, says what happened, and then succeeds",
    options: Options::default,
    tell: |stage| {
        let free_kib = rehearse(stage)?;
        with_new_guest(stage, GUEST, || {
            let mut traces = Traces::take(stage, GUEST)?;
            CASES[..NR_SHORT].iter().try_for_each(|case| {
                configure_for(stage, GUEST, case, "ring")?;
                break_one(stage, case, &mut traces)
            })
        })?;
        succeeds(stage)?;
        end(stage, free_kib)
    },
};

/// All of them, with the ring where they can be told of it.
pub(in crate::stories) const MATRIX: Soak = Soak {
    name: "live-matrix",
    proves: "a live migration that breaks in any of these ways at any of these places leaves the source running and \
             nothing else, says what happened, and then succeeds",
    options: Options::default,
    rounds: 1,
    tell: |stage, _, rounds| (0..rounds).try_for_each(|_| tell(stage, "ring")),
};

/// All of them with TCP.
pub(in crate::stories) const MATRIX_TCP: Soak = Soak {
    name: "live-matrix-tcp",
    tell: |stage, _, rounds| (0..rounds).try_for_each(|_| tell(stage, "tcp")),
    ..MATRIX
};

/// Back and forth, with failures in between.
pub(in crate::stories) const SOAK: Soak = Soak {
    name: "live",
    proves: "a busy guest that migrates again and again, with failures chosen at random in between, never has a wrong \
             byte, and every page comes back",
    options: Options::default,
    rounds: 50,
    tell: soak,
};

const GUEST: &str = "pvh-128";
/// What carries the stream from stubctl to the stub.
pub(super) const TRANSPORTS: &[&str] = &["tcp", "ring"];

/// Breaks each; goes on after a case that does not end as it should, so that one run tells of all.
fn tell(stage: &Stage, transport: &str) -> Telling {
    let free_kib = rehearse(stage)?;
    let mut wrong = Vec::new();
    let mut traces = begin(stage)?;
    for case in CASES {
        let began = Instant::now();
        let told = unless_it_falls(stage, &mut traces, |traces| {
            configure_for(stage, GUEST, case, transport)?;
            break_and_succeed(stage, case, traces)
        });
        if let Err(stop) = told {
            wrong.push(case.name); // not shown, whatever the reason
            stage.say(Verdict::from(Err(stop)));
            traces = begin_anew(stage)?;
        }
        stage.say(format!("  {:.0} s", began.elapsed().as_secs_f32()));
    }
    end(stage, free_kib)?;
    ensure(wrong.is_empty(), || {
        format!("{} of {} went wrong: {}", wrong.len(), CASES.len(), wrong.join(", "))
    })
}

/// What Xen and dom0 allocate once, for a first guest, stub or ring, is not to count: a guest moves by each transport and
/// goes. Gives the free memory then.
fn rehearse(stage: &Stage) -> Telling<u64> {
    with_new_guest(stage, GUEST, || {
        TRANSPORTS.iter().try_for_each(|transport| {
            configure(stage, GUEST, transport)?;
            succeeds(stage)
        })
    })?;
    stage.destroy_all()?;
    stage.expect_alone()?;
    stage.settled_free_kib()
}

/// A new guest that has moved once, so that it has a stub like every one that moves later.
fn begin(stage: &Stage) -> Telling<Traces> {
    with_new_guest(stage, GUEST, || succeeds(stage))?;
    Traces::take(stage, GUEST)
}

/// The same in the place of whatever is there.
fn begin_anew(stage: &Stage) -> Telling<Traces> {
    stage.destroy_all()?;
    stage.expect_alone()?;
    begin(stage)
}

/// Tells a part, and tells it again with a new guest when the guest falls by itself.
fn unless_it_falls(
    stage: &Stage,
    traces: &mut Traces,
    mut tell: impl FnMut(&mut Traces) -> Telling,
) -> Telling {
    for _ in 1..FALLS {
        match tell(traces) {
            Err(Stop::Skip(fell)) => {
                stage.say(format!("  {fell}; once more with a new one"));
                *traces = begin_anew(stage)?;
            }
            told => return told,
        }
    }
    tell(traces)
}

/// Every page has come back.
fn end(stage: &Stage, free_kib: u64) -> Telling {
    stage.sh(&format!("rm /etc/xen/stubdom/{GUEST}.conf; xl destroy {GUEST}"))?;
    stage.expect_alone()?;
    stage.expect_free(free_kib)
}

/// Something breaks, and then the same migration succeeds.
fn break_and_succeed(stage: &Stage, case: &Case, traces: &mut Traces) -> Telling {
    break_one(stage, case, traces)?;
    succeeds(stage)?;
    traces.take_moved(stage)
}

/// The guest's configuration: a stub that hangs is to be given up soon.
pub(super) fn configure(stage: &Stage, guest: &str, transport: &str) -> Telling {
    configure_patient(stage, guest, transport, 3)
}

fn configure_patient(stage: &Stage, guest: &str, transport: &str, stall_s: u32) -> Telling {
    let settings =
        format!("stall_timeout_s = {stall_s}\\ntransport = \"{transport}\"\\nfallback = \"refuse\"\\n");
    stage.sh(&format!("printf '{settings}' >/etc/xen/stubdom/{guest}.conf")).map(drop)
}

/// As [`configure`] says, or with time for a network that comes back.
pub(super) fn configure_for(stage: &Stage, guest: &str, case: &Case, transport: &str) -> Telling {
    let stall_s = if case.end == End::Moves { 40 } else { 3 };
    configure_patient(stage, guest, case.only.unwrap_or(transport), stall_s)
}

/// The guest moves as often as `rounds` says; before each move something breaks.
fn soak(stage: &Stage, chance: &mut Chance, rounds: u32) -> Telling {
    let free_kib = rehearse(stage)?;
    let mut traces = begin(stage)?;
    for round in 1..=rounds {
        stage.say(format!("round {round} of {rounds}"));
        let transport = TRANSPORTS[chance.below(TRANSPORTS.len())];
        let case = &CASES[chance.below(CASES.len())];
        let rate = [0, 64, 256, 1024, 4096][chance.below(5)];
        unless_it_falls(stage, &mut traces, |traces| {
            configure_for(stage, GUEST, case, transport)?;
            break_one(stage, case, traces)?;
            configure(stage, GUEST, transport)?;
            stage.ask(GUEST, &format!("rate {rate}"))?;
            succeeds(stage)?;
            traces.take_moved(stage)
        })?;
    }
    end(stage, free_kib)
}

fn break_one(stage: &Stage, case: &Case, traces: &mut Traces) -> Telling {
    stage.say(format!("{} (at {})", case.name, case.at));
    let migration = Receiver::with_deed(stage, GUEST, case.at, case.deed)?.migrate(stage, GUEST);
    undo(stage, GUEST, case)?;
    let migration = migration?;
    stage.say(format!("  {}", told(case, &migration)?));
    lives(stage, GUEST)?;
    if case.end == End::Stays {
        if case.may_be_behind_suspend() && !migration.found_it_running() {
            traces.excuse_watcher(stage)?;
        }
        return traces.expect_same(stage);
    }
    traces.take_moved(stage)
}

/// The migration that nothing breaks.
pub(super) fn succeeds(stage: &Stage) -> Telling {
    Receiver::through_stub(stage)?.migrate(stage, GUEST)?.expect_success()?;
    stage.ask(GUEST, "verify")?;
    Ok(())
}

/// Undoes what was done, whatever came of it.
pub(super) fn undo(stage: &Stage, guest: &str, case: &Case) -> Telling {
    match case.undo {
        "" => Ok(()),
        undo => stage.sh(&format!("guest={guest}; {undo}")).map(drop),
    }
}

/// The migration ended as it should; gives the line that the operator reads.
pub(super) fn told<'a>(case: &Case, migration: &'a Migration) -> Telling<&'a str> {
    let moved = migration.code == 0;
    ensure(moved == (case.end == End::Moves), || {
        format!("{}: xl migrate ended with {}:\n{}", case.name, migration.code, migration.text)
    })?;
    migration.line(case.told)
}

/// The guest runs, and all of its memory is right.
pub(super) fn lives(stage: &Stage, guest: &str) -> Telling {
    stage.ask(guest, "ticking --timeout 60")?;
    stage.ask(guest, "verify").map(drop)
}
