//! Coarse state in xenstore, for `stubctl status` and monitoring.
//!
//! Posted, not written: a write takes the time of a change of domain to the daemon and back, and several come while the
//! guest stands still.

use alloc::format;
use control::{Pace, Phase, Progress, Report, nodes};
use xen_front::xenstore::{Error, Xenstore};

/// Least time between two reports of progress in the same phase, in nanoseconds.
const INTERVAL_NS: u64 = 1_000_000_000;

/// What stands in xenstore.
pub(crate) struct Status {
    phase: Option<Phase>,
    pace: Pace,
}

impl Status {
    pub(crate) const fn new() -> Self {
        Self { phase: None, pace: Pace::new(INTERVAL_NS) }
    }

    /// Shows a phase.
    pub(crate) fn phase(&mut self, store: &mut Xenstore, phase: Phase) {
        if self.phase != Some(phase) {
            self.phase = Some(phase);
            warn(store.post(nodes::PHASE, phase.as_str()));
        }
    }

    /// Shows how far a reception is: at most once a second, and whenever a phase is entered for the first time.
    pub(crate) fn progress(&mut self, store: &mut Xenstore, progress: &Progress, now_ns: u64) {
        if self.pace.is_due(progress.phase, now_ns) {
            self.phase(store, progress.phase);
            show(store, progress.nr_bytes, progress.nr_pages);
            warn(store.post(nodes::PASS, &format!("{}", progress.pass)));
        }
    }

    /// Shows what a reception came to.
    pub(crate) fn restored(&mut self, store: &mut Xenstore, report: &Report) {
        show(store, report.nr_bytes, report.nr_pages);
        warn(store.post(nodes::SUPERPAGES_1G, &format!("{}", report.nr_superpages_1g)));
        warn(store.post(nodes::SUPERPAGES_2M, &format!("{}", report.nr_superpages_2m)));
        warn(store.post(nodes::PAGES_4K, &format!("{}", report.nr_pages_4k)));
        self.phase(store, Phase::Restored);
    }

    /// Shows why the last command failed.
    pub(crate) fn failed(&mut self, store: &mut Xenstore, text: &str) {
        warn(store.post(nodes::ERROR, text));
        self.phase(store, Phase::Failed);
    }
}

fn show(store: &mut Xenstore, nr_bytes: u64, nr_pages: u64) {
    warn(store.post(nodes::BYTES, &format!("{nr_bytes}")));
    warn(store.post(nodes::PAGES, &format!("{nr_pages}")));
}

/// Nobody decides by these nodes: a failure is worth a line, no more.
fn warn(result: Result<(), Error>) {
    if let Err(error) = result {
        log::warn!("status: {error}");
    }
}
