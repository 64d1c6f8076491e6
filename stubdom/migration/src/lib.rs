//! What the migration stub domain decides: stream, session, plan, engine, and a fake Xen to test them on.
#![no_std]
#![forbid(unsafe_code)]

pub mod xen;
