//! How long a guest stands still while it migrates, split by who takes the time; beside the stock receiver.

use super::receiver::{Migration, Receiver, Untouched};
use crate::machine::Options;
use crate::soak::Soak;
use crate::story::{Stage, Stop, THROUGH_STUB, Telling};
use std::time::{Duration, Instant};

/// A benchmark: it prints a table and judges nothing.
pub(in crate::stories) const DOWNTIME: Soak = Soak {
    name: "live-downtime",
    proves: "how long a busy guest stands still while it migrates: with the stock receiver, through the stub",
    options: Options::default,
    rounds: 3,
    tell: |stage, _, rounds| compare(stage, rounds),
};

const GUEST: &str = "pvh-128";

/// Pages that the guest writes in a second.
const RATE: u64 = 512;

/// Longest time for one migration.
const LIMIT: Duration = Duration::from_secs(260);

/// Ends of the phases: a name, and what the line says that is printed then.
const ENDS: [(&str, &str); 7] = [
    ("", "suspend request via"),
    ("suspend", "guest has suspended"),
    ("last pass", "nest-gate: at State"),
    ("state sent", "nest-gate: at After"),
    ("helper", ""),
    ("libxl", "Transfer complete"),
    ("hand-over", "Domain started"),
];

/// What the two helpers say when they are done.
const HELPER_DONE: [&str; 2] = ["stubctl: info: pvh-128: restored in", "Restore successful"];

fn compare(stage: &Stage, rounds: u32) -> Telling {
    stage.create(GUEST)?;
    stage.ask(GUEST, &format!("rate {RATE}"))?;
    let names: Vec<_> = ENDS[1..].iter().map(|(name, _)| *name).collect();
    stage.say(format!("milliseconds       {}  down", columns(&names)));
    for _ in 0..rounds {
        for (name, environment) in [("stock", ""), ("through the stub", THROUGH_STUB)] {
            let laps = one(stage, GUEST, environment)?;
            let down = down(&laps);
            let laps: Vec<_> = laps.iter().map(|lap| lap.as_millis().to_string()).collect();
            stage.say(format!("{name:18} {}  {}", columns(&laps), down.as_millis()));
        }
    }
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("xl destroy {GUEST}"))?;
    stage.expect_alone()
}

fn columns(cells: &[impl AsRef<str>]) -> String {
    let cells: Vec<_> = cells.iter().map(|cell| format!("{:>11}", cell.as_ref())).collect();
    cells.join("")
}

/// How long a guest stands still in one migration to the same host with the stock receiver.
pub(in crate::stories) fn local_migration(stage: &Stage, guest: &str) -> Telling<Duration> {
    one(stage, guest, "").map(|laps| down(&laps))
}

/// From when the guest has suspended.
fn down(laps: &[Duration]) -> Duration {
    laps.iter().skip(1).sum()
}

/// One migration's phases.
fn one(stage: &Stage, guest: &str, environment: &str) -> Telling<Vec<Duration>> {
    Receiver::telling(stage, environment)?;
    let untouched = Untouched::note(stage, guest)?;
    let job = stage.machine.dom0.start(&Receiver::command(guest, "-vvv"), &[])?;
    let mut lines = Lines::default();
    let code = job.finish(LIMIT, |piece| lines.take(piece))?;
    let text = lines.text();
    untouched.expect_no_triple_fault(stage)?;
    Migration { code, text }.expect_success()?;
    let ends: Vec<Instant> = ENDS.iter().map(|(_, mark)| lines.time_of(mark)).collect::<Telling<_>>()?;
    Ok(ends.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0])).collect())
}

/// Lines and when each was complete.
#[derive(Debug, Default)]
struct Lines {
    whole: Vec<(Instant, String)>,
    part: Vec<u8>,
}

impl Lines {
    fn take(&mut self, piece: &[u8]) {
        self.part.extend_from_slice(piece);
        while let Some(end) = self.part.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.part.drain(..=end).collect();
            self.whole.push((Instant::now(), String::from_utf8_lossy(&line).trim_end().to_owned()));
        }
    }

    fn text(&self) -> String {
        self.whole.iter().map(|(_, line)| format!("{line}\n")).collect()
    }

    /// When the last line came that holds `mark`; none stands for the helper's last word.
    fn time_of(&self, mark: &str) -> Telling<Instant> {
        let holds = |line: &str| match mark {
            "" => HELPER_DONE.iter().any(|mark| line.contains(mark)),
            mark => line.contains(mark),
        };
        let found = self.whole.iter().rfind(|(_, line)| holds(line));
        found.map(|(at, _)| *at).ok_or_else(|| Stop::Failure(format!("no {mark:?} in\n{}", self.text())))
    }
}
