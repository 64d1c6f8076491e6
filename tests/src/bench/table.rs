//! The benchmark's table.

use super::{Measured, Series, Way, median};
use std::collections::BTreeSet;

/// Draws a guest's figures: whole restores, the stub's stages, its hypercalls.
pub(super) fn draw(measured: &Measured) -> String {
    let stock = measured.series.iter().find(|series| series.way == Way::Stock);
    let stock = stock.map_or(f64::NAN, |series| median(&series.seconds));
    let mut text = format!(
        "{}: a file of {:.0} MiB, medians of {} rounds\n{:<16}{:>9}{:>9}{:>9}\n",
        measured.guest,
        mib(measured.file_bytes),
        measured.series.first().map_or(0, |series| series.seconds.len()),
        "xl restore",
        "seconds",
        "MiB/s",
        "/ stock"
    );
    for series in &measured.series {
        text += &row(series.way.as_str(), median(&series.seconds), measured.file_bytes, stock);
    }
    if !measured.netcat.is_empty() {
        text += &row("netcat to Linux", median(&measured.netcat), measured.file_bytes, stock);
    }
    for series in measured.series.iter().filter(|series| series.way != Way::Stock) {
        text += &stages(series);
        text += &hypercalls(series);
    }
    text
}

fn row(name: &str, seconds: f64, file_bytes: u64, stock: f64) -> String {
    format!("{name:<16}{seconds:>9.2}{:>9.0}{:>9.2}\n", mib(file_bytes) / seconds, seconds / stock)
}

/// The median of each stage, the longest first.
fn stages(series: &Series) -> String {
    let phases = series.reports.iter().filter_map(|report| report["seconds_by_phase"].as_object());
    let names: BTreeSet<&String> = phases.clone().flat_map(|phases| phases.keys()).collect();
    let of = |name: &str| {
        let each =
            phases.clone().map(|phases| phases.get(name).and_then(|value| value.as_f64()).unwrap_or(0.0));
        median(&each.collect::<Vec<_>>())
    };
    let mut stages: Vec<(&str, f64)> = names.iter().map(|name| (name.as_str(), of(name))).collect();
    stages.sort_by(|a, b| b.1.total_cmp(&a.1));
    let named: Vec<String> = stages.iter().map(|(name, seconds)| format!("{name} {seconds:.2}")).collect();
    format!("{}: {}\n", series.way.as_str(), named.join(", "))
}

/// The hypercalls of the last round, the most frequent first.
fn hypercalls(series: &Series) -> String {
    let Some(stub) = series.reports.last().map(|report| &report["stub"]) else { return String::new() };
    let counted = stub["hypercalls"].as_object().into_iter().flatten();
    let mut kinds: Vec<(&str, u64)> =
        counted.map(|(kind, count)| (kind.as_str(), count.as_u64().unwrap_or(0))).collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let named: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    format!("    hypercalls for {} pages: {}\n", stub["pages"], named.join(", "))
}

#[allow(clippy::cast_precision_loss, reason = "a file is smaller than 2^53 bytes")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_sets_every_way_beside_stock() {
        let report = json!({
            "seconds_by_phase": { "create": 1.0, "memory": 3.0 },
            "stub": { "pages": 512, "hypercalls": { "mmu_update": 7, "sched_op": 9 } },
        });
        let series = |way, seconds, reports| Series { way, seconds: vec![seconds], reports };
        let measured = Measured {
            guest: "g".into(),
            file_bytes: 100 << 20,
            series: vec![series(Way::Stock, 4.0, vec![]), series(Way::Ring, 5.0, vec![report])],
            netcat: vec![],
        };
        let expected = "\
g: a file of 100 MiB, medians of 1 rounds
xl restore        seconds    MiB/s  / stock
stock                4.00       25     1.00
stub, ring           5.00       20     1.25
stub, ring: memory 3.00, create 1.00
    hypercalls for 512 pages: sched_op 9, mmu_update 7
";
        assert_eq!(draw(&measured), expected);
    }
}
