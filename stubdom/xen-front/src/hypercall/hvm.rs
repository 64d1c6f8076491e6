//! `hvm_op` on a target (`xen/include/public/hvm/hvm_op.h`, parameters in `hvm/params.h`).
#![allow(unsafe_code, reason = "hypercalls; their arguments live on the stack")]

use super::raw::{address_mut, call};
use crate::ledger::Hypercall;
use crate::target::Target;
use xen_abi::abi::*;
use xen_abi::errno::Errno;
use xen_abi::types::Gfn;

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

/// What a page of a target is (`hvmmem_type_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum MemType {
    /// Memory.
    RamRw = HVMMEM_ram_rw,
    /// Memory that the guest cannot write, or whose writes are being logged.
    RamRo = HVMMEM_ram_ro,
    /// No memory: a hole, a device's registers, a broken page.
    MmioDm = HVMMEM_mmio_dm,
    /// Memory whose writes go to an ioreq server.
    IoreqServer = HVMMEM_ioreq_server,
}

/// Returns the type of `gfn` of the target; `EINVAL` also for a type that this version does not know.
pub fn get_mem_type(target: Target, gfn: Gfn) -> Result<MemType, Errno> {
    let mut arg = HvmGetMemType { domid: target.domid().raw(), mem_type: 0, pad: [0; 2], pfn: gfn.raw() };
    op(HVMOP_get_mem_type, &mut arg)?;
    let known = [MemType::RamRw, MemType::RamRo, MemType::MmioDm, MemType::IoreqServer];
    known.into_iter().find(|known| *known as u16 == arg.mem_type).ok_or(Errno::EINVAL)
}

fn op<T>(cmd: u64, arg: &mut T) -> Result<(), Errno> {
    let args = [cmd, address_mut(arg), 0, 0, 0];
    // SAFETY: every caller passes the structure that `cmd` takes, all of it integers; only the target changes.
    unsafe { call(Hypercall::Hvm, __HYPERVISOR_hvm_op, args) }.map(drop)
}
