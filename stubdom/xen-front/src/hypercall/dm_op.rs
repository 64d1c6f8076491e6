//! `dm_op` on a target (`xen/include/public/hvm/dm_op.h`).
#![allow(unsafe_code, reason = "hypercalls; their arguments live on the stack")]

use super::raw::{address, call};
use crate::hypercall::hvm::MemType;
use crate::ledger::Hypercall;
use crate::target::Target;
use xen_abi::abi::*;
use xen_abi::errno::Errno;
use xen_abi::types::Gfn;

/// Marks `nr` frames from `first` dirty in the target's log, if one is kept.
pub fn modified_memory(target: Target, first: Gfn, nr: u32) -> Result<(), Errno> {
    let mut op = DmOpModifiedMemory { op: XEN_DMOP_modified_memory, op_pad: 0, nr_extents: 1, opaque: 0 };
    let mut extent = DmOpModifiedMemoryExtent { nr, pad: 0, first_pfn: first.raw() };
    dm_op(target, &[buf(&mut op), buf(&mut extent)])
}

/// Gives `nr` frames from `first` of the target a type. Splits superpages.
pub fn set_mem_type(target: Target, mem_type: MemType, first: Gfn, nr: u32) -> Result<(), Errno> {
    let mut op = DmOpSetMemType {
        op: XEN_DMOP_set_mem_type,
        op_pad: 0,
        nr,
        mem_type: mem_type as u16,
        pad: 0,
        first_pfn: first.raw(),
    };
    dm_op(target, &[buf(&mut op)])
}

fn buf<T>(arg: &mut T) -> DmOpBuf {
    DmOpBuf { h: core::ptr::from_mut(arg) as u64, size: size_of::<T>() as u64 }
}

fn dm_op<const N: usize>(target: Target, bufs: &[DmOpBuf; N]) -> Result<(), Errno> {
    let args = [target.domid().raw().into(), N as u64, address(bufs), 0, 0];
    // SAFETY: every caller keeps the structures behind `bufs` alive and unborrowed until this returns; they are
    // integers, whatever Xen writes back; only the target changes.
    unsafe { call(Hypercall::Hvm, __HYPERVISOR_dm_op, args) }.map(drop)
}
