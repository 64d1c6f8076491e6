//! `mmu_update`, `mmuext_op`, `update_va_mapping`: page tables (`xen/include/public/xen.h`).
#![allow(unsafe_code, reason = "hypercalls that change our own page tables")]

use super::raw::{address, address_mut, call};
use crate::ledger::Hypercall;
use xen_abi::abi::*;
use xen_abi::errno::Errno;
use xen_abi::pte::Pte;
use xen_abi::types::Domid;

/// Writes page table entries in one batch; `foreign` owns the frames that the new entries name.
///
/// Returns how many entries, from the first, Xen has written, and why it stopped if that is not all.
///
/// # Safety
/// No entry may unmap, remap or write-enable memory that a Rust value lives in, in a way that this value does not
/// expect.
pub unsafe fn mmu_update(updates: &[MmuUpdate], foreign: Domid) -> (usize, Result<(), Errno>) {
    let mut done = 0u32;
    let args =
        [updates.as_ptr() as u64, updates.len() as u64, address_mut(&mut done), foreign.raw().into(), 0];
    // SAFETY: Xen reads `updates` and writes `done`, both alive; the entries are the caller's obligation.
    let result = unsafe { call(Hypercall::MmuUpdate, __HYPERVISOR_mmu_update, args) };
    (done as usize, result.map(drop))
}

/// Tells whether `domid` names another, living domain: Xen refuses the caller's own domid as a foreign one
/// (`get_pg_owner`).
pub fn is_foreign(domid: Domid) -> Result<(), Errno> {
    // SAFETY: no entry changes.
    unsafe { mmu_update(&[], domid) }.1
}

/// Writes the entry that maps virtual address `va` and drops `va` from the TLB.
///
/// # Safety
/// As for [`mmu_update`].
pub unsafe fn update_va_mapping(va: usize, pte: Pte) -> Result<(), Errno> {
    let args = [va as u64, pte.raw(), UVMF_INVLPG, 0, 0];
    // SAFETY: no argument is a pointer for Xen to follow; the entry is the caller's obligation.
    unsafe { call(Hypercall::MmuOther, __HYPERVISOR_update_va_mapping, args) }.map(drop)
}

/// Flushes this vCPU's TLB (`MMUEXT_TLB_FLUSH_LOCAL`).
pub fn tlb_flush_local() -> Result<(), Errno> {
    let op = MmuextOp { cmd: MMUEXT_TLB_FLUSH_LOCAL, ..MmuextOp::default() };
    let args = [address(&op), 1, 0, DOMID_SELF.into(), 0];
    // SAFETY: Xen reads `op`, alive for the call; a flush changes no mapping.
    unsafe { call(Hypercall::MmuOther, __HYPERVISOR_mmuext_op, args) }.map(drop)
}
