//! When to look again for contiguous memory.

/// Longest wait, in extents of the order.
const MAX_WAIT: u32 = 64;

/// Asks again for an order that failed, ever more rarely: after a failure, this many extents in a row are populated
/// one order lower before the next try; the number doubles with each failure in a row up to [`MAX_WAIT`].
///
/// So a fragmented host pays one failed hypercall in 64 regions, and memory that becomes contiguous later (another
/// guest has gone) is found. An order that Xen does not allow to this domain looks the same and costs as little: a
/// stub may ask for 1 GiB only under `memop-max-order`, and Xen answers with a short count either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backoff {
    wait: u32,
    next: u32,
}

impl Backoff {
    pub(super) const fn new() -> Self {
        Self { wait: 0, next: 1 }
    }

    /// Tells whether it is time to try.
    pub(super) const fn is_ready(self) -> bool {
        self.wait == 0
    }

    /// Records a try: `nr_done` of `nr_asked` extents.
    pub(super) fn record(&mut self, nr_asked: usize, nr_done: usize) {
        if nr_done > 0 {
            *self = Self::new();
        }
        if nr_done < nr_asked {
            self.wait = self.next;
            self.next = (self.next * 2).min(MAX_WAIT);
        }
    }

    /// Records that an extent was begun one order lower.
    pub(super) fn count_down(&mut self) {
        self.wait = self.wait.saturating_sub(1);
    }
}
