//! Faults that stay: reported when they come, when they change, and once an hour.
//!
//! **Takes** what is at fault, and how. **Gives** a line of the log. **Never** fills the log with one fault.

use control::Untrusted;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// When a fault that stays is reported again.
const AGAIN: Duration = Duration::from_secs(3600);

/// More faults than these at a time are not remembered, and so reported each time.
const MAX_KNOWN: usize = 256;

/// What has been reported.
#[derive(Default)]
pub(super) struct Complaints(BTreeMap<String, (String, Instant)>);

impl Complaints {
    /// Reports a fault of `what`; gives whether it is news.
    pub(super) fn add(&mut self, what: &str, fault: &str) -> bool {
        let is_known =
            self.0.get(what).is_some_and(|(known, since)| known == fault && since.elapsed() < AGAIN);
        if is_known {
            return false;
        }
        log::warn!("{}: {}", Untrusted::new(what), Untrusted::new(fault));
        if self.0.len() < MAX_KNOWN || self.0.contains_key(what) {
            self.0.insert(what.to_owned(), (fault.to_owned(), Instant::now()));
        }
        true
    }

    /// Reports that there is no fault of `what` any more, if there was one.
    pub(super) fn settle(&mut self, what: &str) {
        if self.0.remove(what).is_some() {
            log::warn!("{}: all right again", Untrusted::new(what));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_stays_is_news_once() {
        let mut complaints = Complaints::default();
        assert!(complaints.add("spool", "no such directory"));
        assert!(!complaints.add("spool", "no such directory"));
        assert!(complaints.add("spool", "no space"));
        complaints.settle("spool");
        assert!(complaints.add("spool", "no space"));
    }
}
