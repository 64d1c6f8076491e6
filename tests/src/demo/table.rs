//! The table for people.

use super::Seen;
use crate::survey::Survey;
use control::RegionKind;

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

/// The stub's hypercalls by kind, the most frequent first.
fn hypercalls(seen: &Seen) -> String {
    let counted = seen.stub_report["hypercalls"].as_object();
    let mut kinds: Vec<(&str, u64)> = counted
        .into_iter()
        .flatten()
        .map(|(kind, count)| (kind.as_str(), count.as_u64().unwrap_or(0)))
        .collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let named: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    format!("hypercalls of the stub for {}: {}\n", seen.guest, named.join(", "))
}
