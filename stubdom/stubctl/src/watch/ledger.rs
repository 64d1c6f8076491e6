//! How often each frame has failed, and what was done about it.
//!
//! **Takes** reports and fates. **Gives** the next frame to deal with, and its own text. **Never** names a frame again
//! that is out of use, and one that was refused only after more errors, or after a while if the reason may have gone.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use xen_abi::types::{Mfn, PAGE_SHIFT};

/// Errors of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) mfn: Mfn,
    pub(super) errors: u64,
}

impl Report {
    /// Reads a line; `None` when there is nothing on it.
    ///
    /// # Errors
    /// What should stand there.
    pub(super) fn parse(line: &str) -> Result<Option<Self>, &'static str> {
        const EXPECTED: &str = "\"0xADDRESS [COUNT]\"";
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(address) = words.next() else { return Ok(None) };
        let digits = address.strip_prefix("0x").ok_or(EXPECTED)?;
        let address = u64::from_str_radix(digits, 16).map_err(|_| EXPECTED)?;
        let errors = words.next().map_or(Ok(1), str::parse).map_err(|_| EXPECTED)?;
        match words.next() {
            None => Ok(Some(Self { mfn: Mfn::new(address >> PAGE_SHIFT), errors })),
            Some(_) => Err(EXPECTED),
        }
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// In use, errors are counted.
    Counting,
    /// Being dealt with; after a restart it is dealt with again.
    Trying,
    /// Out of use.
    Offline,
    /// Exchanged, and the old frame is held: nothing more can be done here.
    Held,
    /// Refused: tried again after as many errors as it has had.
    Refused,
    /// Refused for the moment: tried again then, or as if refused.
    Waiting {
        /// Seconds since 1970.
        until_s: u64,
    },
}

impl Fate {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Counting => "counting",
            Self::Trying => "trying",
            Self::Offline => "offline",
            Self::Held => "held",
            Self::Refused => "refused",
            Self::Waiting { .. } => "waiting",
        }
    }

    fn until_s(self) -> Option<u64> {
        match self {
            Self::Waiting { until_s } => Some(until_s),
            _ => None,
        }
    }

    fn parse(word: &str, until_s: Option<u64>) -> Option<Self> {
        let waiting = until_s.map(|until_s| Self::Waiting { until_s });
        let fixed = [Self::Counting, Self::Trying, Self::Offline, Self::Held, Self::Refused];
        fixed.into_iter().chain(waiting).find(|known| known.as_str() == word)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    errors: u64,
    /// Errors at which it was tried last.
    tried_at: u64,
    fate: Fate,
}

/// Everything that survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    pages: BTreeMap<Mfn, Page>,
    /// Spool files that are counted and may still be there.
    files: BTreeSet<String>,
    /// How far the growing file is read, in bytes.
    pub(super) offset: u64,
}

impl Ledger {
    /// Notes a spool file; tells whether it is new.
    pub(super) fn take_file(&mut self, name: &str) -> bool {
        self.files.insert(name.to_owned())
    }

    /// Forgets the spool files that are gone.
    pub(super) fn forget_files(&mut self, exists: impl Fn(&str) -> bool) {
        self.files.retain(|name| exists(name));
    }

    /// Counts; gives the errors of the page so far.
    pub(super) fn take(&mut self, report: Report) -> u64 {
        let fresh = Page { errors: 0, tried_at: 0, fate: Fate::Counting };
        let page = self.pages.entry(report.mfn).or_insert(fresh);
        page.errors = page.errors.saturating_add(report.errors);
        page.errors
    }

    /// The next frame that has had enough, by now.
    pub(super) fn due(&self, threshold: u64, now_s: u64) -> Option<Mfn> {
        let has_doubled = |page: &Page| page.errors >= page.tried_at.saturating_mul(2).max(1);
        let is_due = |page: &Page| match page.fate {
            Fate::Counting => page.errors >= threshold,
            Fate::Trying => true,
            Fate::Refused => has_doubled(page),
            Fate::Waiting { until_s } => until_s <= now_s || has_doubled(page),
            Fate::Offline | Fate::Held => false,
        };
        self.pages.iter().find(|(_, page)| is_due(page)).map(|(mfn, _)| *mfn)
    }

    /// Notes what became of a frame.
    pub(super) fn settle(&mut self, mfn: Mfn, fate: Fate) {
        if let Some(page) = self.pages.get_mut(&mfn) {
            page.fate = fate;
            page.tried_at = page.errors;
        }
    }

