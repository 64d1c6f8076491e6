//! The kernel's counts of hypercalls, as reports say them.

use control::Hypercalls;
use xen_front::ledger::{Counts, Hypercall};

/// Names each count for the wire.
pub(crate) fn on_wire(counts: &Counts) -> Hypercalls {
    Hypercalls {
        populate_physmap: counts.of(Hypercall::PopulatePhysmap),
        decrease_reservation: counts.of(Hypercall::DecreaseReservation),
        memory_op: counts.of(Hypercall::MemoryOther),
        mmu_update: counts.of(Hypercall::MmuUpdate),
        mmuext_op: counts.of(Hypercall::MmuOther),
        hvm_op: counts.of(Hypercall::Hvm),
        event_channel_op: counts.of(Hypercall::EventChannel),
        sched_op: counts.of(Hypercall::Sched),
        other: counts.of(Hypercall::Other),
    }
}
