//! The ledger: how often each kind of hypercall was made since start.
//!
//! A global, because every hypercall passes here and none is handed a ledger.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The kinds of hypercalls that the ledger tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Hypercall {
    /// `XENMEM_populate_physmap`.
    PopulatePhysmap,
    /// `XENMEM_decrease_reservation`.
    DecreaseReservation,
    /// Any other `memory_op`.
    MemoryOther,
    /// `mmu_update`.
    MmuUpdate,
    /// `mmuext_op` and `update_va_mapping`.
    MmuOther,
    /// `hvm_op` and `dm_op`.
    Hvm,
    /// `event_channel_op`.
    EventChannel,
    /// `sched_op`.
    Sched,
    /// All others.
    Other,
}

const NR_KINDS: usize = Hypercall::Other as usize + 1;

/// How often each kind was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts([u64; NR_KINDS]);

impl Counts {
    /// Returns the calls of one kind.
    pub fn of(&self, kind: Hypercall) -> u64 {
        self.0.get(kind as usize).copied().unwrap_or(0)
    }

    /// Returns the calls that came after `before` was taken.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let Self(mut counts) = *self;
        for (count, earlier) in counts.iter_mut().zip(before.0) {
            *count = count.wrapping_sub(earlier);
        }
        Self(counts)
    }
}

static COUNTS: [AtomicU64; NR_KINDS] = [const { AtomicU64::new(0) }; NR_KINDS];

/// Counts one hypercall.
pub(crate) fn count(kind: Hypercall) {
    if let Some(counter) = COUNTS.get(kind as usize) {
        counter.fetch_add(1, Relaxed);
    }
}

/// Returns the calls of each kind since start.
pub fn counts() -> Counts {
    Counts(core::array::from_fn(|kind| COUNTS.get(kind).map_or(0, |counter| counter.load(Relaxed))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_kind_from_any_moment() {
        let before = counts();
        count(Hypercall::Sched);
        count(Hypercall::Sched);
        count(Hypercall::Other);
        let since = counts().since(&before);
        assert_eq!(
            [since.of(Hypercall::Sched), since.of(Hypercall::Hvm), since.of(Hypercall::Other)],
            [2, 0, 1]
        );
    }
}