    pub(super) fn json(&self) -> Value {
        let pages: Vec<Value> = self.pages.iter().map(|(mfn, page)| {
            json!({ "mfn": mfn.raw(), "errors": page.errors, "tried_at": page.tried_at, "fate": page.fate.as_str(), "until_s": page.fate.until_s() })
        }).collect();
        json!({ "version": 2, "offset": self.offset, "files": self.files, "pages": pages })
    }

    /// Reads what [`Ledger::json`] gave.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let number = |value: &Value, key: &str| value.get(key)?.as_u64();
        (number(&value, "version")? == 2).then_some(())?;
        let mut ledger = Self { offset: number(&value, "offset")?, ..Self::default() };
        for name in value.get("files")?.as_array()? {
            ledger.files.insert(name.as_str()?.to_owned());
        }
        for page in value.get("pages")?.as_array()? {
            let fate = Fate::parse(page.get("fate")?.as_str()?, number(page, "until_s"))?;
            let page_of = Page { errors: number(page, "errors")?, tried_at: number(page, "tried_at")?, fate };
            ledger.pages.insert(Mfn::new(number(page, "mfn")?), page_of);
        }
        Some(ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Mfn = Mfn::new(0x1234);

    fn with(errors: u64) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.take(Report { mfn: PAGE, errors });
        ledger
    }

    #[test]
    fn a_line_is_an_address_and_a_count() {
        let report = |errors| Ok(Some(Report { mfn: PAGE, errors }));
        assert_eq!(Report::parse("0x1234abc"), report(1));
        assert_eq!(Report::parse(" 0x1234000 7 # DIMM A1"), report(7));
        assert_eq!(Report::parse("# nothing"), Ok(None));
        for bad in ["1234000", "0xnonsense", "0x1234000 many", "0x1234000 1 2"] {
            assert!(Report::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_page_is_due_at_the_threshold_and_not_before() {
        assert_eq!(with(2).due(3, 0), None);
        assert_eq!(with(3).due(3, 0), Some(PAGE));
    }

    #[test]
    fn a_page_out_of_use_is_never_due_again() {
        let mut ledger = with(3);
        for fate in [Fate::Offline, Fate::Held] {
            ledger.settle(PAGE, fate);
            ledger.take(Report { mfn: PAGE, errors: 1000 });
            assert_eq!(ledger.due(3, 0), None);
        }
    }

    #[test]
    fn a_refused_page_is_due_again_after_as_many_errors_as_before() {
        let mut ledger = with(3);
        ledger.settle(PAGE, Fate::Refused);
        assert_eq!(ledger.due(3, 0), None);
        ledger.take(Report { mfn: PAGE, errors: 2 });
        assert_eq!(ledger.due(3, 0), None);
        ledger.take(Report { mfn: PAGE, errors: 1 });
        assert_eq!(ledger.due(3, 0), Some(PAGE));
    }

    #[test]
    fn a_page_refused_for_the_moment_is_due_again_by_time_or_by_errors_even_across_a_restart() {
        let mut ledger = with(3);
        ledger.settle(PAGE, Fate::Waiting { until_s: 700 });
        let mut restarted = Ledger::parse(&ledger.json().to_string()).unwrap();
        assert_eq!(restarted, ledger);
        assert_eq!((restarted.due(3, 699), restarted.due(3, 700)), (None, Some(PAGE)));
        restarted.take(Report { mfn: PAGE, errors: 3 });
        assert_eq!(restarted.due(3, 0), Some(PAGE));
    }

    #[test]
    fn what_was_under_way_at_a_crash_is_due_after_the_restart() {
        let mut ledger = with(3);
        ledger.settle(PAGE, Fate::Trying);
        let restarted = Ledger::parse(&ledger.json().to_string()).unwrap();
        assert_eq!(restarted, ledger);
        assert_eq!(restarted.due(3, 0), Some(PAGE));
    }

    #[test]
    fn a_spool_file_counts_once_even_across_a_crash() {
        let mut ledger = with(1);
        assert!(ledger.take_file("/spool/a"));
        let mut restarted = Ledger::parse(&ledger.json().to_string()).unwrap();
        assert!(!restarted.take_file("/spool/a"));
        restarted.forget_files(|_| false);
        assert!(restarted.take_file("/spool/a"));
    }

    #[test]
    fn what_is_no_state_is_not_taken_for_an_empty_one() {
        for bad in ["", "{}", "{\"version\": 1, \"offset\": 0, \"files\": [], \"pages\": []}"] {
            assert_eq!(Ledger::parse(bad), None, "{bad}");
        }
    }
}
