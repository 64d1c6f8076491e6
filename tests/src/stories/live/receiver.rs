//! The receiving end of `xl migrate` to the same host: `-s ''` makes xl take the "host" for a command, which is a
//! script here.

use crate::dom0::Outcome;
use crate::story::{Stage, Stop, THROUGH_STUB, Telling, ensure};
use crate::tool;

const SCRIPT: &str = "/run/receive.sh";
const DEED: &str = "/run/deed.sh";

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

    /// Receives through the stub; when the stream is at `place` it stops, and `deed` is done. The deed has `$guest`,
    /// `$target` and `$stub`, and `$helper` and `$receiver`, the processes.
    pub(super) fn with_deed(stage: &Stage, guest: &str, place: &str, deed: &str) -> Telling<Self> {
        stage.sh(&format!(
            "cat >{DEED} <<'END'\n\
             guest={guest}\n\
             until target=$(xl domid $guest--incoming 2>/dev/null); do sleep 0.2; done\n\
             for i in $(seq 50); do helper=$(pidof stubctl) && break; sleep 0.1; done\n\
             stub=$(xenstore-read /local/domain/$target/stubdom 2>/dev/null)\n\
             receiver=$(awk '/^PPid/ {{ print $2 }}' /proc/$helper/status)\n\
             {deed}\n\
             END"
        ))?;
        Self::write(stage, &format!("nest-gate --at {place} --run 'source {DEED}'"), THROUGH_STUB)
    }

    fn write(stage: &Stage, gate: &str, environment: &str) -> Telling<Self> {
        stage.sh(&format!(
            "printf '%s\\n' '#!/bin/bash' \"{gate} | {environment}xl -v migrate-receive\" >{SCRIPT}; chmod +x {SCRIPT}"
        ))?;
        Ok(Self)
    }

    /// What migrates a guest to it and ends when both ends have; `verbose` is for the sender.
    pub(super) fn command(guest: &str, verbose: &str) -> String {
        format!(
            "timeout 240 xl {verbose} migrate -s '' {guest} {SCRIPT} 2>&1; code=$?
             while pidof nest-gate stubctl >/dev/null; do sleep 0.2; done; exit $code"
        )
    }

    /// Migrates a guest to it, whatever comes of it.
    pub(super) fn migrate(self, stage: &Stage, guest: &str) -> Telling<Migration> {
        let Outcome { code, text } =
            stage.run(&format!("timeout 240 xl migrate -s '' {guest} {SCRIPT} 2>&1"))?;
        ensure(code != 124, || format!("xl migrate did not end:\n{}", tool::last_lines(&text, 12)))?;
        Ok(Migration { code, text })
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

    /// The last line that holds `part`.
    pub(super) fn line(&self, part: &str) -> Telling<&str> {
        let found = self.text.lines().rfind(|line| line.contains(part));
        let missing = || Stop::Failure(format!("no {part:?} in\n{}", tool::last_lines(&self.text, 25)));
        found.ok_or_else(missing)
    }

    /// Passes over memory, as the gate counted them.
    pub(super) fn nr_passes(&self) -> Telling<u64> {
        let line = self.line("nest-gate: ")?;
        let number = line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        number.ok_or_else(|| Stop::Failure(format!("no number of passes in {line:?}")))
    }
}
