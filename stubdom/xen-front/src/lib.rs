//! Xen front ends for `no_std` Rust guests: what Xen says, typed.
#![no_std]

pub mod types;
