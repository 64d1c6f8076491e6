//! `hvm_op` on a target (`xen/include/public/hvm/hvm_op.h`, parameters in `hvm/params.h`).
#![allow(unsafe_code, reason = "hypercalls; their arguments live on the stack")]

use super::raw::{address_mut, call};
use crate::abi::*;
use crate::errno::Errno;
use crate::ledger::Hypercall;
use crate::target::Target;
use crate::types::Gfn;

/// Sets parameter `index` (`HVM_PARAM_*`) of the target.
pub fn set_param(target: Target, index: u32, value: u64) -> Result<(), Errno> {
    op(HVMOP_set_param, &mut HvmParam { domid: target.domid().raw(), pad: 0, index, value })
}

/// Returns parameter `index` (`HVM_PARAM_*`) of the target.
pub fn get_param(target: Target, index: u32) -> Result<u64, Errno> {
    let mut arg = HvmParam { domid: target.domid().raw(), pad: 0, index, value: 0 };
    op(HVMOP_get_param, &mut arg)?;
    Ok(arg.value)
}

/// Returns the `HVMMEM_*` type of `gfn` of the target. A hole and a broken page read as `HVMMEM_mmio_dm`.
pub fn get_mem_type(target: Target, gfn: Gfn) -> Result<u16, Errno> {
    let mut arg = HvmGetMemType { domid: target.domid().raw(), mem_type: 0, pad: [0; 2], pfn: gfn.raw() };
    op(HVMOP_get_mem_type, &mut arg)?;
    Ok(arg.mem_type)
}

fn op<T>(cmd: u64, arg: &mut T) -> Result<(), Errno> {
    let args = [cmd, address_mut(arg), 0, 0, 0];
    // SAFETY: every caller passes the structure that `cmd` takes, all of it integers; only the target changes.
    unsafe { call(Hypercall::Hvm, __HYPERVISOR_hvm_op, args) }.map(drop)
}
