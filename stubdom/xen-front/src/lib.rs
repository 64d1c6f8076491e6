//! Xen front ends for `no_std` Rust guests: what Xen says, typed.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod ring;
pub mod shared;
pub mod types;
