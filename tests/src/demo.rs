//! The demonstration: the same guest fresh, restored by stock xl, and restored through the stub, side by side.
//!
//! **Takes** the example guests of 256 MiB. **Gives** a table, a drawing of each guest's memory and
//! `target/nest/report.json`. **Never** shows a figure that was not measured in this run: what failed ends it.

mod calls;
mod drawing;
mod report;
mod table;

use crate::error::{Doing, Error, Result};
use crate::machine::{Machine, Options};
use crate::place::Place;
use crate::story::{Stage, THROUGH_STUB, Telling, Verdict, ensure};
use crate::survey::{MAX_LOST, Survey};
use calls::Calls;
use control::RegionKind;
use serde_json::Value;
use std::fmt::Display;
use std::fs;
use std::time::Instant;

/// The guests, by the name of their configuration.
const GUESTS: &[&str] = &["pvh-256", "hvm-256"];

/// The page whose frame fails, in the middle of their memory.
const EXCHANGED_GFN: &str = "0x8000";

/// Their memory in MiB.
const GUEST_MIB: u64 = 256;

/// What was seen of one guest.
#[derive(Debug)]
struct Seen {
    guest: &'static str,
    fresh: Survey,
    /// Seconds of stock `xl save`.
    save_s: f64,
    stock: Restored,
    stub: Restored,
    /// What the stub reported of its own: superpages, hypercalls.
    stub_report: Value,
    /// The witness's checksum before the save.
    checksum: String,
    exchanged: Exchanged,
}

/// A restored guest.
#[derive(Debug)]
struct Restored {
    /// Seconds of `xl restore`.
    seconds: f64,
    survey: Survey,
    /// The witness's checksum afterwards.
    checksum: String,
    /// Dom0's hypercalls, counted in a restore of its own.
    dom0_calls: Calls,
}

/// A frame that was taken from under the guest.
#[derive(Debug)]
struct Exchanged {
    /// Whether the stock tool had done it.
    is_stock_done: bool,
    /// What stubctl says of it.
    report: Value,
}

/// Shows everything and writes the report.
///
/// # Errors
/// A step failed; a wrong byte in a guest is such a failure.
pub fn run(place: &Place) -> Result<()> {
    let began = Instant::now();
    let machine = Machine::boot(place, &Options::default())?;
    let stage = Stage::on(&machine, place);
    let mut all = Vec::new();
    for guest in GUESTS {
        let clock = Clock { guest, began };
        match show(&stage, guest, &clock) {
            Ok(seen) => all.push(seen),
            Err(stop) => return Err(Error::new(format!("showing {guest}"), Verdict::from(Err(stop)))),
        }
    }
    for seen in &all {
        let path = place.nest().join(format!("{}.svg", seen.guest));
        let parts = [("fresh", &seen.fresh), ("stock", &seen.stock.survey), ("stub", &seen.stub.survey)];
        let drawing = drawing::draw(seen.guest, &parts);
        fs::write(&path, drawing).doing(format!("writing {}", path.display()))?;
    }
    let report = report::json(place, &all)?;
    let path = place.nest().join("report.json");
    fs::write(&path, format!("{report:#}\n")).doing(format!("writing {}", path.display()))?;
    println!("\n{}", table::draw(&all));
    println!("target/nest/report.json has the figures, target/nest/GUEST.svg the maps");
    Ok(())
}

/// Tells how far the demonstration is.
struct Clock {
    guest: &'static str,
    began: Instant,
}

impl Clock {
    fn say(&self, what: impl Display) {
        println!("[{:4.0} s] {}: {what}", self.began.elapsed().as_secs_f32(), self.guest);
    }
}

