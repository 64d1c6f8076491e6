//! The one instruction behind every hypercall.
#![allow(unsafe_code, reason = "the hypercall instruction itself")]

use core::arch::asm;
use core::ffi::c_void;

use crate::ledger::{self, Hypercall};
use xen_abi::errno::Errno;

/// Makes hypercall `nr` with up to five arguments, unused ones 0.
///
/// # Safety
/// 1. The caller runs in the kernel of a 64-bit PV guest.
/// 2. Every argument that `nr` takes as a pointer points to memory that Xen may read and write as `nr` says until the
///    call returns.
/// 3. What `nr` changes in the caller's own address space, memory or control flow keeps every Rust value valid.
pub(super) unsafe fn call(kind: Hypercall, nr: u64, args: [u64; 5]) -> Result<u64, Errno> {
    ledger::count(kind);
    let [a1, a2, a3, a4, a5] = args;
    let rax: i64;
    // SAFETY: rcx and r11 are the registers that `syscall` clobbers, declared so; Xen preserves all others and does
    // not touch the stack of a direct hypercall; memory effects are the caller's obligations 2 and 3.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr => rax,
            inlateout("rdi") a1 => _,
            inlateout("rsi") a2 => _,
            inlateout("rdx") a3 => _,
            inlateout("r10") a4 => _,
            inlateout("r8") a5 => _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    Errno::check(rax)
}

/// The address of an argument structure, for Xen.
pub(super) fn address<T>(arg: &T) -> u64 {
    core::ptr::from_ref(arg).cast::<c_void>() as u64
}

/// The address of an argument structure that Xen writes to.
pub(super) fn address_mut<T>(arg: &mut T) -> u64 {
    core::ptr::from_mut(arg).cast::<c_void>() as u64
}
