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
//! The crate compiles for any x86-64 target, so that its pure parts (rings, parsers) are tested on a host; hypercalls
//! work only in a PV guest's kernel. Xen's numbers and layouts are those of [`xen_abi`].
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod boot;
pub mod clock;
pub mod console;
#[cfg(feature = "doors")]
pub mod doors;
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
pub mod ring;
pub mod run_time;
pub mod shared_mem;
pub mod start_info;
pub mod target;
mod traps;
pub mod vchan;
pub mod window;
pub mod xenstore;