/// One guest from its start to its end.
fn show(stage: &Stage, guest: &'static str, clock: &Clock) -> Telling<Seen> {
    clock.say("starting it (an HVM guest takes half a minute here)");
    stage.create(guest)?;
    let fresh = Survey::take(stage, guest)?;
    stage.ask(guest, "freeze")?;
    let checksum = stage.ask(guest, "verify")?.value("sum")?.to_owned();
    clock.say(format!("fresh, checksum {checksum}; stock xl save"));
    let save_s = timed(stage, &format!("xl save {guest} /var/lib/xen/save/{guest}"))?;
    clock.say("stock xl restore");
    let stock = restore(stage, guest, "")?;
    stage.sh(&format!("xl destroy {guest}"))?;
    clock.say("restore of the same file through the stub");
    let stub = restore(stage, guest, THROUGH_STUB)?;
    let stub_report = stub_report(stage, guest)?;
    stage.ask(guest, "thaw")?;
    stage.ask(guest, "ticking")?;
    let exchanged = exchange(stage, guest, clock)?;
    clock.say("goes on; shutting it down");
    stage.sh(&format!("xl shutdown -w {guest} && rm /var/lib/xen/save/{guest}"))?;
    let seen = Seen { guest, fresh, save_s, stock, stub, stub_report, checksum, exchanged };
    holds(&seen)?;
    Ok(seen)
}

/// What the demonstration claims.
fn holds(seen: &Seen) -> Telling {
    for (how, restored) in [("stock xl", &seen.stock), ("the stub", &seen.stub)] {
        let (before, after) = (&seen.checksum, &restored.checksum);
        ensure(before == after, || format!("checksum {before}, restored by {how} {after}"))?;
    }
    let superpages = |survey: &Survey| survey.count(RegionKind::Superpage);
    let (had, has) = (superpages(&seen.fresh), superpages(&seen.stub.survey));
    ensure(had > 0 && has + MAX_LOST >= had, || {
        format!("{had} superpages when fresh, {has} when restored through the stub")
    })
}

/// Twice: traced, then timed without a trace.
fn restore(stage: &Stage, guest: &str, environment: &str) -> Telling<Restored> {
    let dom0_calls = calls::of_dom0(stage, guest, environment)?;
    let seconds = timed(stage, &format!("{environment}xl restore /var/lib/xen/save/{guest}"))?;
    let checksum = stage.ask(guest, "verify")?.value("sum")?.to_owned();
    Ok(Restored { seconds, survey: Survey::take(stage, guest)?, checksum, dom0_calls })
}

/// One frame under the running guest: first the stock tool, then ours.
fn exchange(stage: &Stage, guest: &str, clock: &Clock) -> Telling<Exchanged> {
    let mfn =
        stage.sh(&format!("stubctl attach {guest} >/dev/null; stubctl locate {guest} {EXCHANGED_GFN}"))?;
    let stock = stage.run(&format!("xen-hptool mem-offline {mfn}"))?;
    let lines: Vec<&str> = stock.text.lines().map(str::trim).collect();
    clock.say(format!("frame {mfn} fails; stock xen-hptool mem-offline: {}", lines.join("; ")));
    let text = stage.sh(&format!("stubctl offline --json {mfn}"))?;
    let report: Value = serde_json::from_str(&text).doing("reading stubctl offline's report")?;
    clock.say(report["text"].as_str().unwrap_or_default());
    stage.ask(guest, "ticking")?;
    stage.ask(guest, "verify")?;
    stage.sh(&format!("xen-hptool mem-online {mfn}"))?;
    Ok(Exchanged { is_stock_done: stock.code == 0, report })
}

fn stub_report(stage: &Stage, guest: &str) -> Telling<Value> {
    let text = stage.sh(&format!("cat /var/lib/xen-stubdom/reports/{guest}.json"))?;
    let report: Value = serde_json::from_str(&text).doing("reading stubctl's report")?;
    ensure(report["restored"] == true, || format!("stubctl's report does not tell of a restore: {report}"))?;
    Ok(report["stub"].clone())
}

/// Runs a script that must succeed; gives the seconds it took.
fn timed(stage: &Stage, script: &str) -> Telling<f64> {
    let began = Instant::now();
    stage.sh(script)?;
    Ok(began.elapsed().as_secs_f64())
}
