//! The time that a run of all stories may take on a slow host.
//!
//! **Takes** how long stories took. **Gives** which of those that wait are left out, the longest first. **Never** leaves
//! out a story that fits.

use std::fmt;
use std::time::Duration;

/// How long each story took in seconds, with its boot if it has one, on a host of two processors that ran two at a time and
/// little else (2026-11-28). This decides only what is left out first.
const SECONDS: &[(&str, u32)] = &[
    ("bring-up", 67),
    ("exchange-deaths", 91),
    ("exchange-hvm", 217),
    ("exchange-net", 99),
    ("exchange-pv", 248),
    ("exchange-pvh", 81),
    ("exchange-refusals", 108),
    ("exchange-saving", 47),
    ("exchange-scarce", 70),
    ("exchange-watch", 62),
    ("live-failures", 166),
    ("live-hvm", 174),
    ("live-pvh", 63),
    ("live-two-hosts", 136),
    ("save-helper", 132),
    ("scrubbed", 17),
    ("send-hvm", 275),
    ("send-pvh", 127),
    ("stock-restore", 31),
    ("stub-1g", 110),
    ("stub-any-order", 94),
    ("stub-cut", 100),
    ("stub-damaged", 89),
    ("stub-fragmented", 38),
    ("stub-hvm-1024", 145),
    ("stub-hvm-256", 96),
    ("stub-max-pages", 62),
    ("stub-network", 145),
    ("stub-pvh-1024", 83),
    ("stub-pvh-256", 74),
    ("stub-ten-rounds", 65),
    ("stub-transports", 35),
    ("stub-two-at-once", 52),
];

/// What a story takes that is not in the list.
const UNKNOWN_S: u32 = 90;

/// How long a story takes on a quiet host.
pub fn nominal(story: &str) -> Duration {
    let known = SECONDS.iter().find(|(name, _)| *name == story);
    Duration::from_secs(known.map_or(UNKNOWN_S, |(_, seconds)| *seconds).into())
}

/// Time that is left, and how fast the host is.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    limit: Duration,
    nr_lanes: u32,
    took: Duration,
    nominal: Duration,
}

impl Budget {
    /// Begins a run that may take `limit` in so many lanes side by side.
    pub const fn new(limit: Duration, nr_lanes: u32) -> Self {
        Self { limit, nr_lanes, took: Duration::ZERO, nominal: Duration::ZERO }
    }

    /// Notes how long a story took.
    pub fn note(&mut self, story: &str, took: Duration) {
        self.took += took;
        self.nominal += nominal(story);
    }

    /// How many times as long as on a quiet host stories take here, in hundredths; at least 100.
    fn slowness(&self) -> u32 {
        let hundredths = self.took.as_millis() * 100 / self.nominal.as_millis().max(1);
        u32::try_from(hundredths).unwrap_or(u32::MAX).max(100)
    }

    fn on_this_host(&self, nominal: Duration) -> Duration {
        nominal.saturating_mul(self.slowness()) / 100
    }

    /// Takes the longest stories out of those that wait until the rest fits into the time left, and gives their names.
    pub fn leave_out<'a>(&self, elapsed: Duration, waiting: &mut Vec<&'a str>) -> Vec<&'a str> {
        let left = self.limit.saturating_sub(elapsed);
        let mut out = Vec::new();
        loop {
            let all: Duration = waiting.iter().map(|name| nominal(name)).sum();
            let longest = waiting.iter().enumerate().max_by_key(|(_, name)| nominal(name));
            let Some((index, name)) = longest else { return out };
            let fits =
                self.on_this_host(all) / self.nr_lanes <= left && self.on_this_host(nominal(name)) <= left;
            if fits {
                return out;
            }
            out.push(waiting.remove(index));
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (minutes, slowness) = (self.limit.as_secs() / 60, self.slowness());
        write!(
            f,
            "no time in a budget of {minutes} minutes; this host takes {slowness} % of a quiet one's time"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn nothing_is_left_out_where_there_is_time() {
        let mut waiting = vec!["a", "b"];
        assert!(Budget::new(10 * MINUTE, 1).leave_out(Duration::ZERO, &mut waiting).is_empty());
        assert_eq!(waiting, ["a", "b"]);
    }

    #[test]
    fn on_a_slow_host_stories_are_left_out_until_the_rest_fits() {
        let mut budget = Budget::new(10 * MINUTE, 1);
        budget.note("unknown", 2 * Duration::from_secs(UNKNOWN_S.into())); // twice as slow: 3 minutes each
        let mut waiting = vec!["a", "b", "c", "d"];
        assert_eq!(budget.leave_out(3 * MINUTE, &mut waiting).len(), 2);
        assert_eq!(waiting.len(), 2);
    }

    #[test]
    fn two_lanes_have_time_for_twice_as_many() {
        let mut waiting = vec!["a", "b", "c", "d"];
        assert!(Budget::new(3 * MINUTE, 2).leave_out(Duration::ZERO, &mut waiting).is_empty());
    }

    #[test]
    fn a_story_that_cannot_end_in_time_is_not_begun() {
        let mut waiting = vec!["a"];
        assert_eq!(Budget::new(MINUTE, 2).leave_out(Duration::ZERO, &mut waiting), ["a"]);
    }

    #[test]
    fn every_story_in_the_list_exists() {
        for (name, _) in SECONDS {
            assert!(crate::stories::ALL.iter().any(|story| story.name == *name), "no story {name}");
        }
    }
}
