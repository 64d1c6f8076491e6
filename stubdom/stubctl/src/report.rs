//! What a restore took: seconds by phase, bytes, superpages, hypercalls; as a JSON file for each guest.
//!
//! **Takes** laps and the stub's own report. **Gives** `/var/lib/xen-stubdom/reports/NAME.json`, replaced whole. **Never**
//! fails a restore: a report that cannot be written is a warning.

mod files;

use crate::conf::settled_name;
use crate::error::Error;
use crate::ffi::sys;
use crate::text;
use control::{Phase, Progress, Report, Stage, Untrusted};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use xen_abi::types::Gfn;

/// Guests choose the names in it, so nothing else lies here.
const DIRECTORY: &str = "/var/lib/xen-stubdom/reports";

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
    /// What each phase took, in the order in which they came first; there are as many as names.
    phases: Vec<Spent>,
    /// The last pass over memory; of a live migration the guest stands still in it, as in all that comes behind.
    last_pass: Option<Spent>,
    /// The stub's phase and its pass over memory, once it has reported them.
    phase: Option<(Phase, u32)>,
    /// Processor time that the stub had had, in nanoseconds: before it received, and now.
    stub_cpu_ns: Option<(u64, u64)>,
    /// Of that, what it had in the lap that is about to end.
    stub_lap: Option<f64>,
}

/// A phase: how long it took, and what of it this process and the stub ran.
#[derive(Clone, Copy)]
struct Spent {
    name: &'static str,
    seconds: f64,
    own_cpu_seconds: f64,
    stub_cpu_seconds: Option<f64>,
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
            phases: Vec::new(),
            last_pass: None,
            phase: None,
            stub_cpu_ns: None,
            stub_lap: None,
        }
    }

    /// Ends a phase of dom0's; gives its length.
    pub(crate) fn lap(&mut self, name: &'static str) -> Duration {
        let (lap, own_cpu) = (self.lap.elapsed(), sys::own_cpu());
        let own_cpu_seconds = own_cpu.saturating_sub(self.own_cpu).as_secs_f64();
        (self.lap, self.own_cpu) = (Instant::now(), own_cpu);
        let stub_cpu_seconds = self.stub_lap.take();
        self.add(Spent { name, seconds: lap.as_secs_f64(), own_cpu_seconds, stub_cpu_seconds });
        lap
    }

    /// Adds a lap to those of the same phase: the stub decides how often a phase comes.
    fn add(&mut self, lap: Spent) {
        if [Phase::Memory, Phase::Precopy].iter().any(|phase| phase.as_str() == lap.name) {
            self.last_pass = Some(lap);
        }
        match self.phases.iter_mut().find(|phase| phase.name == lap.name) {
            Some(phase) => {
                phase.seconds += lap.seconds;
                phase.own_cpu_seconds += lap.own_cpu_seconds;
                let stub = [phase.stub_cpu_seconds, lap.stub_cpu_seconds];
                phase.stub_cpu_seconds = stub.into_iter().flatten().reduce(|sum, lap| sum + lap);
            }
            None => self.phases.push(lap),
        }
    }

    fn spent(&self, name: &str) -> Option<&Spent> {
        self.phases.iter().find(|phase| phase.name == name)
    }

    /// Notes how far the stub is. In a new phase or pass, reads its processor time; when a phase is entered for the first
    /// time, gives a word of the one that ended.
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
        let is_news = before != self.phase_name() && self.spent(self.phase_name()).is_none();
        let took = self.spent(before).map_or(0.0, |phase| phase.seconds);
        is_news.then(|| format!("{before} took {took:.1} s"))
    }

    /// Notes the processor time that the stub has had: first before it receives, last when it has restored.
    pub(crate) fn note_stub(&mut self, cpu_ns: Option<u64>) {
        let Some(now) = cpu_ns else { return };
        self.stub_lap = self.stub_cpu_ns.map(|(_, last)| seconds(now.saturating_sub(last)));
        let first = self.stub_cpu_ns.map_or(now, |(first, _)| first);
        self.stub_cpu_ns = Some((first, now));
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

    /// Closes the account of a restore that goes to the packaged helper, whose end nobody reports.
    pub(crate) fn passed_on(&mut self, error: &Error) {
        self.lap(self.phase_name());
        let mut value = self.json(None, Some(&error.to_string()));
        (value["restored"], value["passed_on"]) = (Value::Null, true.into());
        self.write(&value);
    }

    fn json(&self, report: Option<&Report>, error: Option<&str>) -> Value {
        json!({
            "guest": self.guest,
            "restored": report.is_some(),
            "passed_on": false,
            "error": error,
            "seconds": self.start.elapsed().as_secs_f64(),
            "seconds_by_phase": self.by_phase(|phase| Some(phase.seconds)),
            "stubctl_cpu_seconds_by_phase": self.by_phase(|phase| Some(phase.own_cpu_seconds)),
            "stub_cpu_seconds": self.stub_cpu_ns.map(|(first, last)| seconds(last.saturating_sub(first))),
            "stub_cpu_seconds_by_phase": self.by_phase(|phase| phase.stub_cpu_seconds),
            "last_pass": self.last_pass.map(|pass| json!({
                "seconds": pass.seconds,
                "stubctl_cpu_seconds": pass.own_cpu_seconds,
                "stub_cpu_seconds": pass.stub_cpu_seconds,
            })),
            "stub": report.map(stub_json),
        })
    }

    fn by_phase(&self, part: impl Fn(&Spent) -> Option<f64>) -> Value {
        let parts = self.phases.iter().filter_map(|phase| Some((phase.name.to_owned(), json!(part(phase)?))));
        Value::Object(parts.collect())
    }

    fn write(&self, value: &Value) {
        if let Err(error) =
            files::replace(Path::new(DIRECTORY), self.guest.raw(), &(text::pretty_json(value) + "\n"))
        {
            log::warn!("cannot write the report of {} to {DIRECTORY}: {error}", self.guest);
        }
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
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
    fn a_stub_that_goes_to_and_fro_between_phases_leaves_one_lap_of_each() {
        let mut account = Account::start(&Untrusted::new("db".to_owned()));
        account.note_stub(Some(0));
        let mut nr_words = 0;
        for pass in 0..100_000 {
            let phase = if pass % 2 == 0 { Phase::Memory } else { Phase::Precopy };
            let progress = Progress { phase, nr_bytes: 0, nr_pages: 0, pass };
            nr_words += account.enter(progress, || Some(1_000_000 * u64::from(pass + 1))).iter().count();
        }
        assert_eq!((nr_words, account.phases.len()), (2, 3));
        let report = account.json(None, None);
        let sum = report["stub_cpu_seconds_by_phase"]["memory"].as_f64().unwrap();
        assert!((sum - 50.0).abs() < 0.1, "{sum}");
        assert_eq!(report["stub_cpu_seconds"], 100.0);
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
        account.lap(Phase::Finishing.as_str());
        let report = account.json(None, None);
        assert_eq!(report["stub_cpu_seconds"], 4.375);
        let expected = json!({ "waiting": 0.5, "memory": 2.5, "precopy": 1.25, "finishing": 0.125 });
        assert_eq!(report["stub_cpu_seconds_by_phase"], expected);
        assert_eq!(report["last_pass"]["stub_cpu_seconds"], 0.25);
        assert!(report["stubctl_cpu_seconds_by_phase"]["memory"].is_f64());
    }
}
