//! `vcpu_op` (`xen/include/public/vcpu.h`).
#![allow(unsafe_code, reason = "hypercalls; one makes Xen write to memory of ours")]

use super::raw::{address, call};
use crate::ledger::Hypercall;
use xen_abi::abi::*;
use xen_abi::errno::Errno;

/// Stops the 100 Hz timer that Xen starts for every PV vCPU: an idle domain must not wake.
pub fn stop_periodic_timer() -> Result<(), Errno> {
    // SAFETY: vCPU 0, which is ours; the operation takes no pointer.
    unsafe { call(Hypercall::Other, __HYPERVISOR_vcpu_op, [VCPUOP_stop_periodic_timer, 0, 0, 0, 0]) }
        .map(drop)
}

/// Has Xen keep vCPU 0's `vcpu_runstate_info` at `area`, from now on and for ever.
///
/// # Safety
/// `area` is mapped and writable for the structure while this domain lives, and nothing of ours believes that it stays
/// as it is.
pub(crate) unsafe fn register_runstate_memory_area(area: *mut VcpuRunstateInfo) -> Result<(), Errno> {
    let arg = VcpuRegisterRunstateMemoryArea { v: area as u64 };
    let args = [VCPUOP_register_runstate_memory_area, 0, address(&arg), 0, 0];
    // SAFETY: vCPU 0, which is ours; Xen reads `arg` and writes to the area, which is the caller's obligation.
    unsafe { call(Hypercall::Other, __HYPERVISOR_vcpu_op, args) }.map(drop)
}
