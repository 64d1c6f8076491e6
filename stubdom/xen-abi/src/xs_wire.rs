//! Xenstore's ring and its messages (`xen/include/public/io/xs_wire.h`).

use crate::abi::XENSTORE_RING_SIZE;

// Offsets of `struct xenstore_domain_interface`.
/// `req`: requests.
pub const REQ: usize = 0;
/// `rsp`: replies and watch events.
pub const RSP: usize = XENSTORE_RING_SIZE;
/// `req_cons`.
pub const REQ_CONS: usize = 2 * XENSTORE_RING_SIZE;
/// `req_prod`.
pub const REQ_PROD: usize = REQ_CONS + 4;
/// `rsp_cons`.
pub const RSP_CONS: usize = REQ_CONS + 8;
/// `rsp_prod`.
pub const RSP_PROD: usize = REQ_CONS + 12;

/// `XENSTORE_PAYLOAD_MAX`, in bytes.
pub const XENSTORE_PAYLOAD_MAX: usize = 4096;

/// The message types that are used here (`enum xsd_sockmsg_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// `XS_READ`.
    Read = 2,
    /// `XS_WATCH`.
    Watch = 4,
    /// `XS_UNWATCH`.
    Unwatch = 5,
    /// `XS_TRANSACTION_START`.
    TransactionStart = 6,
    /// `XS_TRANSACTION_END`.
    TransactionEnd = 7,
    /// `XS_WRITE`.
    Write = 11,
    /// `XS_RM`.
    Rm = 13,
    /// `XS_WATCH_EVENT`.
    WatchEvent = 15,
    /// `XS_ERROR`.
    Error = 16,
}
