//! How fast a receive goes, from two looks at what the stub says of itself.
//!
//! **Takes** counts and the time. **Gives** rates, pages that came again, an estimate. **Never** estimates what it cannot
//! know: how many more passes the source will make.

use std::time::{Duration, Instant};

/// Cells of the bar.
const BAR_CELLS: usize = 24;

/// The counts of one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Which pass over memory, from 1.
    pub(super) pass: u64,
    /// Stream bytes taken.
    pub(super) nr_bytes: u64,
    /// Pages filled, repeats counted.
    pub(super) nr_pages: u64,
}

/// What has been seen of one stub.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    at: Instant,
    counts: Counts,
    /// Pages filled when the first pass was last seen.
    nr_first: Option<u64>,
    pace: Pace,
}

/// How fast it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pace {
    /// Stream bytes a second.
    pub(super) bytes_per_s: u64,
    /// Pages filled a second.
    pub(super) pages_per_s: u64,
    /// Pages that came again because the guest wrote them, as far as seen.
    pub(super) nr_again: Option<u64>,
}

impl Seen {
    /// The first look.
    pub(super) fn first(at: Instant, counts: Counts) -> Self {
        let nr_first = (counts.pass == 1).then_some(counts.nr_pages);
        Self { at, counts, nr_first, pace: Pace::default() }
    }

    /// The next look; a stub that begins another receive begins anew.
    pub(super) fn next(self, at: Instant, counts: Counts) -> Self {
        if counts.nr_bytes < self.counts.nr_bytes {
            return Self::first(at, counts);
        }
        let elapsed = at.saturating_duration_since(self.at);
        let nr_first = if counts.pass <= 1 { Some(counts.nr_pages) } else { self.nr_first };
        let pace = Pace {
            bytes_per_s: per_second(counts.nr_bytes - self.counts.nr_bytes, elapsed),
            pages_per_s: per_second(counts.nr_pages.saturating_sub(self.counts.nr_pages), elapsed),
            nr_again: nr_first.filter(|_| counts.pass > 1).map(|first| counts.nr_pages.saturating_sub(first)),
        };
        Self { at, counts, nr_first, pace }
    }

    /// How fast it goes.
    pub(super) fn pace(&self) -> Pace {
        self.pace
    }
}

impl Pace {
    /// Seconds until the first pass is through; `None` in later passes and while nothing moves.
    pub(super) fn seconds_left(&self, counts: Counts, max_pages: u64) -> Option<u64> {
        let missing = max_pages.checked_sub(counts.nr_pages).filter(|_| counts.pass == 1)?;
        missing.checked_div(self.pages_per_s)
    }

    /// A line with a bar.
    pub(super) fn line(&self, counts: Counts, percent: u64, max_pages: u64) -> String {
        let filled = usize::try_from(percent.min(100)).unwrap_or(100) * BAR_CELLS / 100;
        let bar = format!("{}{}", "#".repeat(filled), "-".repeat(BAR_CELLS - filled));
        let rate = self.bytes_per_s / (1 << 10);
        let mut line = format!("[{bar}] {percent:>3}%  pass {}  {rate} KiB/s", counts.pass);
        if let Some(seconds) = self.seconds_left(counts, max_pages) {
            line += &format!("  about {seconds} s to the end of the pass");
        }
        if let Some(again) = self.nr_again {
            line += &format!("  {again} pages again");
        }
        line
    }
}

fn per_second(count: u64, elapsed: Duration) -> u64 {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    count.saturating_mul(1000).checked_div(millis).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pass: u64, nr_pages: u64) -> Counts {
        Counts { pass, nr_bytes: nr_pages * 4096, nr_pages }
    }

    #[test]
    fn two_looks_give_a_rate_and_an_estimate() {
        let start = Instant::now();
        let seen = Seen::first(start, counts(1, 1000)).next(start + Duration::from_secs(2), counts(1, 3000));
        let pace = seen.pace();
        assert_eq!((pace.bytes_per_s, pace.pages_per_s, pace.nr_again), (4_096_000, 1000, None));
        assert_eq!(pace.seconds_left(counts(1, 3000), 8000), Some(5));
        let expected =
            "[#########---------------]  38%  pass 1  4000 KiB/s  about 5 s to the end of the pass";
        assert_eq!(pace.line(counts(1, 3000), 38, 8000), expected);
    }

    #[test]
    fn later_passes_count_what_comes_again_and_estimate_nothing() {
        let start = Instant::now();
        let seen = Seen::first(start, counts(1, 8000)).next(start + Duration::from_secs(1), counts(2, 8500));
        let pace = seen.pace();
        assert_eq!(pace.nr_again, Some(500));
        assert_eq!(pace.seconds_left(counts(2, 8500), 9000), None);
        let line = pace.line(counts(2, 8500), 100, 8000);
        assert_eq!(line, "[########################] 100%  pass 2  2000 KiB/s  500 pages again");
    }

    #[test]
    fn another_receive_begins_anew_and_no_time_is_no_rate() {
        let start = Instant::now();
        let seen = Seen::first(start, counts(2, 9000)).next(start + Duration::from_secs(1), counts(1, 10));
        assert_eq!(seen.pace(), Pace::default());
        assert_eq!(Seen::first(start, counts(1, 0)).next(start, counts(1, 50)).pace().pages_per_s, 0);
    }
}
