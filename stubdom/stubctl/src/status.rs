//! `stubctl status`: every stub, its target, and the coarse state it shows in xenstore.
//!
//! **Takes** xenstore nodes and domain states. **Gives** a table or JSON. **Never** talks to a stub, so that it works
//! while another stubctl does.

mod pace;

use crate::cli::StatusArguments;
use crate::error::Error;
use crate::host::{Host, home};
use crate::text;
use control::{Untrusted, nodes};
use pace::{Counts, Pace, Seen};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use xen_abi::types::Domid;

const PERIOD: Duration = Duration::from_secs(1);
/// Clears a terminal and goes to its first line.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What is known of one stub. Numbers are what the stub says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    stub: Domid,
    target: Domid,
    guest: Untrusted<String>,
    state: &'static str,
    phase: Untrusted<String>,
    pass: u64,
    nr_bytes: u64,
    nr_pages: u64,
    max_pages: u64,
    superpages_1g: u64,
    superpages_2m: u64,
    pages_4k: u64,
    error: Option<Untrusted<String>>,
    /// How fast it goes, once it has been looked at twice.
    pace: Option<Pace>,
}

/// Lists the stubs, once or until interrupted.
pub(crate) fn run(host: &Host, arguments: &StatusArguments) -> Result<(), Error> {
    let clear = arguments.watch && !arguments.json && std::io::stdout().is_terminal();
    let mut seen = BTreeMap::new();
    loop {
        let mut rows = rows(host)?;
        rows.iter_mut().for_each(|row| row.look(&mut seen, Instant::now()));
        let text = if arguments.json { json(&rows) } else { table(&rows) };
        println!("{}{text}", if clear { CLEAR } else { "" });
        if !arguments.watch || host.interrupt.wait(&[], PERIOD).is_err() {
            return Ok(());
        }
    }
}

fn rows(host: &Host) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for stub in host.domains()? {
        if let Some(target) = host.domid_in(&home(stub, nodes::TARGET_OF_STUB))? {
            rows.push(row(host, stub, target)?);
        }
    }
    rows.sort_by_key(|row| row.stub);
    Ok(rows)
}

fn row(host: &Host, stub: Domid, target: Domid) -> Result<Row, Error> {
    let text = |node| host.store.read(&home(stub, node));
    let none = || Untrusted::new("-".to_owned());
    let number = |node| host.store.read_number(&home(stub, node)).map(Option::unwrap_or_default);
    let max_pages = host.xen.domain_info(target)?.map_or(0, |info| info.max_pages);
    Ok(Row {
        stub,
        target,
        guest: host.name_of(target)?.unwrap_or_else(none),
        state: state(host, stub)?,
        phase: text(nodes::PHASE)?.unwrap_or_else(none),
        pass: number(nodes::PASS)?,
        nr_bytes: number(nodes::BYTES)?,
        nr_pages: number(nodes::PAGES)?,
        max_pages,
        superpages_1g: number(nodes::SUPERPAGES_1G)?,
        superpages_2m: number(nodes::SUPERPAGES_2M)?,
        pages_4k: number(nodes::PAGES_4K)?,
        error: text(nodes::ERROR)?,
        pace: None,
    })
}

fn state(host: &Host, stub: Domid) -> Result<&'static str, Error> {
    Ok(match host.xen.domain_info(stub)? {
        None => "gone",
        Some(info) if info.crashed => "crashed",
        Some(info) if info.dying || info.shutdown => "ending",
        Some(info) if info.paused => "paused",
        Some(_) => "alive",
    })
}

impl Row {
    /// Compares with the last look at this stub.
    fn look(&mut self, seen: &mut BTreeMap<Domid, Seen>, now: Instant) {
        let before = seen.get(&self.stub).copied();
        let this =
            before.map_or_else(|| Seen::first(now, self.counts()), |last| last.next(now, self.counts()));
        seen.insert(self.stub, this);
        self.pace = before.is_some().then(|| this.pace());
    }

    fn counts(&self) -> Counts {
        Counts { pass: self.pass, nr_bytes: self.nr_bytes, nr_pages: self.nr_pages }
    }

    /// The bar, while it receives and has been looked at twice.
    fn bar(&self) -> Option<String> {
        Some(self.pace?.line(self.counts(), self.percent()?, self.max_pages))
    }

    /// Pages of the first pass against the target's size; `None` outside a receive.
    fn percent(&self) -> Option<u64> {
        let receiving = ["opening", "memory", "precopy", "finishing"].contains(&self.phase.raw());
        let part = self.nr_pages.saturating_mul(100).checked_div(self.max_pages)?;
        receiving.then_some(part.min(100))
    }

