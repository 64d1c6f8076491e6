//! What the migration stub domain decides: stream, session, plan, engine, and a fake Xen to test them on.
//!
//! The rooms of the data path, in the order in which data travel; none knows a room below it:
//!
//! | room | takes | gives |
//! |---|---|---|
//! | [`stream`] | bytes, cut anywhere | items |
//! | [`session`] | items | steps, in an order that is sound |
//! | [`plan`] | lists of gfns | extents to populate and to give back |
//! | [`engine`] | steps | a populated, filled target |
//! | [`xen`] | hypercall-shaped lists | counts and errors |
//!
//! [`restore`] puts them together. [`send`] is the way back: a guest to a stream. [`exchange`] is the third job: a failing
//! frame for a healthy one.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod engine;
pub mod exchange;
pub mod exchange_pv;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod plan;
pub mod restore;
#[cfg(any(test, feature = "fake"))]
pub mod sample;
pub mod send;
pub mod session;
pub mod stream;
pub mod survey;
pub mod xen;
