//! What a restore took: seconds by phase, bytes, superpages, hypercalls; as a JSON file for each guest.
//!
//! **Takes** laps and the stub's own report. **Gives** `/var/lib/xen-stubdom/NAME.json`, replaced whole. **Never**
//! fails a restore: a report that cannot be written is a warning.

use crate::conf::settled_name;
use crate::error::Error;
use control::{Hypercall, Phase, Report, Stage};
use serde_json::{Map, Value, json};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xen_front::types::Gfn;

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
    guest: String,
    start: Instant,
    lap: Instant,
    /// Seconds by phase, in the order in which they came.
    seconds: Vec<(&'static str, f64)>,
    /// The stub's phase, once it has reported one.
    phase: Option<Phase>,
    /// Processor time of the stub while it received, in nanoseconds.
    stub_cpu_ns: Option<u64>,
}

impl Account {
    /// Starts the clock.
    pub(crate) fn start(guest: &str) -> Self {
        let now = Instant::now();
        let guest = settled_name(guest).to_owned();
        Self { guest, start: now, lap: now, seconds: Vec::new(), phase: None, stub_cpu_ns: None }
    }

    /// Ends a phase of dom0's; gives its length.
    pub(crate) fn lap(&mut self, name: &'static str) -> Duration {
        let lap = self.lap.elapsed();
        self.lap = Instant::now();
        self.seconds.push((name, lap.as_secs_f64()));
        lap
    }

    /// Notes the stub's phase; when it is a new one, gives a word on the one that ended.
    pub(crate) fn enter(&mut self, phase: Phase) -> Option<String> {
        if self.phase == Some(phase) {
            return None;
        }
        let before = self.phase.replace(phase).map_or("waiting", Phase::as_str);
        let lap = self.lap(before);
        Some(format!("{before} took {:.1} s", lap.as_secs_f64()))
    }

    /// Notes what the stub's receiving took of its processor.
    pub(crate) fn stub_took(&mut self, cpu_ns: u64) {
        self.stub_cpu_ns = Some(cpu_ns);
    }

    /// Closes the account of a restore that succeeded.
    pub(crate) fn restored(&mut self, report: &Report) {
        self.lap(self.phase.map_or("waiting", Phase::as_str));
        if let Some(text) = mismatches(report) {
            log::warn!("{}: {text}", self.guest);
        }
        log::info!("{}: {}", self.guest, summary(report, self.start.elapsed()));
        self.write(&self.json(Some(report), None));
    }

    /// Closes the account of a restore that failed.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.lap(self.phase.map_or("waiting", Phase::as_str));
        self.write(&self.json(None, Some(&error.to_string())));
    }

    fn json(&self, report: Option<&Report>, error: Option<&str>) -> Value {
        json!({
            "guest": self.guest,
            "restored": report.is_some(),
            "error": error,
            "seconds": self.start.elapsed().as_secs_f64(),
            "seconds_by_phase": by_phase(&self.seconds),
            "stub_cpu_seconds": self.stub_cpu_ns.map(seconds),
            "stub": report.map(stub_json),
        })
    }

    fn write(&self, value: &Value) {
        if let Err(error) = replace(Path::new(DIRECTORY), &self.guest, &format!("{value:#}\n")) {
            log::warn!("cannot write the report of {} to {DIRECTORY}: {error}", self.guest);
        }
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

/// A phase that came twice (a second pass) counts once, with both laps.
fn by_phase(seconds: &[(&str, f64)]) -> Value {
    let mut sums = Map::new();
    for (name, lap) in seconds {
        let before = sums.get(*name).and_then(Value::as_f64).unwrap_or(0.0);
        sums.insert((*name).to_owned(), json!(before + lap));
    }
    Value::Object(sums)
}

fn stub_json(report: &Report) -> Value {
    let named = Hypercall::ALL.iter().zip(report.nr_hypercalls);
    let hypercalls: Map<String, Value> =
        named.map(|(kind, nr)| (kind.as_str().to_owned(), json!(nr))).collect();
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

/// Writes a file beside the old one and takes its place, so that a reader never sees half of it.
fn replace(directory: &Path, guest: &str, text: &str) -> io::Result<()> {
    let file = file_of(directory, guest);
    let new = file.with_extension(format!("json.{}", std::process::id()));
    fs::create_dir_all(directory)?;
    fs::write(&new, text)?;
    fs::rename(&new, &file)
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
        report.nr_hypercalls[Hypercall::MmuUpdate as usize] = 65;
        let value = stub_json(&report);
        assert_eq!(value["superpages_2m"], 127);
        assert_eq!(value["hypercalls"]["mmu_update"], 65);
        assert_eq!(value["hypercalls"].as_object().unwrap().len(), Hypercall::ALL.len());
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
        assert_eq!(by_phase(&[("memory", 1.0), ("precopy", 0.5), ("memory", 2.0)])["memory"], 3.0);
    }

    #[test]
    fn only_a_new_phase_is_news() {
        let mut account = Account::start("db--incoming");
        assert_eq!(account.guest, "db");
        assert!(account.enter(Phase::Memory).is_some());
        assert!(account.enter(Phase::Memory).is_none());
        assert!(account.enter(Phase::Finishing).unwrap().starts_with("memory took"));
    }

    #[test]
    fn a_guests_name_stays_in_the_directory() {
        let directory = Path::new("/var/lib/x");
        assert_eq!(file_of(directory, "../../etc/db"), directory.join("_.._.._etc_db.json"));
        assert_eq!(file_of(directory, "db.1"), directory.join("db.1.json"));
    }
}
