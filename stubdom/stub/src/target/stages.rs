//! Where the stub's processor time goes: nanoseconds of each [`Stage`] since it has its target.
//!
//! Two looks at the clock a stage; so a stage is entered for a batch or a run of bytes, never for a page.

use control::Stage;
use xen_front::clock::Clock;
use xen_front::run_time::RunTime;

/// The sums, and the clock they are taken by.
pub(crate) struct Stages {
    /// Missing where Xen refuses to tell: then all sums stay 0.
    clock: Option<RunTime>,
    spent_ns: [u64; Stage::ALL.len()],
}

impl Stages {
    pub(super) fn new(clock: Clock) -> Self {
        let clock = RunTime::new(clock);
        if let Err(errno) = &clock {
            log::warn!("no processor time: {errno}");
        }
        Self { clock: clock.ok(), spent_ns: [0; Stage::ALL.len()] }
    }

    /// Does `work` and adds its time to the stage.
    pub(crate) fn time<T>(&mut self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let began_ns = self.now_ns();
        let result = work();
        self.spent_ns[stage as usize] += self.now_ns().saturating_sub(began_ns);
        result
    }

    /// The sums so far, in the order of [`Stage::ALL`].
    pub(crate) const fn spent_ns(&self) -> [u64; Stage::ALL.len()] {
        self.spent_ns
    }

    fn now_ns(&self) -> u64 {
        self.clock.as_ref().map_or(0, RunTime::ns)
    }
}
