//! The benchmark: the same save file restored by the stock helper and through the stub, by each transport, side by side.
//!
//! **Takes** guests and a number of rounds. **Gives** a table and `target/nest/bench.json`: medians of whole restores,
//! of their stages, and the stub's hypercalls. **Never** compares across boots: all of a guest's figures come from one
//! run of one nest, the ways taking turns, so that a noisy host troubles all of them alike.
//!
//! For scale, a Linux guest takes the same bytes by netcat and throws them away: what a network alone costs here.

mod table;

use crate::error::{Doing, Error, Result};
use crate::machine::{Machine, Options};
use crate::place::Place;
use crate::story::{Stage, THROUGH_STUB, Telling, Verdict, ensure};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The guests, by the name of their configuration.
    pub guests: Vec<String>,
    /// How often each restore is measured.
    pub nr_rounds: usize,
    /// Whether a Linux guest takes each file by netcat too.
    pub netcat: bool,
}

/// A way of getting the stream into a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Stock,
    Tcp,
    Ring,
}

impl Way {
    const ALL: [Self; 3] = [Self::Stock, Self::Tcp, Self::Ring];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Tcp => "stub, tcp",
            Self::Ring => "stub, ring",
        }
    }

    /// What dom0's shell does before the restore, and in front of it.
    fn set_up(self, guest: &str) -> (String, &'static str) {
        let conf = |transport| format!("echo transport = {transport} >/etc/xen/stubdom/{guest}.conf");
        match self {
            Self::Stock => (":".into(), ""),
            Self::Tcp => (conf("tcp"), THROUGH_STUB),
            Self::Ring => (conf("ring"), THROUGH_STUB),
        }
    }
}

/// One way's rounds.
#[derive(Debug)]
struct Series {
    way: Way,
    /// Seconds of `xl restore`, one a round.
    seconds: Vec<f64>,
    /// stubctl's reports, one a round; none of the stock helper.
    reports: Vec<Value>,
}

/// All that was measured with one guest's file.
#[derive(Debug)]
struct Measured {
    guest: String,
    file_bytes: u64,
    series: Vec<Series>,
    /// Seconds in which a Linux guest took the file by netcat.
    netcat: Vec<f64>,
}

/// Measures and shows.
///
/// # Errors
/// A step failed.
pub fn run(place: &Place, options: &Options, plan: &Plan) -> Result<()> {
    let machine = Machine::boot(place, options)?;
    let stage = Stage { machine: &machine, place };
    let mut all = Vec::new();
    for guest in &plan.guests {
        match measure(&stage, guest, plan) {
            Ok(measured) => {
                println!("\n{}", table::draw(&measured));
                all.push(measured);
            }
            Err(stop) => return Err(Error::new(format!("measuring {guest}"), Verdict::from(Err(stop)))),
        }
    }
    let report = json!({ "icount": options.icount, "guests": all.iter().map(json).collect::<Vec<_>>() });
    let path = place.nest().join("bench.json");
    fs::write(&path, format!("{report:#}\n")).doing(format!("writing {}", path.display()))?;
    println!("target/nest/bench.json has every round");
    Ok(())
}

fn measure(stage: &Stage, guest: &str, plan: &Plan) -> Telling<Measured> {
    let file = format!("/var/lib/xen/save/{guest}");
    stage.create(guest)?;
    stage.ask(guest, "freeze")?;
    stage.sh(&format!("xl save {guest} {file}"))?;
    let file_bytes = parse(&stage.sh(&format!("stat -c %s {file}"))?)?;
    let mut series = Way::ALL.map(|way| Series { way, seconds: Vec::new(), reports: Vec::new() });
    for round in 1..=plan.nr_rounds {
        for series in &mut series {
            let seconds = restore(stage, guest, &file, series)?;
            println!("{guest} round {round}: {} {seconds:.2} s", series.way.as_str());
        }
    }
    let netcat = if plan.netcat { netcat(stage, &file, plan.nr_rounds)? } else { Vec::new() };
    stage.sh(&format!("rm {file} /etc/xen/stubdom/{guest}.conf"))?;
    Ok(Measured { guest: guest.to_owned(), file_bytes, series: series.into(), netcat })
}

/// One restore, timed in dom0; the guest stays paused and goes again.
fn restore(stage: &Stage, guest: &str, file: &str, series: &mut Series) -> Telling<f64> {
    let (conf, environment) = series.way.set_up(guest);
    stage.sh(&conf)?;
    let seconds = timed(stage, &format!("{environment}xl restore -p {file}"))?;
    if series.way != Way::Stock {
        let text = stage.sh(&format!("cat /var/lib/xen-stubdom/{guest}.json"))?;
        let report: Value = serde_json::from_str(&text).doing("reading stubctl's report")?;
        ensure(report["restored"] == true, || format!("stubctl's report tells of no restore: {report}"))?;
        series.reports.push(report);
    }
    series.seconds.push(seconds);
    stage.sh(&format!("xl destroy {guest}"))?;
    stage.expect_alone()?;
    Ok(seconds)
}

/// Sends the file to a Linux guest that throws it away.
fn netcat(stage: &Stage, file: &str, nr_rounds: usize) -> Telling<Vec<f64>> {
    stage.sh("xl create -q /etc/xen/stubdom/guests/sink-256.cfg")?;
    let ready = "grep -q 'sink is ready' /var/log/xen/guest-sink-256.log";
    stage.sh(&format!("for i in $(seq 300); do {ready} && exit; sleep 0.2; done; exit 1"))?;
    let mut seconds = Vec::new();
    for _ in 0..nr_rounds {
        seconds.push(timed(stage, &format!("nc 10.80.0.2 8002 <{file}"))?);
        std::thread::sleep(Duration::from_secs(1)); // until it listens again
    }
    stage.sh("xl destroy sink-256")?;
    stage.expect_alone()?;
    Ok(seconds)
}

/// Runs a command in dom0 that must succeed; gives the seconds that it took by dom0's clock.
fn timed(stage: &Stage, command: &str) -> Telling<f64> {
    let output =
        stage.sh(&format!("a=$(date +%s%N); {command} >&2 || exit; echo; echo $(($(date +%s%N) - a))"))?;
    let nanoseconds = parse(output.lines().next_back().unwrap_or_default())?;
    Ok(Duration::from_nanos(nanoseconds).as_secs_f64())
}

fn parse(text: &str) -> Telling<u64> {
    Ok(text.trim().parse().doing(format!("reading a number from \"{text}\""))?)
}

/// The middle value; of an even number, the upper middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn json(measured: &Measured) -> Value {
    let series = |series: &Series| json!({ "way": series.way.as_str(), "seconds": series.seconds, "reports": series.reports });
    json!({
        "guest": measured.guest,
        "file_bytes": measured.file_bytes,
        "series": measured.series.iter().map(series).collect::<Vec<_>>(),
        "netcat_seconds": measured.netcat,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outlier_does_not_move_the_median() {
        assert!((median(&[2.0, 90.0, 1.0]) - 2.0).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
