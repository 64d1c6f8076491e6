//! The table for people.

use super::Seen;
use super::calls::{of_stub, with_one_memory_op};
use crate::survey::Survey;
use control::RegionKind;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// A row: what, seconds, 2 MiB, 1 GiB, checksum.
type Row = [String; 5];

/// Draws everything that was seen.
pub(super) fn draw(all: &[Seen]) -> String {
    let head = ["", "seconds", "2 MiB superpages", "1 GiB", "checksum"].map(str::to_owned);
    let mut text = line(&head);
    for seen in all {
        text.push_str(&line(&row(format!("{} fresh", seen.guest), None, &seen.fresh, &seen.checksum)));
        text.push_str(&line(&[
            format!("{} xl save", seen.guest),
            format!("{:.1}", seen.save_s),
            String::new(),
            String::new(),
            String::new(),
        ]));
        for (how, restored) in [("stock xl restore", &seen.stock), ("through the stub", &seen.stub)] {
            let name = format!("{} {how}", seen.guest);
            text.push_str(&line(&row(name, Some(restored.seconds), &restored.survey, &restored.checksum)));
        }
    }
    for seen in all {
        text.push_str(&exchange(seen));
    }
    for seen in all {
        text.push_str(&hypercalls(seen));
    }
    text
}

fn row(name: String, seconds: Option<f64>, survey: &Survey, checksum: &str) -> Row {
    let superpages = format!("{} of {}", survey.count(RegionKind::Superpage), survey.nr_whole());
    let seconds = seconds.map(|seconds| format!("{seconds:.1}")).unwrap_or_default();
    [name, seconds, superpages, survey.nr_contiguous_1g.to_string(), checksum.to_owned()]
}

fn line([name, seconds, small, large, checksum]: &Row) -> String {
    format!("{name:<28}{seconds:>8}{small:>19}{large:>7}  {checksum}\n").trim_end().to_owned() + "\n"
}

/// What became of the frame that was said to fail.
fn exchange(seen: &Seen) -> String {
    let stock = if seen.exchanged.is_stock_done { "takes it" } else { "leaves it in use" };
    let report = &seen.exchanged.report;
    let outcome = report["outcome"].as_str().unwrap_or_default();
    let paused_ms = report["pause_us"].as_f64().unwrap_or_default() / 1000.0;
    let stub = format!("{outcome} exchanged, guest paused {paused_ms:.1} ms");
    format!("a failing frame under {}: xen-hptool {stock}; stubctl: {stub}\n", seen.guest)
}

/// Hypercalls by kind, the most frequent of stock first: dom0's as Xen traces them, the stub's as it counts them.
fn hypercalls(seen: &Seen) -> String {
    let stub = with_one_memory_op(of_stub(&seen.stub_report).unwrap_or_default());
    let columns = [&seen.stock.dom0_calls, &seen.stub.dom0_calls, &stub];
    let kinds: BTreeSet<&String> = columns.iter().flat_map(|calls| calls.keys()).collect();
    let of = |kind: &String| columns.map(|calls| calls.get(kind).copied().unwrap_or(0));
    let mut rows: Vec<(&String, [u64; 3])> = kinds.into_iter().map(|kind| (kind, of(kind))).collect();
    rows.retain(|(_, counts)| counts.iter().any(|count| *count > 0));
    rows.sort_by_key(|(_, counts)| Reverse(*counts));
    let title = format!("{} hypercalls", seen.guest);
    let mut text = format!("\n{title:<28}{:>14}{:>17}{:>9}\n", "stock: dom0", "with stub: dom0", "stub");
    for (kind, [stock, dom0, stub]) in rows {
        text.push_str(&format!("{kind:<28}{stock:>14}{dom0:>17}{stub:>9}\n"));
    }
    text
}
