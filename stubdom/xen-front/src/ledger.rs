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

impl Hypercall {
    /// Every kind, in the order of [`counts`].
    pub const ALL: [Self; NR_KINDS] = [
        Self::PopulatePhysmap,
        Self::DecreaseReservation,
        Self::MemoryOther,
        Self::MmuUpdate,
        Self::MmuOther,
        Self::Hvm,
        Self::EventChannel,
        Self::Sched,
        Self::Other,
    ];

    /// The name in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PopulatePhysmap => "populate_physmap",
            Self::DecreaseReservation => "decrease_reservation",
            Self::MemoryOther => "memory_op",
            Self::MmuUpdate => "mmu_update",
            Self::MmuOther => "mmuext_op",
            Self::Hvm => "hvm_op",
            Self::EventChannel => "event_channel_op",
            Self::Sched => "sched_op",
            Self::Other => "other",
        }
    }
}

/// How many kinds there are.
pub const NR_KINDS: usize = Hypercall::Other as usize + 1;

static COUNTS: [AtomicU64; NR_KINDS] = [const { AtomicU64::new(0) }; NR_KINDS];

/// Counts one hypercall.
pub(crate) fn count(kind: Hypercall) {
    if let Some(counter) = COUNTS.get(kind as usize) {
        counter.fetch_add(1, Relaxed);
    }
}

/// Returns the calls of each kind since start, in the order of [`Hypercall`].
pub fn counts() -> [u64; NR_KINDS] {
    core::array::from_fn(|kind| COUNTS.get(kind).map_or(0, |counter| counter.load(Relaxed)))
}
