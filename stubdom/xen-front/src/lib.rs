//! Xen front ends for `no_std` Rust guests: what Xen says, typed.
#![no_std]

#[cfg(test)]
extern crate std;

#[cfg(test)]
mod abi_test;

#[allow(dead_code, reason = "the queues around the frame assembly follow")]
pub mod net;
pub mod ring;
pub mod shared_mem;
pub mod types;
#[allow(dead_code, reason = "the server around the channel follows")]
pub mod vchan;
