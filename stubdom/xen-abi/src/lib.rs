//! Xen's public ABI as Rust types: what the hypervisor, its guests and its tools must agree on.
//!
//! **Gives** frames, domains and ports as distinct types, the structures and constants of hypercalls and of shared
//! pages, and the pure arithmetic that goes with them. **Never** makes a hypercall, touches shared memory or needs
//! `unsafe`: whoever does depends on this crate, and on nothing of each other.
//!
//! Numbers and layouts are from Xen's public headers (`xen/include/public`); constants keep their C names. One test
//! compares every one of them with the headers that are installed (`abi_test`).
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod abi;
#[cfg(test)]
mod abi_test;
pub mod byte_ring;
pub mod errno;
pub mod grant_entry;
pub mod netif;
pub mod pte;
pub mod sring;
pub mod types;
pub mod vchan;
pub mod xenbus;
pub mod xs_wire;
