//! The network front end (`xen/include/public/io/netif.h`).

pub mod abi;
mod buffers;
mod error;
mod frame;
mod link;
mod rx;
mod tx;

pub use error::NetError;
pub use rx::{Frame, RxCounters};
pub use tx::{TxCounters, TxQueue};

/// Slots, and so buffers, of the receive ring.
pub const NR_RX_SLOTS: usize = 256;

/// The most data slots of one frame: 64 KiB of payload and the headers in front of it.
pub const MAX_FRAME_PAGES: usize = 17;
