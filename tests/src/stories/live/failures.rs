//! Everything that can go wrong on the way: whatever breaks, exactly one guest runs on, nothing is left behind, and the
//! operator reads what happened.

use super::receiver::{Migration, Receiver};
use super::traces::Traces;
use crate::machine::Options;
use crate::soak::{Chance, Soak};
use crate::story::{Stage, Story, Telling, Verdict, ensure};

/// The failures that differ most.
pub(in crate::stories) const FAILURES: Story = Story {
    name: "live-failures",
    proves: "a live migration that breaks (stub crashed or hanging, relay or receiver killed) leaves the source running \
             and nothing else, says what happened, and then succeeds",
    options: Options::default,
    tell: |stage| tell(stage, &CASES[..NR_SHORT], TRANSPORTS),
};

/// All of them.
pub(in crate::stories) const MATRIX: Soak = Soak {
    name: "live-matrix",
    proves: "a live migration that breaks in any of these ways at any of these places leaves the source running and \
             nothing else, says what happened, and then succeeds",
    options: Options::default,
    rounds: 1,
    tell: |stage, _, rounds| (0..rounds).try_for_each(|_| tell(stage, CASES, TRANSPORTS)),
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

/// Fills all memory but 8 MiB.
const HOG: &str = "m=$(($(xl info free_memory) * 63 / 64 - 8)); \
     xl create -p -q /etc/xen/stubdom/guests/pvh-128.cfg 'name=\"hog\"' memory=$m maxmem=$m";

const fn stays(name: &'static str, at: &'static str, deed: &'static str, told: &'static str) -> Case {
    Case { name, at, deed, told, undo: "", only: None, end: End::Stays }
}

const fn stays_by_tcp(name: &'static str, deed: &'static str, told: &'static str) -> Case {
    Case { name, at: "memory", deed, told, undo: "", only: Some("tcp"), end: End::Stays }
}

pub(super) const CASES: &[Case] = &[
    stays("stub crashes in memory", "page", "xl sysrq $stub c", "its last words are in"),
    stays("relay killed in memory", "memory", "kill -9 $helper", "died due to fatal signal Killed"),
    stays("receiver killed in memory", "memory", "kill -9 $receiver", "Migration failed"),
    stays("stub hangs in memory", "memory", "xl pause $stub", "the stub did not answer within 3 s"),
    stays("stub destroyed in memory", "memory", "xl destroy $stub", "its last words are in"),
    stays("stub destroyed before the stream", "headers", SETTLED_DESTROY, "its last words are in"),
    stays("stub destroyed in a later pass", "precopy", "xl destroy $stub", "its last words are in"),
    stays("stub destroyed at its state", "state", "xl destroy $stub", "its last words are in"),
    stays("stub crashes before END", "end", "xl sysrq $stub c", "its last words are in"),
    stays("stub hangs before END", "end", "xl pause $stub", "the stub did not answer within 3 s"),
    stays("relay killed before END", "end", "kill -9 $helper", "died due to fatal signal Killed"),
    stays("relay killed at its start", "headers", "kill -9 $helper", "died due to fatal signal Killed"),
    stays("relay stopped by a signal", "memory", "kill $helper", "aborted by a signal"),
    Case {
        name: "receiver killed behind END",
        at: "after",
        deed: "kill -9 $(ps -o pid,args | awk '$2 ~ /xl$/ && / migrate-receive/ { pid = $1 } END { print pid }')",
        told: "Migration failed",
        undo: "xl destroy pvh-128--incoming", // complete, paused, and nobody's: the stock helper leaves it too
        only: None,
        end: End::Stays,
    },
    stays(
        "sender killed in memory",
        "memory",
        "kill -9 $(ps -o pid,args | awk '$2 ~ /xl$/ && / migrate -s/ { print $1 }')",
        "the stream ends at",
    ),
    Case {
        name: "relay and receiver killed in memory",
        at: "memory",
        deed: "kill -9 $receiver $helper",
        told: "Migration failed",
        undo: "sleep 2; xl destroy pvh-128--incoming",
        only: None,
        end: End::Stays,
    },
    stays_by_tcp("connection cut in memory", "ss -K dport = 8002", "the stub closed the stream at"),
    stays_by_tcp(
        "vif unplugged in memory",
        "xl network-detach $stub 0",
        "the stub did not answer within 3 s",
    ),
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
    Case {
        name: "no memory for the rest",
        at: "memory",
        deed: HOG,
        told: "Xen has no memory for",
        undo: "xl destroy hog",
        only: None,
        end: End::Stays,
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
];

/// The stub comes into being while the stream waits.
const SETTLED_DESTROY: &str = "until stub=$(xenstore-read /local/domain/$target/stubdom 2>/dev/null); do sleep 0.1; done; \
     until [ \"$(xenstore-read /local/domain/$stub/data/status/phase 2>/dev/null)\" = listening ]; do sleep 0.1; done; \
     xl destroy $stub";

/// Breaks each; goes on after a case that does not end as it should, so that one run tells of all.
fn tell(stage: &Stage, cases: &[Case], transports: &[&str]) -> Telling {
    let mut wrong = Vec::new();
    let mut traces = begin(stage)?;
    for transport in transports {
        configure(stage, transport)?;
        for case in cases.iter().filter(|case| case.only.is_none_or(|only| only == *transport)) {
            if let Err(stop) = break_one(stage, case, &mut traces) {
                wrong.push(format!("{} ({transport})", case.name));
                stage.say(Verdict::from(Err(stop)));
                traces = begin_anew(stage, transport)?;
            }
        }
        succeeds(stage)?;
        traces = Traces::take(stage)?;
    }
    end(stage)?;
    ensure(wrong.is_empty(), || format!("{} went wrong: {}", wrong.len(), wrong.join(", ")))
}

/// Clears away what a case that ended wrong has left.
fn begin_anew(stage: &Stage, transport: &str) -> Telling<Traces> {
    stage.sh("xl list | awk 'NR > 1 && $2 != 0 { print $2 }' | xargs -r -n 1 xl destroy")?;
    stage.expect_alone()?;
    let traces = begin(stage)?;
    configure(stage, transport)?;
    Ok(traces)
}

/// The guest's configuration: a stub that hangs is to be given up soon.
fn configure(stage: &Stage, transport: &str) -> Telling {
    stage.sh(&format!("printf 'stall_timeout_s = 3\\ntransport = {transport}\\n' >{CONF}")).map(drop)
}

/// The guest moves as often as `rounds` says; before each move something breaks, unless it cannot on this transport.
fn soak(stage: &Stage, chance: &mut Chance, rounds: u32) -> Telling {
    let mut traces = begin(stage)?;
    for round in 1..=rounds {
        stage.say(format!("round {round} of {rounds}"));
        let transport = TRANSPORTS[chance.below(TRANSPORTS.len())];
        configure(stage, transport)?;
        let case = chance.pick(CASES).filter(|case| case.only.is_none_or(|only| only == transport));
        if let Some(case) = case {
            break_one(stage, case, &mut traces)?;
        }
        stage.ask(GUEST, &format!("rate {}", [0, 64, 256, 1024, 4096][chance.below(5)]))?;
        succeeds(stage)?;
        traces.expect_as_much_memory(stage)?;
        traces = Traces::take(stage)?;
    }
    end(stage)
}

/// A guest that has moved once: what Xen and dom0 allocate once for a first migration is not to count.
fn begin(stage: &Stage) -> Telling<Traces> {
    configure(stage, TRANSPORTS[0])?;
    stage.create(GUEST)?;
    succeeds(stage)?;
    Traces::take(stage)
}

fn end(stage: &Stage) -> Telling {
    stage.sh(&format!("rm {CONF}; xl destroy {GUEST}"))?;
    stage.expect_alone()
}

fn break_one(stage: &Stage, case: &Case, traces: &mut Traces) -> Telling {
    stage.say(format!("{} (at {})", case.name, case.at));
    let migration = Receiver::with_deed(stage, GUEST, case.at, case.deed)?.migrate(stage, GUEST)?;
    if !case.undo.is_empty() {
        stage.sh(case.undo)?;
    }
    judge(stage, case, &migration)?;
    if case.end == End::Stays {
        return traces.expect_same(stage);
    }
    traces.expect_as_much_memory(stage)?;
    *traces = Traces::take(stage)?;
    Ok(())
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
