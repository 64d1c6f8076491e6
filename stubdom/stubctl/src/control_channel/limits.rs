//! How much a stub may say: messages in all, and lines of the operator's log.
//!
//! **Takes** the times at which something comes. **Gives** whether it still is as much as a stub may send. **Never**
//! counts without a bound: a stub writes as fast as it likes, and stays a stranger.

use std::time::{Duration, Instant};

/// Messages in a burst: three blobs of 4 MiB in pieces are 6,144.
const NR_MESSAGES: u32 = 16_384;
/// Messages a second beyond that: a stub reports its progress a few times a second.
const MESSAGES_PER_SECOND: u32 = 100;
/// Messages that each command adds: an answer, and the lines of the log around it.
const MESSAGES_PER_COMMAND: u32 = 16;

/// Lines in a burst.
const NR_LINES: u32 = 50;
/// Lines a second beyond that.
const LINES_PER_SECOND: u32 = 5;
/// Lines in all.
const MAX_LINES: u32 = 2_000;

/// Something that may happen so often in a burst and so often a second (the generic cell rate algorithm).
struct Rate {
    /// Between two, in the long run.
    interval: Duration,
    /// How far a burst may run ahead of the long run.
    ahead: Duration,
    /// When the long run catches up with what has happened.
    caught_up: Instant,
}

impl Rate {
    fn new(now: Instant, burst: u32, per_second: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second;
        Self { interval, ahead: interval * burst, caught_up: now }
    }

    /// Whether it may happen once more now.
    fn allows(&mut self, now: Instant) -> bool {
        let next = self.caught_up.max(now) + self.interval;
        let is_allowed = next.duration_since(now) <= self.ahead;
        if is_allowed {
            self.caught_up = next;
        }
        is_allowed
    }

    /// Allows so many more.
    fn grant(&mut self, nr: u32) {
        self.caught_up = self.caught_up.checked_sub(self.interval * nr).unwrap_or(self.caught_up);
    }
}

/// Messages of a stub.
pub(super) struct Messages(Rate);

impl Messages {
    pub(super) fn new(now: Instant) -> Self {
        Self(Rate::new(now, NR_MESSAGES, MESSAGES_PER_SECOND))
    }

    /// For a test of what else ends a conversation.
    #[cfg(test)]
    pub(super) fn without_end() -> Self {
        Self(Rate::new(Instant::now(), u32::MAX, 1))
    }

    /// Whether one more is still as much as a stub may send.
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        self.0.allows(now)
    }

    /// A command has gone out, and will be answered.
    pub(super) fn command(&mut self) {
        self.0.grant(MESSAGES_PER_COMMAND);
    }
}

/// What becomes of a line of a stub's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// It is shown, behind a word of how many before it were not.
    Shown {
        /// How many.
        nr_suppressed: u64,
    },
    /// It is the last that is shown.
    Last,
    /// It is not shown.
    Suppressed,
}

/// Lines of a stub's log.
pub(super) struct Lines {
    rate: Rate,
    nr_left: u32,
    /// Since the last that was shown.
    nr_suppressed: u64,
}

impl Lines {
    pub(super) fn new(now: Instant) -> Self {
        Self { rate: Rate::new(now, NR_LINES, LINES_PER_SECOND), nr_left: MAX_LINES, nr_suppressed: 0 }
    }

    /// Takes a line.
    pub(super) fn take(&mut self, now: Instant) -> Line {
        if self.nr_left == 0 || !self.rate.allows(now) {
            self.nr_suppressed += 1;
            return Line::Suppressed;
        }
        self.nr_left -= 1;
        match std::mem::take(&mut self.nr_suppressed) {
            0 if self.nr_left == 0 => Line::Last,
            nr_suppressed => Line::Shown { nr_suppressed },
        }
    }

    /// How many were not shown since the last that was.
    pub(super) fn nr_suppressed(&self) -> u64 {
        self.nr_suppressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut rate = Rate::new(start, 10, 4);
        assert_eq!((0..100).filter(|_| rate.allows(start)).count(), 10);
        assert!(!rate.allows(start + Duration::from_millis(249)));
        assert!(rate.allows(start + Duration::from_millis(250)));
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| rate.allows(later)).count(), 10, "silence does not save up");
    }

    #[test]
    fn each_command_allows_its_answers() {
        let start = Instant::now() + Duration::from_secs(3600);
        let mut messages = Messages::new(start);
        while messages.allow(start) {}
        messages.command();
        assert_eq!((0..100).filter(|_| messages.allow(start)).count(), MESSAGES_PER_COMMAND as usize);
    }

    #[test]
    fn the_lines_of_a_flood_are_counted_and_not_shown() {
        let start = Instant::now();
        let mut lines = Lines::new(start);
        let taken: Vec<Line> = (0..1_000_000).map(|_| lines.take(start)).collect();
        let (shown, rest) = taken.split_at(NR_LINES as usize);
        assert!(shown.iter().all(|line| *line == Line::Shown { nr_suppressed: 0 }));
        assert!(rest.iter().all(|line| *line == Line::Suppressed));
        let nr_suppressed = rest.len() as u64;
        assert_eq!(lines.take(start + Duration::from_secs(1)), Line::Shown { nr_suppressed });
        assert_eq!(lines.nr_suppressed(), 0);
    }

    #[test]
    fn there_is_an_end_to_the_lines_of_a_stub_that_is_slow_about_it() {
        let start = Instant::now();
        let mut lines = Lines::new(start);
        let taken: Vec<Line> = (0..9999).map(|nr| lines.take(start + Duration::from_secs(nr))).collect();
        let nr_shown = taken.iter().filter(|line| **line != Line::Suppressed).count();
        assert_eq!((nr_shown, taken[nr_shown - 1]), (MAX_LINES as usize, Line::Last));
    }
}