    fn json(&self) -> Value {
        let seconds_left = self.pace.and_then(|pace| pace.seconds_left(self.counts(), self.max_pages));
        json!({
            "stub": self.stub.raw(),
            "target": self.target.raw(),
            "guest": self.guest,
            "state": self.state,
            "phase": self.phase,
            "percent": self.percent(),
            "pass": self.pass,
            "bytes": self.nr_bytes,
            "pages": self.nr_pages,
            "superpages_1g": self.superpages_1g,
            "superpages_2m": self.superpages_2m,
            "pages_4k": self.pages_4k,
            "error": self.error,
            "bytes_per_s": self.pace.map(|pace| pace.bytes_per_s),
            "pages_per_s": self.pace.map(|pace| pace.pages_per_s),
            "pages_again": self.pace.and_then(|pace| pace.nr_again),
            "seconds_left": seconds_left,
        })
    }
}

fn json(rows: &[Row]) -> String {
    text::json(&Value::Array(rows.iter().map(Row::json).collect()))
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no stubs (see stubctl attach, and /etc/xen/stubdom for restores)".to_owned();
    }
    let mut lines = vec![line(["STUB", "GUEST", "STATE", "PHASE", "%", "PAGES", "1G", "2M", "4K"])];
    for row in rows {
        let percent = row.percent().map_or_else(|| "-".to_owned(), |percent| percent.to_string());
        let numbers =
            [row.nr_pages, row.superpages_1g, row.superpages_2m, row.pages_4k].map(|nr| nr.to_string());
        let [pages, huge, large, small] = numbers.each_ref().map(String::as_str);
        let guest = format!("{} ({})", row.guest, row.target);
        let (stub, phase) = (row.stub.to_string(), row.phase.to_string());
        lines.push(line([&stub, &guest, row.state, &phase, &percent, pages, huge, large, small]));
        lines.extend(row.bar().map(|bar| format!("      {bar}")));
        lines.extend(row.error.iter().map(|error| format!("      last error: {error}")));
    }
    lines.join("\n")
}

fn line(cells: [&str; 9]) -> String {
    let [stub, guest, state, phase, percent, pages, huge, large, small] = cells;
    let line = format!(
        "{stub:<6}{guest:<24}{state:<9}{phase:<11}{percent:>4}{pages:>10}{huge:>5}{large:>7}{small:>9}"
    );
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn untrusted(text: &str) -> Untrusted<String> {
        Untrusted::new(text.to_owned())
    }

    fn example() -> Row {
        Row {
            stub: Domid::new(8),
            target: Domid::new(7),
            guest: untrusted("db"),
            state: "alive",
            phase: untrusted("memory"),
            pass: 1,
            nr_bytes: 1 << 20,
            nr_pages: 16_640,
            max_pages: 65_792,
            superpages_1g: 0,
            superpages_2m: 32,
            pages_4k: 256,
            error: None,
            pace: None,
        }
    }

    #[test]
    fn a_second_look_adds_a_bar_and_rates() {
        let (mut seen, start) = (BTreeMap::new(), Instant::now());
        let mut row = Row { nr_pages: 0, nr_bytes: 0, ..example() };
        row.look(&mut seen, start);
        assert_eq!((row.bar(), row.json()["bytes_per_s"].clone()), (None, Value::Null));
        let mut row = example();
        row.look(&mut seen, start + Duration::from_secs(1));
        assert!(table(&[row.clone()]).ends_with("25%  pass 1  1024 KiB/s  about 2 s to the end of the pass"));
        assert_eq!(row.json()["seconds_left"], 2);
        let idle = Row { phase: untrusted("restored"), ..row };
        assert_eq!(idle.bar(), None);
    }

    #[test]
    fn a_receive_shows_its_percentage_and_an_idle_stub_none() {
        assert_eq!(example().percent(), Some(25));
        assert_eq!(Row { phase: untrusted("restored"), ..example() }.percent(), None);
        assert_eq!(Row { max_pages: 0, ..example() }.percent(), None);
        assert_eq!(Row { nr_pages: u64::MAX, ..example() }.percent(), Some(100));
    }

    #[test]
    fn the_table_has_a_line_a_stub_and_its_error_below() {
        let rows = [Row { error: Some(untrusted("bad\nrecord")), ..example() }];
        let expected = "\
STUB  GUEST                   STATE    PHASE         %     PAGES   1G     2M       4K
d8    db (d7)                 alive    memory       25     16640    0     32      256
      last error: bad\\u{a}record";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn json_is_one_line() {
        let text = json(&[example()]);
        assert!(!text.contains('\n'));
        assert!(text.contains("\"superpages_2m\":32"), "{text}");
    }
}
