//! Xen front ends for `no_std` Rust guests: what Xen says, typed.
//!
//! **Takes** the start information of a 64-bit PV domain. **Gives** its memory, hypercalls, event channels, grants,
//! console, xenstore and clock as Rust values. **Never** takes an upcall: one vCPU, event upcalls masked for life,
//! waiting is [`hypercall::sched::poll`].
//!
//! A guest is one macro and one function:
//!
//! ```text
//! #![no_std]
//! #![no_main]
//! xen_front::entry!(include_str!("start.S"), run);
//!
//! fn run(domain: xen_front::boot::Domain) -> ! { /* … */ }
//! ```
//!
//! The crate compiles for any x86-64 target, so that its types and its pure parts (rings, page table entries, parsers)
//! serve tools and tests on a host as well; hypercalls work only in a PV guest's kernel.
//!
//! Numbers and layouts are from Xen's public headers (`xen/include/public`); constants keep their C names.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod abi;
#[cfg(test)]
mod abi_test;
pub mod boot;
pub mod byte_ring;
pub mod clock;
pub mod console;
pub mod errno;
pub mod events;
pub mod grants;
pub mod heap;
pub mod hypercall;
pub mod ledger;
pub mod m2p;
mod mem;
pub mod memory;
pub mod net;
pub mod panic;
pub mod pte;
pub mod ring;
pub mod run_time;
pub mod shared_mem;
pub mod start_info;
pub mod target;
mod traps;
pub mod types;
pub mod vchan;
pub mod window;
pub mod xenbus;
pub mod xenstore;
