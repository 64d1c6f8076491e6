//! What a restore took: seconds by phase, bytes, superpages, hypercalls; as a JSON file for each guest.
//!
//! **Takes** laps and the stub's own report. **Gives** `/var/lib/xen-stubdom/NAME.json`, replaced whole. **Never**
//! fails a restore: a report that cannot be written is a warning.

use crate::conf::settled_name;
use crate::error::Error;
use crate::ffi::sys;
use crate::text;
use control::{Phase, Progress, Report, Stage, Untrusted};
use serde_json::{Map, Value, json};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xen_abi::types::Gfn;

const DIRECTORY: &str = "/var/lib/xen-stubdom";

/// What the stub gave back.
pub(crate) struct Outcome {
    /// The gfn of the xenstore ring.
    pub(crate) store: Gfn,
    /// The gfn of the console ring.
    pub(crate) console: Gfn,
    /// What it took.
    pub(crate) report: Report,
}

/// The account of one restore.
pub(crate) struct Account {
    guest: Untrusted<String>,
    start: Instant,
    lap: Instant,
    /// This process's processor time when the lap began.
    own_cpu: Duration,
    /// Phases, in the order in which they came.
    laps: Vec<Lap>,
    /// The stub's phase and its pass over memory, once it has reported them.
    phase: Option<(Phase, u32)>,
    /// Processor time that the stub had had, in nanoseconds: before it received, and at the end of each phase.
    stub_cpu_ns: Vec<(&'static str, u64)>,
}

/// A phase: how long it took, and what of it this process ran.
struct Lap {
    name: &'static str,
    seconds: f64,
    own_cpu_seconds: f64,
}

impl Account {
    /// Starts the clock.
    pub(crate) fn start(guest: &Untrusted<String>) -> Self {
        let start = Instant::now();
        Self {
            guest: Untrusted::new(settled_name(guest.raw()).to_owned()),
            start,
            lap: start,
            own_cpu: sys::own_cpu(),
            laps: Vec::new(),
            phase: None,
            stub_cpu_ns: Vec::new(),
        }
    }

    /// Ends a phase of dom0's; gives its length.
    pub(crate) fn lap(&mut self, name: &'static str) -> Duration {
        let (lap, own_cpu) = (self.lap.elapsed(), sys::own_cpu());
        let own_cpu_seconds = own_cpu.saturating_sub(self.own_cpu).as_secs_f64();
        (self.lap, self.own_cpu) = (Instant::now(), own_cpu);
        self.laps.push(Lap { name, seconds: lap.as_secs_f64(), own_cpu_seconds });
        lap
    }

    /// Notes how far the stub is. In a new phase or pass, reads its processor time; of a phase that ended, gives a word.
    pub(crate) fn enter(
        &mut self,
        progress: Progress,
        stub_cpu_ns: impl FnOnce() -> Option<u64>,
    ) -> Option<String> {
        let now = (progress.phase, progress.pass);
        if self.phase == Some(now) {
            return None;
        }
        self.note_stub(stub_cpu_ns());
        let before = self.phase_name();
        self.lap(before);
        self.phase = Some(now);
        let took: f64 = self.laps.iter().filter(|lap| lap.name == before).map(|lap| lap.seconds).sum();
        (before != self.phase_name()).then(|| format!("{before} took {took:.1} s"))
    }

    /// Notes the processor time that the stub has had: first before it receives, last when it has restored.
    pub(crate) fn note_stub(&mut self, cpu_ns: Option<u64>) {
        let name = self.phase_name();
        self.stub_cpu_ns.extend(cpu_ns.map(|ns| (name, ns)));
    }

    fn phase_name(&self) -> &'static str {
        self.phase.map_or("waiting", |(phase, _)| phase.as_str())
    }

    /// Closes the account of a restore that succeeded.
    pub(crate) fn restored(&mut self, report: &Report) {
        self.lap(self.phase_name());
        if let Some(text) = mismatches(report) {
            log::warn!("{}: {text}", self.guest);
        }
        log::info!("{}: {}", self.guest, summary(report, self.start.elapsed()));
        self.write(&self.json(Some(report), None));
    }

