//! The messages of a send: the stub writes its target's stream into the ring at [`PATH`], and asks dom0 for what only dom0
//! knows or may do.
//!
//! Each [`Ask`] has one [`ToStub`](crate::ToStub) message for an answer. What is longer than a message follows on the ring's
//! other direction: a bitmap as blocks ([`BLOCK_BYTES`] of bitmap behind a [`BLOCK_HEAD_BYTES`] number, blocks of zeroes left
//! out), a blob as it is.

use crate::{BlobKind, TOKEN_BYTES};
use serde::{Deserialize, Serialize};
use xen_abi::types::Gfn;

/// The xenstore directory of the send's own vchan, below the stub's home.
pub const PATH: &str = "data/send";

/// Bytes of a bitmap in one block.
pub const BLOCK_BYTES: usize = 4096;

/// Bytes of a block's number, a `u32` in little-endian order.
pub const BLOCK_HEAD_BYTES: usize = 4;

/// Gfns of a block.
pub const BLOCK_FRAMES: u64 = BLOCK_BYTES as u64 * 8;

/// What the stub needs to know to send its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Send {
    /// Comes first on the ring; used once.
    pub token: [u8; TOKEN_BYTES],
    /// Xen's major and minor version.
    pub xen_version: (u32, u32),
    /// The limits of a live send; `None`: the target is suspended first.
    pub live: Option<Limits>,
    /// Whether all pages come once more, for the receiver to compare.
    pub verify: bool,
}

/// When a live send suspends its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most passes while the target runs.
    pub max_passes: u32,
    /// The target is suspended once the rest would take no longer than this.
    pub downtime_ms: u64,
    /// Most bytes a second while the target runs.
    pub most_bytes_a_second: Option<u64>,
    /// What happens to a target that still runs after so many seconds.
    pub timeout: Option<Timeout>,
}

/// The end of the operator's patience, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Timeout {
    /// The target is suspended, however much is left.
    FinishAfter(u64),
    /// The send ends, and the target runs on.
    AbortAfter(u64),
}

/// What the stub asks dom0 for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Which gfns have memory; answered by `Bitmap`.
    Present,
    /// To log writes from now on; answered by `Answer`.
    StartLog,
    /// How many pages the log has; answered by `Count`.
    CountDirty,
    /// The log, which is empty then; answered by `Bitmap`.
    Dirty,
    /// To have the target suspended; answered by `Answer`.
    Suspend,
    /// A piece of state; answered by `Blob`.
    Fetch(BlobKind),
    /// The TSC information; answered by `TscInfo`.
    TscInfo,
}

/// How a bitmap follows on the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bitmap {
    /// One past the highest gfn of the target.
    pub end: Gfn,
    /// How many blocks follow.
    pub nr_blocks: u32,
}

/// What a send came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Bytes of the stream.
    pub nr_bytes: u64,
    /// Pages with contents, repeats counted.
    pub nr_pages: u64,
    /// Of them, those that were mapped from a pass before.
    pub nr_kept: u64,
    /// Passes over memory.
    pub nr_passes: u32,
    /// Pages with contents after the target was suspended.
    pub nr_last: u64,
}
