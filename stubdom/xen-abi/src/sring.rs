//! Xen's standard shared ring (`xen/include/public/io/ring.h`): where its indices are, and how many slots it has.

use crate::types::PAGE_SIZE;

// Offsets of `struct NAME_sring`.
/// `req_prod`.
pub const REQ_PROD: usize = 0;
/// `req_event`.
pub const REQ_EVENT: usize = 4;
/// `rsp_prod`.
pub const RSP_PROD: usize = 8;
/// `rsp_event`.
pub const RSP_EVENT: usize = 12;
/// `ring`: the first slot.
pub const RING: usize = 64;

/// Returns the size of a slot, which holds a request or a response (`union NAME_sring_entry`).
pub const fn slot_bytes<Req, Rsp>() -> usize {
    if size_of::<Req>() > size_of::<Rsp>() { size_of::<Req>() } else { size_of::<Rsp>() }
}

/// Returns how many slots a ring of one page has (`__RING_SIZE`).
pub const fn nr_slots<Req, Rsp>() -> u32 {
    let fit = (PAGE_SIZE - RING) / slot_bytes::<Req, Rsp>();
    1 << fit.ilog2()
}
