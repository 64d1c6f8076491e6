//! The benchmark's table, in Markdown: a column for each way.

use super::round::Round;
use super::{Measured, Series, median};

/// Nanoseconds of an instruction where instructions are counted (`-icount shift=1`).
const INSTRUCTION_NS: f64 = 2.0;

const PAGE_BYTES: u64 = 4096;

/// A row: its name and what it takes from a round, where the round has it.
type Row = (&'static str, fn(&Round) -> Option<f64>);

/// Dom0's stages by its own clocks, which tell the right thing where it has a CPU for itself.
const DOM0_STAGES: &[Row] = &[
    ("dom0: xl, its helper, hotplug scripts", |round| Some(round.command - round.relay().unwrap_or(0.0))),
    ("dom0: relay", Round::relay),
    ("dom0: netback", |round| Some(round.netback).filter(|seconds| *seconds > 0.0)),
    ("dom0: all else", |round| Some(round.dom0 - round.command - round.netback)),
];

/// The other stages up to the frame.
const STAGES: &[Row] = &[
    ("dom0 in all", |round| Some(round.dom0)),
    ("receiver: netfront and TCP", |round| round.stage("network").filter(|seconds| *seconds > 0.0)),
    ("receiver: copy into frames", |round| round.stage("copy")),
    ("receiver: map frames", |round| round.stage("map")),
    ("receiver: populate", |round| round.stage("populate")),
    ("receiver: all else", Round::rest),
    ("receiver in all", |round| Some(round.receiver).filter(|seconds| *seconds > 0.0)),
    ("all", |round| Some(round.all())),
];

/// Draws a guest's figures: whole restores, then processor time by stage.
pub(super) fn draw(measured: &Measured) -> String {
    let nr_rounds = measured.series.first().map_or(0, |series| series.rounds.len());
    let file_mib = mib(measured.file_bytes);
    let mut text =
        format!("{}, a file of {file_mib:.0} MiB, medians of {nr_rounds} rounds:\n\n", measured.guest);
    line(&mut text, "", measured.series.iter().map(|series| series.name.to_owned()));
    line(&mut text, "---", measured.series.iter().map(|_| "---:".to_owned()));
    let stock = measured.series.first().and_then(|stock| of(stock, |round| Some(round.seconds)));
    let seconds = |series: &Series| of(series, |round| Some(round.seconds));
    row(&mut text, measured, "seconds", 2, seconds);
    row(&mut text, measured, "against stock", 2, |series| Some(seconds(series)? / stock?));
    row(&mut text, measured, "MiB/s", 0, |series| Some(file_mib / seconds(series)?));
    row(&mut text, measured, "MiB/s while the stream runs", 0, |series| {
        Some(file_mib / of(series, Round::streaming)?)
    });
    let (unit, nanoseconds) =
        if measured.icount { ("instructions", INSTRUCTION_NS) } else { ("ns of processor time", 1.0) };
    line(&mut text, &format!("*{unit} a page*"), measured.series.iter().map(|_| String::new()));
    let scale = 1e9 / nanoseconds / pages(measured.file_bytes);
    let of_dom0 = if measured.nr_cpus < 2 { &[] } else { DOM0_STAGES };
    for (name, take) in of_dom0.iter().chain(STAGES) {
        row(&mut text, measured, name, 0, |series| Some(of(series, take)? * scale));
    }
    text
}

/// A row of figures; a way that has none leaves its cell empty.
fn row(
    text: &mut String,
    measured: &Measured,
    name: &str,
    decimals: usize,
    of: impl Fn(&Series) -> Option<f64>,
) {
    let cell = |series| of(series).map_or_else(String::new, |value| format!("{value:.decimals$}"));
    line(text, name, measured.series.iter().map(cell));
}

fn line(text: &mut String, name: &str, cells: impl Iterator<Item = String>) {
    text.push_str(&format!("| {name} |"));
    cells.for_each(|cell| text.push_str(&format!(" {cell} |")));
    text.push('\n');
}

/// The median over a way's rounds.
fn of(series: &Series, take: impl Fn(&Round) -> Option<f64>) -> Option<f64> {
    let values: Option<Vec<f64>> = series.rounds.iter().map(take).collect();
    values.filter(|values| !values.is_empty()).map(|values| median(&values))
}

#[allow(clippy::cast_precision_loss, reason = "a file is smaller than 2^53 bytes")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[allow(clippy::cast_precision_loss, reason = "a file is smaller than 2^53 bytes")]
fn pages(bytes: u64) -> f64 {
    (bytes / PAGE_BYTES).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_sets_every_way_beside_stock() {
        let report = json!({
            "seconds_by_phase": { "create": 1.0, "memory": 4.0 },
            "stubctl_cpu_seconds_by_phase": { "create": 0.25, "memory": 0.25 },
            "stub": { "cpu_seconds_by_stage": { "network": 0.0, "copy": 0.2, "map": 0.1, "populate": 0.1 } },
        });
        let stock = Round { seconds: 4.0, dom0: 3.1, command: 3.0, ..Round::default() };
        let ring = Round { seconds: 5.0, dom0: 1.1, receiver: 0.5, command: 1.0, report, ..Round::default() };
        let measured = Measured {
            guest: "g".into(),
            file_bytes: 4096 * 25600,
            icount: false,
            nr_cpus: 2,
            series: vec![
                Series { name: "stock", rounds: vec![stock] },
                Series { name: "stub, ring", rounds: vec![ring] },
            ],
        };
        let expected = "\
g, a file of 100 MiB, medians of 1 rounds:

|  | stock | stub, ring |
| --- | ---: | ---: |
| seconds | 4.00 | 5.00 |
| against stock | 1.00 | 1.25 |
| MiB/s | 25 | 20 |
| MiB/s while the stream runs |  | 25 |
| *ns of processor time a page* |  |  |
| dom0: xl, its helper, hotplug scripts | 117188 | 29297 |
| dom0: relay |  | 9766 |
| dom0: netback |  |  |
| dom0: all else | 3906 | 3906 |
| dom0 in all | 121094 | 42969 |
| receiver: netfront and TCP |  |  |
| receiver: copy into frames |  | 7812 |
| receiver: map frames |  | 3906 |
| receiver: populate |  | 3906 |
| receiver: all else |  | 3906 |
| receiver in all |  | 19531 |
| all | 121094 | 62500 |
";
        assert_eq!(draw(&measured), expected);
        let counted = draw(&Measured { icount: true, nr_cpus: 1, ..measured });
        assert!(counted.contains("*instructions a page*") && counted.contains("| all | 60547 | 31250 |"));
        assert!(!counted.contains("relay"), "dom0's own clocks go on while a stub runs");
    }
}