    /// Closes the account of a restore that failed.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.lap(self.phase_name());
        self.write(&self.json(None, Some(&error.to_string())));
    }

    fn json(&self, report: Option<&Report>, error: Option<&str>) -> Value {
        json!({
            "guest": self.guest,
            "restored": report.is_some(),
            "error": error,
            "seconds": self.start.elapsed().as_secs_f64(),
            "seconds_by_phase": by_phase(self.laps.iter().map(|lap| (lap.name, lap.seconds))),
            "stubctl_cpu_seconds_by_phase": by_phase(self.laps.iter().map(|lap| (lap.name, lap.own_cpu_seconds))),
            "stub_cpu_seconds": stub_took(&self.stub_cpu_ns).map(seconds),
            "stub_cpu_seconds_by_phase": by_phase(self.stub_cpu_ns.windows(2).map(stub_lap)),
            "last_pass": self.last_pass(),
            "stub": report.map(stub_json),
        })
    }

    /// The last pass over memory; of a live migration the guest stands still in it, as in all that comes behind.
    fn last_pass(&self) -> Value {
        let is_pass = |name: &str| [Phase::Memory, Phase::Precopy].iter().any(|phase| phase.as_str() == name);
        let Some(lap) = self.laps.iter().rfind(|lap| is_pass(lap.name)) else { return Value::Null };
        let stub = self.stub_cpu_ns.windows(2).map(stub_lap).rfind(|(name, _)| is_pass(name));
        json!({
            "seconds": lap.seconds,
            "stubctl_cpu_seconds": lap.own_cpu_seconds,
            "stub_cpu_seconds": stub.map(|(_, seconds)| seconds),
        })
    }

    fn write(&self, value: &Value) {
        if let Err(error) =
            replace(Path::new(DIRECTORY), self.guest.raw(), &(text::pretty_json(value) + "\n"))
        {
            log::warn!("cannot write the report of {} to {DIRECTORY}: {error}", self.guest);
        }
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

/// From the first reading of the stub's processor time to the last.
fn stub_took(readings: &[(&str, u64)]) -> Option<u64> {
    let ((_, first), (_, last)) = (readings.first()?, readings.last()?);
    (readings.len() > 1).then(|| last.saturating_sub(*first))
}

/// From one reading to the next, which ends a phase.
fn stub_lap<'a>(readings: &[(&'a str, u64)]) -> (&'a str, f64) {
    match readings {
        [(_, before), (name, after)] => (name, seconds(after.saturating_sub(*before))),
        _ => ("", 0.0),
    }
}

/// A phase that came twice (a second pass) counts once, with both laps.
fn by_phase<'a>(laps: impl Iterator<Item = (&'a str, f64)>) -> Value {
    let mut sums = Map::new();
    for (name, lap) in laps {
        let before = sums.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        sums.insert(name.to_owned(), json!(before + lap));
    }
    Value::Object(sums)
}

fn stub_json(report: &Report) -> Value {
    let named = report.nr_hypercalls.by_name();
    let hypercalls: Map<String, Value> =
        named.iter().map(|&(name, nr)| (name.to_owned(), json!(nr))).collect();
    let named = Stage::ALL.iter().zip(report.stage_ns);
    let stages: Map<String, Value> =
        named.map(|(stage, ns)| (stage.as_str().to_owned(), json!(seconds(ns)))).collect();
    json!({
        "bytes": report.nr_bytes,
        "pages": report.nr_pages,
        "superpages_1g": report.nr_superpages_1g,
        "superpages_2m": report.nr_superpages_2m,
        "pages_4k": report.nr_pages_4k,
        "given_back": report.nr_given_back,
        "mismatches": report.nr_mismatches,
        "hypercalls": hypercalls,
        "cpu_seconds_by_stage": stages,
    })
}

/// What a stream with VERIFY has shown to be wrong.
fn mismatches(report: &Report) -> Option<String> {
    let named: Vec<String> = report.mismatches.iter().flatten().map(Gfn::to_string).collect();
    (report.nr_mismatches > 0).then(|| {
        format!(
            "expected the pages behind VERIFY to be as they were sent before, got {} that differ, first {}: do not trust \
             this guest",
            report.nr_mismatches,
            named.join(" ")
        )
    })
}

fn summary(report: &Report, took: Duration) -> String {
    format!(
        "restored in {:.1} s: {} pages, {} superpages of 1 GiB, {} of 2 MiB, {} single pages",
        took.as_secs_f64(),
        report.nr_pages,
        report.nr_superpages_1g,
        report.nr_superpages_2m,
        report.nr_pages_4k
    )
}

