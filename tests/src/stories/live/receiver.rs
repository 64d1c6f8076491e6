//! The receiving end of `xl migrate` to the same host: `-s ''` makes xl take the "host" for a command, which is a
//! script here.

use super::BUSY;
use crate::dom0::Outcome;
use crate::story::{Stage, Stop, THROUGH_STUB, Telling, ensure};
use crate::tool;

const SCRIPT: &str = "/run/receive.sh";
const DEED: &str = "/run/deed.sh";

/// Waits for those who take part. The daemons that earlier migrations have left have the receiver's words, but init for
/// their parent; behind END the helper has gone.
const MEET: &str = "\
    for i in $(seq 50); do target=$(xl domid $guest--incoming 2>/dev/null) && break; sleep 0.2; done
    receiver=$(ps -o pid,ppid,args | awk '$2 != 1 && $3 ~ /xl$/ && / migrate-receive/ { print $1; exit }')
    [ $place = after ] || for i in $(seq 50); do helper=$(pidof stubctl) && break; sleep 0.1; done
    stub=$(xenstore-read /local/domain/$target/stubdom 2>/dev/null)";

/// When a receiver has failed, the gate may be waiting for a sender that waits for the receiver's last word, or for the end
/// of the script: ssh would hang up.
const HANG_UP: &str = "code=$?; [ $code = 0 ] || kill $(pidof nest-gate) 2>/dev/null; exit $code;";

/// Waits until gate and relay have ended; a stubctl that does something else may stay.
pub(super) const AWAIT_END: &str = "for i in $(seq 100); do \
    pidof nest-gate >/dev/null || ps -o args | grep -q '[s]tubctl --restore-domain' || break; sleep 0.2; done";

/// A script that receives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receiver;

impl Receiver {
    /// Receives through the stub.
    pub(super) fn through_stub(stage: &Stage) -> Telling<Self> {
        Self::write(stage, "nest-gate", THROUGH_STUB)
    }

    /// Receives through the stub or, with an empty `environment`, with the packaged helper, and tells each place of the
    /// stream.
    pub(super) fn telling(stage: &Stage, environment: &str) -> Telling<Self> {
        Self::write(stage, "nest-gate --tell", environment)
    }

    /// Receives through the stub; when the stream is at `place` it stops, and `deed` is done. The deed has `$guest` and,
    /// behind the place "context", `$target` and `$stub`, and `$receiver` and, up to END, `$helper`, the processes.
    pub(super) fn with_deed(stage: &Stage, guest: &str, place: &str, deed: &str) -> Telling<Self> {
        Self::with_gate(stage, guest, place, deed, "")
    }

    /// As [`Receiver::with_deed`], with more options for the gate.
    pub(super) fn with_gate(
        stage: &Stage,
        guest: &str,
        place: &str,
        deed: &str,
        options: &str,
    ) -> Telling<Self> {
        let meet = if place == "context" { "" } else { MEET };
        stage.sh(&format!("cat >{DEED} <<'END'\nguest={guest}\nplace={place}\n{meet}\n{deed}\nEND"))?;
        let gate = format!("nest-gate {options} --at {place} --run 'source {DEED}'");
        Self::write(stage, &gate, THROUGH_STUB)
    }

    fn write(stage: &Stage, gate: &str, environment: &str) -> Telling<Self> {
        stage.sh(&format!(
            "cat >{SCRIPT} <<'END'\n#!/bin/bash\n{gate} | {{ {environment}xl -v migrate-receive; {HANG_UP} }}\nEND\nchmod +x {SCRIPT}"
        ))?;
        Ok(Self)
    }

    /// The script that receives, from standard input.
    pub(super) const fn script(self) -> &'static str {
        SCRIPT
    }

    /// What migrates a guest to it and ends when both ends have; `verbose` is for the sender.
    pub(super) fn command(guest: &str, verbose: &str) -> String {
        format!(
            "timeout 240 xl {verbose} migrate -s '' {guest} {SCRIPT} 2>&1; code=$?
             {AWAIT_END}; exit $code"
        )
    }

    /// Migrates a guest to it, whatever comes of it.
    ///
    /// # Errors
    /// It did not end; or [`Stop::Skip`] when the source fell by itself.
    pub(super) fn migrate(self, stage: &Stage, guest: &str) -> Telling<Migration> {
        let source = Source::note(stage, guest)?;
        let Outcome { code, text } = stage.run(&Self::command(guest, ""))?;
        source.expect_no_triple_fault(stage)?;
        ensure(code != 124, || format!("xl migrate did not end:\n{}", tool::last_lines(&text, 12)))?;
        Ok(Migration { code, text })
    }
}

