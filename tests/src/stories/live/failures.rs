//! Everything that can go wrong on the way: whatever breaks, exactly one guest runs on, nothing is left behind, and the
//! operator reads what happened.

use super::receiver::{Migration, Receiver};
use super::traces::Traces;
use crate::machine::Options;
use crate::soak::{Chance, Soak};
use crate::story::{Stage, Stop, Story, Telling, Verdict, ensure};
use std::time::Instant;

/// The failures that differ most.
pub(in crate::stories) const FAILURES: Story = Story {
    name: "live-failures",
    proves: "a live migration that breaks (stub crashed, relay or receiver killed) leaves the source running and nothing \
             else, says what happened, and then succeeds",
    options: Options::default,
    tell: |stage| {
        let free_kib = rehearse(stage, &["ring"])?;
        with_new_guest(stage, || {
            let mut traces = Traces::take(stage)?;
            CASES[..NR_SHORT].iter().try_for_each(|case| break_one(stage, case, &mut traces))?;
            succeeds(stage)
        })?;
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
const CONF: &str = "/etc/xen/stubdom/pvh-128.conf";

/// What carries the stream from stubctl to the stub.
const TRANSPORTS: &[&str] = &["tcp", "ring"];

/// How many of the cases, from the first, the short story tells.
const NR_SHORT: usize = 3;

/// Something that breaks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Where in the stream, as nest-gate names it.
    pub(super) at: &'static str,
    /// What is done there, in bash.
    pub(super) deed: &'static str,
    /// What the operator reads.
    pub(super) told: &'static str,
    /// What undoes the deed.
    pub(super) undo: &'static str,
    /// The one transport of which it can be told, if it is one.
    pub(super) only: Option<&'static str>,
    pub(super) end: End,
}

/// How a case ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The source runs on.
    Stays,
    /// The migration succeeds all the same.
    Moves,
}

impl Case {
    /// Whether the guest has suspended by then.
    fn is_behind_suspend(&self) -> bool {
        matches!(self.at, "state" | "end" | "after")
    }
}

/// Fills Xen's memory with a domain that sleeps, but for some MiB. Its page tables take 4 KiB a MiB, and a MiB for its
/// vCPU (`libxl__get_required_paging_memory`); what Xen keeps for it besides comes out of what is left.
macro_rules! hog {
    ($left_mib:literal) => {
        concat!(
            "m=$((($(xl info free_memory) - 1 - ",
            $left_mib,
            ") * 256 / 257)); xl create -p -q /etc/xen/stubdom/guests/pvh-128.cfg 'name=\"hog\"' memory=$m maxmem=$m"
        )
    };
}

const fn stays(name: &'static str, at: &'static str, deed: &'static str, told: &'static str) -> Case {
    Case { name, at, deed, told, undo: "", only: None, end: End::Stays }
}

const fn stays_by_tcp(name: &'static str, deed: &'static str, told: &'static str) -> Case {
    Case { name, at: "memory", deed, told, undo: "", only: Some("tcp"), end: End::Stays }
}

const fn stays_hogged(name: &'static str, at: &'static str, deed: &'static str, told: &'static str) -> Case {
    Case { undo: "xl destroy hog", ..stays(name, at, deed, told) }
}

