//! The page that describes a vchan's two byte rings (`xen/include/public/io/libxenvchan.h`).
//!
//! "Left" is the client's writing direction, "right" the server's.

/// `VCHAN_NOTIFY_WRITE`: send an event when data was written.
pub const VCHAN_NOTIFY_WRITE: u8 = 1;
/// `VCHAN_NOTIFY_READ`: send an event when data was read.
pub const VCHAN_NOTIFY_READ: u8 = 2;

/// `struct ring_shared`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RingShared {
    /// The consumer's index.
    pub cons: u32,
    /// The producer's index.
    pub prod: u32,
}

/// `struct vchan_interface`, up to its list of grants.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct VchanInterface {
    /// The ring that the client writes.
    pub left: RingShared,
    /// The ring that the server writes.
    pub right: RingShared,
    /// log2 of the left ring's bytes.
    pub left_order: u16,
    /// log2 of the right ring's bytes.
    pub right_order: u16,
    /// The client is there.
    pub cli_live: u8,
    /// The server is there: 1, or 2 while it waits for a client.
    pub srv_live: u8,
    /// What the server wants events for.
    pub cli_notify: u8,
    /// What the client wants events for.
    pub srv_notify: u8,
    /// The left ring's pages, then the right ring's, unless a ring lies in this page.
    pub grants: [u32; 0],
}
