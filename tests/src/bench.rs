//! The benchmark: the same save file restored by the stock helper and through the stub, by each transport, side by side.
//!
//! **Takes** guests and a number of rounds. **Gives** a table and `target/nest/bench.json`: medians of whole restores,
//! and the processor time of a page by stage. **Never** compares across boots: all of a guest's figures come from one
//! run of one nest, the ways taking turns, so that a noisy host troubles all of them alike.
//!
//! For scale, a Linux guest takes the same bytes by netcat and throws them away: what a network alone costs here.
//!
//! Where instructions are counted (`--icount`) time is a number of instructions, and the figures repeat from run to run.
//!
//! On a single CPU dom0's own clocks go on while another domain runs: dom0 is told as a whole there, by Xen's count, and by
//! stage with `--cpus 2`.

mod round;
mod table;

use crate::error::{Doing, Error, Result};
use crate::machine::{Machine, Options};
use crate::place::Place;
use crate::story::{Stage, THROUGH_STUB, Telling, Verdict};
use round::Round;
use serde_json::{Value, json};
use std::fmt::Display;
use std::fs;
use std::str::FromStr;
use std::time::Duration;

/// How much longer a script may take where instructions are counted, by the clock of this host: one thread translates for
/// all, about a tenth as many instructions a second as dom0's clock takes for a second.
const ICOUNT_SLOWER: u32 = 10;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The guests, by the name of their configuration.
    pub guests: Vec<String>,
    /// How often each restore is measured.
    pub nr_rounds: usize,
    /// Whether a Linux guest takes each file by netcat too.
    pub netcat: bool,
    /// Whether each change that was made for speed is switched off in turn too.
    pub changes: bool,
}

/// A way of getting the stream into a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Stock,
    Tcp,
    /// Every segment goes over the bridge and the vif by itself.
    TcpInSegments,
    Ring,
    /// The stub sleeps whenever its ring is empty.
    RingAsleep,
}

impl Way {
    const ALL: [Self; 5] = [Self::Stock, Self::Tcp, Self::TcpInSegments, Self::Ring, Self::RingAsleep];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Tcp => "stub, tcp",
            Self::TcpInSegments => "stub, tcp without GSO",
            Self::Ring => "stub, ring",
            Self::RingAsleep => "stub, ring without staying awake",
        }
    }

    /// Whether it is there to show what a change brought.
    const fn is_change(self) -> bool {
        matches!(self, Self::TcpInSegments | Self::RingAsleep)
    }

    /// What dom0's shell does before the restore, and in front of it. The bridge is there once a stream has come by TCP.
    fn set_up(self, guest: &str) -> (String, &'static str) {
        let conf = |settings| {
            format!(
                "printf 'transport = {settings}\\nfallback = \"refuse\"\\n' >/etc/xen/stubdom/{guest}.conf"
            )
        };
        let segments = |nr: u32| {
            format!("! ip link show xenstub0 >/dev/null 2>&1 || ip link set xenstub0 gso_max_segs {nr}")
        };
        let asleep =
            "{ cat /etc/xen/stubdom/stubdom.cfg; echo 'extra = \"awake_us=0\"'; } >/run/bench-asleep.cfg";
        match self {
            Self::Stock => (":".into(), ""),
            Self::Tcp => (format!("{}; {}", conf("\"tcp\""), segments(65535)), THROUGH_STUB),
            Self::TcpInSegments => (format!("{}; {}", conf("\"tcp\""), segments(1)), THROUGH_STUB),
            Self::Ring => (conf("\"ring\""), THROUGH_STUB),
            Self::RingAsleep => {
                (format!("{asleep}; {}", conf("\"ring\"\\nconfig = \"/run/bench-asleep.cfg\"")), THROUGH_STUB)
            }
        }
    }
}

/// One way's rounds.
#[derive(Debug)]
struct Series {
    /// Its name in the table.
    name: &'static str,
    rounds: Vec<Round>,
}

