//! How long a guest stands still while it migrates, split by who takes the time; beside the stock receiver.

use super::receiver::{Migration, Receiver, Source, with_new_guest};
use crate::error::Doing;
use crate::machine::Options;
use crate::soak::Soak;
use crate::story::{Stage, Stop, THROUGH_STUB, Telling};
use serde_json::Value;
use std::time::{Duration, Instant};

/// A benchmark: it prints a table and judges nothing.
pub(in crate::stories) const DOWNTIME: Soak = Soak {
    name: "live-downtime",
    proves: "how long a busy guest stands still while it migrates, PVH and HVM: with the stock receiver, through the stub, and \
             who takes the time",
    options: Options::default,
    rounds: 3,
    tell: |stage, _, rounds| compare(stage, rounds),
};

const GUESTS: [&str; 2] = ["pvh-128", "hvm-256"];

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
const HELPER_DONE: [&str; 2] = [": restored in", "Restore successful"];

/// What ran while the guest stood still, in milliseconds of processor time.
const RAN: [&str; 2] = ["stub ran", "stubctl ran"];

fn compare(stage: &Stage, rounds: u32) -> Telling {
    GUESTS.iter().try_for_each(|guest| with_new_guest(stage, guest, || compare_guest(stage, guest, rounds)))
}

fn compare_guest(stage: &Stage, guest: &str, rounds: u32) -> Telling {
    stage.ask(guest, &format!("rate {RATE}"))?;
    let names: Vec<_> = ENDS[1..].iter().map(|(name, _)| *name).chain(["down"]).chain(RAN).collect();
    stage.say(format!("{guest:18}{}", columns(&names)));
    for _ in 0..rounds {
        for (name, environment) in [("stock", ""), ("through the stub", THROUGH_STUB)] {
            let laps = one(stage, guest, environment)?;
            let down = down(&laps);
            let mut cells: Vec<_> =
                laps.iter().chain([&down]).map(|lap| lap.as_millis().to_string()).collect();
            if !environment.is_empty() {
                cells.extend(ran(stage, guest)?);
            }
            stage.say(format!("{name:18}{}", columns(&cells)));
        }
    }
    stage.ask(guest, "verify")?;
    stage.sh(&format!("xl destroy {guest}"))?;
    stage.expect_alone()
}

/// What the stub and stubctl ran in the last pass and behind it, by stubctl's report.
fn ran(stage: &Stage, guest: &str) -> Telling<[String; 2]> {
    let report: Value =
        serde_json::from_str(&stage.sh(&format!("cat /var/lib/xen-stubdom/reports/{guest}.json"))?)
            .doing("reading stubctl's report")?;
    let milliseconds = |who: &str| -> Telling<String> {
        let last_pass = report["last_pass"][format!("{who}_cpu_seconds")].as_f64();
        let last_pass = last_pass.ok_or_else(|| Stop::Failure(format!("no time of {who} in {report}")))?;
        // What comes behind and is over before stubctl hears of it counts as the last pass.
        let behind = report[format!("{who}_cpu_seconds_by_phase")]["finishing"].as_f64().unwrap_or(0.0);
        Ok(format!("{:.0}", (last_pass + behind) * 1e3))
    };
    Ok([milliseconds("stub")?, milliseconds("stubctl")?])
}

fn columns(cells: &[impl AsRef<str>]) -> String {
    let cells: Vec<_> = cells.iter().map(|cell| format!("{:>12}", cell.as_ref())).collect();
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
    let source = Source::note(stage, guest)?;
    let job = stage.machine.dom0.start(&Receiver::command(guest, "-vvv"), &[])?;
    let mut lines = Lines::default();
    let code = job.finish(LIMIT, |piece| lines.take(piece))?;
    let text = lines.text();
    source.expect_no_triple_fault(stage)?;
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
