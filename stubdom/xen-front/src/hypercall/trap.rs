//! `set_trap_table` (`xen/include/public/arch-x86/xen.h`).
#![allow(unsafe_code, reason = "a hypercall that says where exceptions go")]

use super::raw::{address, call};
use crate::ledger::Hypercall;
use xen_abi::abi::*;
use xen_abi::errno::Errno;

/// Sets the exception handlers; the table ends with an entry whose address is 0.
///
/// # Safety
/// Every address is a handler that takes the frame Xen pushes for its vector and does not return to code that it has
/// broken.
pub unsafe fn set_trap_table<const N: usize>(table: &[TrapInfo; N]) -> Result<(), Errno> {
    // SAFETY: Xen reads the table, alive for the call; the handlers are the caller's obligation.
    unsafe { call(Hypercall::Other, __HYPERVISOR_set_trap_table, [address(table), 0, 0, 0, 0]) }.map(drop)
}
