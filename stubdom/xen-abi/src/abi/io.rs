//! `io/console.h`, `io/xs_wire.h`: the two rings.

pub const XENCONS_IN_BYTES: usize = 1024;
pub const XENCONS_OUT_BYTES: usize = 2048;
pub const XENSTORE_RING_SIZE: usize = 1024;
