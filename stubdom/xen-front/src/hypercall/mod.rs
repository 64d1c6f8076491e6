//! Hypercalls: one module a hypercall, one function a sub-operation, in Xen's spelling.
//!
//! **Takes** typed arguments. **Gives** what Xen answered. **Never** retries, never interprets: a short count is the
//! caller's to understand.
//!
//! The calls are made with `syscall` directly; the hypercall page is optional for PV guests (XSA-466 moved Linux to
//! the same). Every call is counted in the [ledger](crate::ledger). A function is `unsafe` where it can change the
//! caller's own memory or control flow; what it does to a [`Target`](crate::target::Target) is safe in Rust's sense.

pub mod dm_op;
pub mod domctl;
pub mod event_channel;
pub mod grant_table;
pub mod hvm;
pub mod memory;
pub mod mmu;
mod raw;
pub mod sched;
pub mod trap;
pub mod vcpu;
pub mod version;
