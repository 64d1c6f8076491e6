//! How often progress is told: a stream's sender decides how often it changes, and each telling costs dom0 work.
//!
//! **Takes** where a reception is, and the time. **Gives** whether that is worth telling now. **Never** lets a stream ask
//! for more than one telling an interval, and one for each phase.

use crate::Phase;

/// The pace of one listener.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    interval_ns: u64,
    /// When it was last told.
    told_ns: Option<u64>,
    /// The phases that have been told, one bit each.
    phases: u16,
}

impl Pace {
    /// Tells at most once in an interval, but for phases.
    pub const fn new(interval_ns: u64) -> Self {
        Self { interval_ns, told_ns: None, phases: 0 }
    }

    /// Tells whether to tell now, and takes it for told: a phase that is entered for the first time, or the interval is
    /// over.
    pub fn is_due(&mut self, phase: Phase, now_ns: u64) -> bool {
        let bit = 1 << phase as u16;
        let is_over = self.told_ns.is_none_or(|at_ns| now_ns >= at_ns.saturating_add(self.interval_ns));
        let is_due = is_over || self.phases & bit == 0;
        if is_due {
            self.phases |= bit;
            self.told_ns = Some(now_ns);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_an_interval_only_a_new_phase_is_told() {
        let mut pace = Pace::new(200);
        assert!(pace.is_due(Phase::Memory, 1000));
        assert!(!pace.is_due(Phase::Memory, 1199));
        assert!(pace.is_due(Phase::Memory, 1200));
        assert!(pace.is_due(Phase::Precopy, 1201));
        assert!(!pace.is_due(Phase::Precopy, 1400));
        assert!(pace.is_due(Phase::Precopy, 1401));
    }

    #[test]
    fn phases_that_come_and_go_are_told_once_each() {
        let mut pace = Pace::new(1_000_000);
        let phases = [Phase::Opening, Phase::Memory, Phase::Precopy, Phase::Finishing];
        let nr_told = phases
            .iter()
            .cycle()
            .zip(0..10_000)
            .filter(|(phase, now_ns)| pace.is_due(**phase, *now_ns))
            .count();
        assert_eq!(nr_told, phases.len());
    }
}
