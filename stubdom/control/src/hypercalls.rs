//! How often a stub made each kind of hypercall, as its reports say it.

use serde::{Deserialize, Serialize};

/// Hypercalls by kind. The fields are the wire format: another field is another [`crate::VERSION`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hypercalls {
    /// `XENMEM_populate_physmap`.
    pub populate_physmap: u64,
    /// `XENMEM_decrease_reservation`.
    pub decrease_reservation: u64,
    /// Any other `memory_op`.
    pub memory_op: u64,
    /// `mmu_update`.
    pub mmu_update: u64,
    /// `mmuext_op` and `update_va_mapping`.
    pub mmuext_op: u64,
    /// `hvm_op` and `dm_op`.
    pub hvm_op: u64,
    /// `event_channel_op`.
    pub event_channel_op: u64,
    /// `sched_op`.
    pub sched_op: u64,
    /// All others.
    pub other: u64,
}

impl Hypercalls {
    /// Returns each kind's name in reports, and its count.
    pub const fn by_name(&self) -> [(&'static str, u64); 9] {
        [
            ("populate_physmap", self.populate_physmap),
            ("decrease_reservation", self.decrease_reservation),
            ("memory_op", self.memory_op),
            ("mmu_update", self.mmu_update),
            ("mmuext_op", self.mmuext_op),
            ("hvm_op", self.hvm_op),
            ("event_channel_op", self.event_channel_op),
            ("sched_op", self.sched_op),
            ("other", self.other),
        ]
    }
}