pub(super) const CASES: &[Case] = &[
    stays("stub crashes in memory", "page", "xl sysrq $stub c", "its last words are in"),
    stays("relay killed in memory", "memory", "kill -9 $helper", "died due to fatal signal Killed"),
    stays("receiver killed in memory", "memory", "kill -9 $receiver", "Migration failed"),
    stays("stub hangs in memory", "memory", "xl pause $stub", "the stub did not answer within 3 s"),
    stays("stub destroyed in memory", "memory", "xl destroy $stub", "its last words are in"),
    stays(
        "sender killed in memory",
        "memory",
        "kill -9 $(ps -o pid,args | awk '$2 ~ /xl$/ && / migrate -s/ { print $1 }')",
        "expected more up to the END record",
    ),
    stays_by_tcp("connection cut in memory", "ss -K dport = 8002", "expected more up to the END record"),
    // The stub loses its connection or stubctl its patience, whichever comes first.
    stays_by_tcp("vif unplugged in memory", "xl network-detach $stub 0", "stubctl: error: "),
    Case {
        name: "vif unplugged and plugged in memory",
        at: "memory",
        deed: "mac=$(xenstore-read /local/domain/0/backend/vif/$stub/0/mac); xl network-detach $stub 0; \
               xl network-attach $stub bridge=xenstub0 mac=$mac; sleep 1",
        told: "Migration successful",
        undo: "",
        only: Some("tcp"),
        end: End::Moves,
    },
    // A stub takes 16 MiB.
    stays_hogged("no memory for the stub", "context", hog!(6), "xl create of the stub failed"),
    stays_hogged("no memory for the rest", "memory", hog!(8), "Xen has no memory for"),
    Case {
        end: End::Moves,
        ..stays_hogged("no memory once it is here", "state", hog!(4), "Migration successful")
    },
    Case {
        name: "no room for the report",
        at: "headers",
        deed: "mkdir -p /var/lib/xen-stubdom; mount -t tmpfs -o size=4k none /var/lib/xen-stubdom; \
               dd if=/dev/zero of=/var/lib/xen-stubdom/full bs=4k count=1 2>/dev/null",
        told: "cannot write the report",
        undo: "umount /var/lib/xen-stubdom",
        only: None,
        end: End::Moves,
    },
    Case {
        name: "relay and receiver killed in memory",
        at: "memory",
        deed: "kill -9 $receiver $helper",
        told: "Migration failed",
        undo: "sleep 2; xl destroy pvh-128--incoming",
        only: None,
        end: End::Stays,
    },
    Case {
        name: "receiver killed behind END",
        at: "after",
        deed: "kill -9 $receiver",
        told: "Migration failed",
        undo: "xl destroy pvh-128--incoming", // complete, paused, and nobody's: the stock helper leaves it too
        only: None,
        end: End::Stays,
    },
    stays("stub destroyed before the stream", "headers", SETTLED_DESTROY, "its last words are in"),
    stays("stub destroyed in a later pass", "precopy", "xl destroy $stub", "its last words are in"),
    stays("stub destroyed at its state", "state", "xl destroy $stub", "its last words are in"),
    stays("stub crashes before END", "end", "xl sysrq $stub c", "its last words are in"),
    stays("stub hangs before END", "end", "xl pause $stub", "the stub did not answer within 3 s"),
    stays("relay killed before END", "end", "kill -9 $helper", "died due to fatal signal Killed"),
    stays("relay killed at its start", "headers", "kill -9 $helper", "died due to fatal signal Killed"),
    stays("relay stopped by a signal", "memory", "kill $helper", "aborted by a signal"),
];

/// The stub comes into being while the stream waits; it goes when stubctl has connected to it.
const SETTLED_DESTROY: &str = "until stub=$(xenstore-read /local/domain/$target/stubdom 2>/dev/null); do sleep 0.1; done; \
     until [ \"$(xenstore-read /local/domain/$stub/data/status/phase 2>/dev/null)\" = listening ]; do sleep 0.1; done; \
     ! grep -q tcp /etc/xen/stubdom/$guest.conf || until ss -Htn dport = 8002 | grep -q ESTAB; do sleep 0.1; done; \
     sleep 0.5; xl destroy $stub";