/// How many new guests may fall by themselves, one after another.
pub(super) const FALLS: u32 = 3;

/// Does something with a new guest, and again with another one when it falls by itself.
///
/// # Errors
/// What `tell` gives; or guest after guest fell.
pub(super) fn with_new_guest(stage: &Stage, guest: &str, tell: impl Fn() -> Telling) -> Telling {
    for _ in 0..FALLS {
        stage.create(guest)?;
        match tell() {
            Err(Stop::Skip(fell)) => {
                stage.say(format!("{fell}; once more with a new one"));
                stage.destroy_all()?;
                stage.expect_alone()?;
            }
            told => return told,
        }
    }
    Err(Stop::Skip(format!("{FALLS} guests fell by themselves")))
}

/// A guest that stock xl is about to send, by its number.
///
/// QEMU's translator now and then lets a guest fall with a triple fault while Xen's log-dirty mode protects its memory, at any
/// instruction: also one that no code of ours has ever touched, with stock xl at both ends. What falls so shows nothing, good
/// or bad: the story is told again with a new guest, and says so.
pub(super) struct Source(String);

impl Source {
    /// Looks at it before the stock sender sets to work.
    pub(super) fn note(stage: &Stage, guest: &str) -> Telling<Self> {
        stage.sh(&format!("xl domid {guest}")).map(Self)
    }

    /// # Errors
    /// [`Stop::Skip`] when it fell.
    pub(super) fn expect_no_triple_fault(&self, stage: &Stage) -> Telling {
        let fell = stage.run(&format!(
            "xl dmesg | grep -A 12 'd{}v[0-9]* Triple fault' | grep -o -e 'd[0-9]*v.* Triple fault' -e 'RIP: .*'",
            self.0
        ))?;
        if fell.code == 0 {
            return Err(Stop::Skip(format!(
                "the source fell by itself: {}",
                fell.text.trim().replace('\n', ", ")
            )));
        }
        Ok(())
    }
}

/// A migration that has ended.
#[derive(Debug)]
pub(super) struct Migration {
    /// xl's exit code.
    pub(super) code: i32,
    /// What both ends said.
    pub(super) text: String,
}

impl Migration {
    /// The guest has moved.
    pub(super) fn expect_success(&self) -> Telling {
        let moved = self.code == 0 && self.text.contains("Migration successful.");
        ensure(moved, || {
            format!("the migration failed with {}:\n{}", self.code, tool::last_lines(&self.text, 15))
        })
    }

    /// Whether the sender, when it resumed the guest, found that it had not suspended (`xc_domain_resume` says so).
    pub(super) fn found_it_running(&self) -> bool {
        self.text.contains(" not suspended: (shutdown 0")
    }

    /// The last line that holds `part`.
    pub(super) fn line(&self, part: &str) -> Telling<&str> {
        let found = self.text.lines().rfind(|line| line.contains(part));
        let missing = || Stop::Failure(format!("no {part:?} in\n{}", tool::last_lines(&self.text, 25)));
        found.ok_or_else(missing)
    }

    /// Passes over memory, as the gate counted them: as many as a guest that writes `rate` pages a second has to have.
    pub(super) fn expect_passes(&self, rate: u64) -> Telling<u64> {
        let line = self.line("nest-gate: ")?;
        let number = line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        let nr_passes = number.ok_or_else(|| Stop::Failure(format!("no number of passes in {line:?}")))?;
        let least = if rate >= BUSY { 3 } else { 2 };
        ensure(nr_passes >= least, || {
            format!("expected {least} passes over memory or more, got {nr_passes}")
        })?;
        Ok(nr_passes)
    }
}