/// Writes a file beside the old one and takes its place, so that a reader never sees half of it; nothing stays beside it.
fn replace(directory: &Path, guest: &str, text: &str) -> io::Result<()> {
    let file = file_of(directory, guest);
    let new = file.with_extension(format!("json.{}", std::process::id()));
    fs::create_dir_all(directory)?;
    let replaced = fs::write(&new, text).and_then(|()| fs::rename(&new, &file));
    if replaced.is_err() {
        // The error that is told is the first; what was not even created is not there to remove.
        let _ = fs::remove_file(&new);
    }
    replaced
}

/// The guest's name came with its stream: what is no plain file name is made one.
fn file_of(directory: &Path, guest: &str) -> PathBuf {
    let plain: String = guest.chars().map(|c| if c == '/' || c == '\0' { '_' } else { c }).collect();
    let plain = if plain.starts_with('.') { format!("_{plain}") } else { plain };
    directory.join(format!("{plain}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_every_hypercall() {
        let mut report = Report { nr_superpages_2m: 127, ..Report::default() };
        report.nr_hypercalls.mmu_update = 65;
        let value = stub_json(&report);
        assert_eq!(value["superpages_2m"], 127);
        assert_eq!(value["hypercalls"]["mmu_update"], 65);
        assert_eq!(value["hypercalls"].as_object().unwrap().len(), 9);
    }

    #[test]
    fn pages_that_differ_are_told_by_number_and_name() {
        let mut report = Report::default();
        assert_eq!(mismatches(&report), None);
        report.nr_mismatches = 11;
        report.mismatches = core::array::from_fn(|nr| Some(Gfn::new(9 + nr as u64)));
        let text = mismatches(&report).unwrap();
        assert!(text.contains("got 11 that differ, first gfn:0x9 gfn:0xa "), "{text}");
        assert!(text.contains(" gfn:0xc: "), "{text}");
        assert_eq!(stub_json(&report)["mismatches"], 11);
    }

    #[test]
    fn laps_of_one_phase_add_up() {
        assert_eq!(by_phase([("memory", 1.0), ("precopy", 0.5), ("memory", 2.0)].into_iter())["memory"], 3.0);
    }

    #[test]
    fn only_a_new_phase_is_news_and_every_pass_is_counted() {
        let mut account = Account::start(&Untrusted::new("db--incoming".to_owned()));
        assert_eq!(account.guest.raw(), "db");
        account.note_stub(Some(500_000_000));
        let mut enter =
            |phase, pass, ns| account.enter(Progress { phase, nr_bytes: 0, nr_pages: 0, pass }, || Some(ns));
        assert!(enter(Phase::Memory, 1, 1_000_000_000).unwrap().starts_with("waiting took"));
        assert!(enter(Phase::Memory, 1, 2_000_000_000).is_none());
        assert!(enter(Phase::Precopy, 2, 3_500_000_000).unwrap().starts_with("memory took"));
        assert!(enter(Phase::Precopy, 3, 4_500_000_000).is_none());
        assert!(enter(Phase::Finishing, 3, 4_750_000_000).unwrap().starts_with("precopy took"));
        account.note_stub(Some(4_875_000_000));
        let report = account.json(None, None);
        assert_eq!(report["stub_cpu_seconds"], 4.375);
        let expected = json!({ "waiting": 0.5, "memory": 2.5, "precopy": 1.25, "finishing": 0.125 });
        assert_eq!(report["stub_cpu_seconds_by_phase"], expected);
        assert_eq!(report["last_pass"]["stub_cpu_seconds"], 0.25);
        assert!(report["stubctl_cpu_seconds_by_phase"]["memory"].is_f64());
    }

    #[test]
    fn a_report_that_cannot_take_its_place_leaves_nothing_beside_it() {
        let directory = std::env::temp_dir().join(format!("stubctl-report-{}", std::process::id()));
        fs::create_dir_all(directory.join("db.json")).unwrap(); // no file takes a directory's place
        assert!(replace(&directory, "db", "{}").is_err());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_guests_name_stays_in_the_directory() {
        let directory = Path::new("/var/lib/x");
        assert_eq!(file_of(directory, "../../etc/db"), directory.join("_.._.._etc_db.json"));
        assert_eq!(file_of(directory, "db.1"), directory.join("db.1.json"));
    }
}