/// Breaks each; goes on after a case that does not end as it should, so that one run tells of all.
fn tell(stage: &Stage, transport: &str) -> Telling {
    let free_kib = rehearse(stage, TRANSPORTS)?;
    let mut wrong = Vec::new();
    let mut traces = begin(stage)?;
    for case in CASES {
        let began = Instant::now();
        configure_for(stage, case, transport)?;
        if let Err(stop) = break_and_succeed(stage, case, &mut traces) {
            wrong.push(case.name); // not shown, whatever the reason
            stage.say(Verdict::from(Err(stop)));
            stage.destroy_all()?;
            stage.expect_alone()?;
            traces = begin(stage)?;
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
fn rehearse(stage: &Stage, transports: &[&str]) -> Telling<u64> {
    with_new_guest(stage, || {
        transports.iter().try_for_each(|transport| {
            configure(stage, transport)?;
            succeeds(stage)
        })
    })?;
    stage.destroy_all()?;
    stage.expect_alone()?;
    stage.settled_free_kib()
}

/// A new guest that has moved once, so that it has a stub like every one that moves later.
fn begin(stage: &Stage) -> Telling<Traces> {
    with_new_guest(stage, || succeeds(stage))?;
    Traces::take(stage)
}

/// How many new guests may fall by themselves, one after another.
const FALLS: u32 = 3;

/// Does something with a new guest, and again with another one when it falls by itself.
fn with_new_guest(stage: &Stage, tell: impl Fn() -> Telling) -> Telling {
    for _ in 0..FALLS {
        stage.create(GUEST)?;
        match tell() {
            Err(Stop::Skip(fell)) => {
                stage.say(format!("{fell}; once more with a new one"));
                stage.destroy_all()?;
                stage.expect_alone()?;
            }
            told => return told,
        }
    }
    Err(Stop::Failure(format!("{FALLS} guests fell by themselves")))
}

/// Every page has come back.
fn end(stage: &Stage, free_kib: u64) -> Telling {
    stage.sh(&format!("rm {CONF}; xl destroy {GUEST}"))?;
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
fn configure(stage: &Stage, transport: &str) -> Telling {
    configure_patient(stage, transport, 3)
}

fn configure_patient(stage: &Stage, transport: &str, stall_s: u32) -> Telling {
    stage.sh(&format!("printf 'stall_timeout_s = {stall_s}\\ntransport = {transport}\\n' >{CONF}")).map(drop)
}

/// As [`configure`] says, or with time for a network that comes back.
fn configure_for(stage: &Stage, case: &Case, transport: &str) -> Telling {
    let stall_s = if case.end == End::Moves { 40 } else { 3 };
    configure_patient(stage, case.only.unwrap_or(transport), stall_s)
}

/// The guest moves as often as `rounds` says; before each move something breaks.
fn soak(stage: &Stage, chance: &mut Chance, rounds: u32) -> Telling {
    let free_kib = rehearse(stage, TRANSPORTS)?;
    let mut traces = begin(stage)?;
    for round in 1..=rounds {
        stage.say(format!("round {round} of {rounds}"));
        let transport = TRANSPORTS[chance.below(TRANSPORTS.len())];
        configure(stage, transport)?;
        if let Some(case) = chance.pick(CASES) {
            configure_for(stage, case, transport)?;
            break_one(stage, case, &mut traces)?;
            configure(stage, transport)?;
        }
        stage.ask(GUEST, &format!("rate {}", [0, 64, 256, 1024, 4096][chance.below(5)]))?;
        succeeds(stage)?;
        traces.take_moved(stage)?;
    }
    end(stage, free_kib)
}

fn break_one(stage: &Stage, case: &Case, traces: &mut Traces) -> Telling {
    stage.say(format!("{} (at {})", case.name, case.at));
    let migration = Receiver::with_deed(stage, GUEST, case.at, case.deed)?.migrate(stage, GUEST);
    if !case.undo.is_empty() {
        stage.sh(case.undo)?;
    }
    judge(stage, case, &migration?)?;
    if case.end == End::Stays {
        if case.is_behind_suspend() {
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

/// The operator was told, and the guest lives.
pub(super) fn judge(stage: &Stage, case: &Case, migration: &Migration) -> Telling {
    let moved = migration.code == 0;
    ensure(moved == (case.end == End::Moves), || {
        format!("{}: xl migrate ended with {}:\n{}", case.name, migration.code, migration.text)
    })?;
    stage.say(format!("  {}", migration.line(case.told)?));
    stage.ask(GUEST, "ticking --timeout 60")?;
    stage.ask(GUEST, "verify")?;
    Ok(())
}
