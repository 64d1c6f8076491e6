//! `vcpu_op` (`xen/include/public/vcpu.h`).
#![allow(unsafe_code, reason = "a hypercall without memory effects")]

use super::raw::call;
use crate::abi::*;
use crate::errno::Errno;
use crate::ledger::Hypercall;

/// Stops the 100 Hz timer that Xen starts for every PV vCPU: an idle domain must not wake.
pub fn stop_periodic_timer() -> Result<(), Errno> {
    // SAFETY: vCPU 0, which is ours; the operation takes no pointer.
    unsafe { call(Hypercall::Other, __HYPERVISOR_vcpu_op, [VCPUOP_stop_periodic_timer, 0, 0, 0, 0]) }
        .map(drop)
}