/// All that was measured with one guest's file.
#[derive(Debug)]
struct Measured {
    guest: String,
    file_bytes: u64,
    /// Whether time is a number of instructions.
    icount: bool,
    /// CPUs of the machine.
    nr_cpus: u32,
    /// The stock helper's first.
    series: Vec<Series>,
}

/// Measures and shows.
///
/// # Errors
/// A step failed.
pub fn run(place: &Place, options: &Options, plan: &Plan) -> Result<()> {
    let machine = Machine::boot(place, options)?;
    let slower = if options.icount { ICOUNT_SLOWER } else { 1 };
    let stage = Stage { slower, ..Stage::on(&machine, place) };
    let mut all = Vec::new();
    for guest in &plan.guests {
        match measure(&stage, guest, plan) {
            Ok(measured) => {
                let measured = Measured { icount: options.icount, ..measured };
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
    let ways: Vec<Way> = Way::ALL.into_iter().filter(|way| plan.changes || !way.is_change()).collect();
    let mut series: Vec<Series> =
        ways.iter().map(|way| Series { name: way.as_str(), rounds: Vec::new() }).collect();
    for number in 1..=plan.nr_rounds {
        for (way, series) in ways.iter().zip(&mut series) {
            let round = restore(stage, guest, &file, *way)?;
            println!("{guest} round {number}: {} {:.2} s", series.name, round.seconds);
            series.rounds.push(round);
        }
    }
    if plan.netcat {
        series.push(Series { name: "netcat to Linux", rounds: netcat(stage, &file, plan.nr_rounds)? });
    }
    stage.sh(&format!("rm {file} /etc/xen/stubdom/{guest}.conf"))?;
    let nr_cpus = parse(&stage.sh("xl info nr_cpus")?)?;
    Ok(Measured { guest: guest.to_owned(), file_bytes, icount: false, nr_cpus, series })
}

/// One restore, timed in dom0; the guest stays paused and goes again.
fn restore(stage: &Stage, guest: &str, file: &str, way: Way) -> Telling<Round> {
    let (conf, environment) = way.set_up(guest);
    stage.sh(&conf)?;
    let mut round = Round::take(stage, &format!("{environment}xl restore -p {file}"))?;
    if way != Way::Stock {
        round.read_report(&stage.sh(&format!("cat /var/lib/xen-stubdom/reports/{guest}.json"))?)?;
    }
    stage.sh(&format!("xl destroy {guest}"))?;
    stage.expect_alone()?;
    Ok(round)
}

/// Sends the file to a Linux guest that throws it away.
fn netcat(stage: &Stage, file: &str, nr_rounds: usize) -> Telling<Vec<Round>> {
    let guest = "sink-256";
    let log = format!("/var/log/xen/guest-{guest}.log"); // of an earlier sink it says "ready" too
    stage.sh(&format!("rm -f {log}; xl create -q /etc/xen/stubdom/guests/{guest}.cfg"))?;
    let ready = format!("grep -qs 'sink is ready' {log}");
    stage.sh(&format!("for i in $(seq 600); do {ready} && exit; sleep 0.2; done; exit 1"))?;
    let mut rounds = Vec::new();
    for _ in 0..nr_rounds {
        std::thread::sleep(Duration::from_secs(1)); // until it listens
        let round = Round::take(stage, &format!("nc.openbsd -N 10.80.0.2 8002 <{file}"))?;
        println!("{guest}: {:.2} s", round.seconds);
        rounds.push(round);
    }
    stage.sh(&format!("xl destroy {guest}"))?;
    stage.expect_alone()?;
    Ok(rounds)
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Telling<T> {
    Ok(text.trim().parse().doing(format!("reading a number from \"{text}\""))?)
}

/// The middle value; of an even number, the upper middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn json(measured: &Measured) -> Value {
    let series = |series: &Series| {
        let rounds: Vec<Value> = series.rounds.iter().map(Round::json).collect();
        json!({ "way": series.name, "rounds": rounds })
    };
    json!({
        "guest": measured.guest,
        "file_bytes": measured.file_bytes,
        "series": measured.series.iter().map(series).collect::<Vec<_>>(),
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
