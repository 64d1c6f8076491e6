//! When a live send stops copying a running guest and suspends it.
//!
//! **Takes** the operator's limits and what the passes so far came to. **Gives** a decision. **Never** knows how pages travel.

/// The operator's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Most passes while the guest runs, the first included.
    pub max_passes: u32,
    /// So few dirty pages are always good enough.
    pub few_pages: u64,
    /// The guest is suspended once what is dirty would go out within this time, at the rate of the last pass.
    pub downtime_ms: u64,
    /// Most bytes a second while the guest runs; `None`: as fast as they go.
    pub most_bytes_a_second: Option<u64>,
    /// What happens when the guest still runs after so many seconds.
    pub timeout: Option<Timeout>,
}

/// The end of the operator's patience.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// The guest is suspended, however much is dirty.
    FinishAfter(u64),
    /// The send ends, and the guest runs on.
    AbortAfter(u64),
}

impl Default for Policy {
    /// libxenguest's limits (`xg_sr_save.c`: `SPP_MAX_ITERATIONS`, `SPP_TARGET_DIRTY_COUNT`), and an earlier end when
    /// the rest takes no time that anybody notices.
    fn default() -> Self {
        Self { max_passes: 5, few_pages: 50, downtime_ms: 20, most_bytes_a_second: None, timeout: None }
    }
}

/// What the passes so far came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// How many there were.
    pub nr_passes: u32,
    /// Bytes that the last one sent.
    pub nr_bytes: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
    /// How long all have taken, in nanoseconds.
    pub elapsed_ns: u64,
    /// Pages that have become dirty since the last one began.
    pub nr_dirty: u64,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another pass.
    Again,
    /// The guest is suspended for the last one.
    Suspend,
    /// No more: the guest runs on at the source, so many seconds are over.
    Abort(u64),
}

const NS_A_SECOND: u64 = 1_000_000_000;
const NS_A_MS: u64 = 1_000_000;
const PAGE_BYTES: u64 = xen_abi::types::PAGE_SIZE as u64;

impl Policy {
    /// Decides at the end of a pass.
    pub fn decide(&self, passed: Passed) -> Decision {
        let is_over = |seconds: u64| passed.elapsed_ns >= seconds.saturating_mul(NS_A_SECOND);
        match self.timeout {
            Some(Timeout::AbortAfter(seconds)) if is_over(seconds) => return Decision::Abort(seconds),
            Some(Timeout::FinishAfter(seconds)) if is_over(seconds) => return Decision::Suspend,
            _ => {}
        }
        let is_enough = passed.nr_passes >= self.max_passes
            || passed.nr_dirty < self.few_pages
            || self.is_soon_sent(passed);
        if is_enough { Decision::Suspend } else { Decision::Again }
    }

    /// Returns when, in nanoseconds after the start, the next bytes may go out if `nr_bytes` have gone already.
    pub fn next_ns(&self, nr_bytes: u64) -> u64 {
        let ns = |rate| u128::from(nr_bytes) * u128::from(NS_A_SECOND) / u128::from(rate);
        let rate = self.most_bytes_a_second.filter(|rate| *rate > 0);
        rate.map_or(0, |rate| u64::try_from(ns(rate)).unwrap_or(u64::MAX))
    }

    /// Whether the dirty pages go out within the time that the guest may be down. A limited rate is not limited then, and
    /// the last pass was: the true time is shorter.
    fn is_soon_sent(&self, passed: Passed) -> bool {
        let nr_bytes = u128::from(passed.nr_dirty) * u128::from(PAGE_BYTES);
        let takes_ns = nr_bytes * u128::from(passed.took_ns) / u128::from(passed.nr_bytes.max(1));
        takes_ns <= u128::from(self.downtime_ms) * u128::from(NS_A_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pass of 256 MiB in a second.
    const PASSED: Passed = Passed {
        nr_passes: 1,
        nr_bytes: 256 << 20,
        took_ns: NS_A_SECOND,
        elapsed_ns: NS_A_SECOND,
        nr_dirty: 20_000,
    };

    #[test]
    fn a_busy_guest_gets_as_many_passes_as_with_libxenguest() {
        let decide = |nr_passes| Policy::default().decide(Passed { nr_passes, ..PASSED });
        assert_eq!([1, 4, 5].map(decide), [Decision::Again, Decision::Again, Decision::Suspend]);
    }

    #[test]
    fn few_pages_are_enough_at_any_rate() {
        let slow = Passed { took_ns: u64::MAX, nr_bytes: 1, ..PASSED };
        let decide = |nr_dirty| Policy::default().decide(Passed { nr_dirty, ..slow });
        assert_eq!([49, 50].map(decide), [Decision::Suspend, Decision::Again]);
    }

    #[test]
    fn what_goes_out_within_the_downtime_is_enough() {
        // 65,536 pages a second: 1,310 in 20 ms.
        let decide = |nr_dirty| Policy::default().decide(Passed { nr_dirty, ..PASSED });
        assert_eq!([1_310, 1_311].map(decide), [Decision::Suspend, Decision::Again]);
        let slower = Passed { took_ns: 2 * NS_A_SECOND, nr_dirty: 1_310, ..PASSED };
        assert_eq!(Policy::default().decide(slower), Decision::Again);
    }

    #[test]
    fn a_timeout_finishes_or_aborts() {
        let decide = |timeout| Policy { timeout: Some(timeout), ..Policy::default() }.decide(PASSED);
        assert_eq!(decide(Timeout::FinishAfter(1)), Decision::Suspend);
        assert_eq!(decide(Timeout::AbortAfter(1)), Decision::Abort(1));
        assert_eq!(decide(Timeout::AbortAfter(2)), Decision::Again);
    }

    #[test]
    fn a_limited_rate_spreads_the_bytes() {
        let policy = Policy { most_bytes_a_second: Some(1000), ..Policy::default() };
        assert_eq!((policy.next_ns(0), policy.next_ns(500)), (0, NS_A_SECOND / 2));
        assert_eq!(Policy::default().next_ns(u64::MAX), 0);
    }
}
