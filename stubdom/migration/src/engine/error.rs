//! What ends a restore besides the stream itself.

use crate::plan;
use crate::stream::BlobKind;
use crate::xen::Errno;
use core::fmt;
use xen_abi::types::{Gfn, Gref, Order};

/// Why the target cannot be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// What the stream asks for cannot be planned.
    Plan(plan::Error),
    /// Xen has no memory left for single pages.
    NoMemory {
        /// The first page that it has none for.
        gfn: Gfn,
        /// How many pages of the batch it has none for.
        nr_missing: usize,
    },
    /// Xen does not take an extent back.
    GiveBack {
        /// The extent.
        gfn: Gfn,
        /// Its order.
        order: Order,
    },
    /// A populated frame cannot be mapped.
    Map {
        /// The page.
        gfn: Gfn,
        /// Xen's answer.
        errno: Errno,
    },
    /// An HVM parameter is refused.
    Param {
        /// `HVM_PARAM_*`.
        index: u32,
        /// Xen's answer.
        errno: Errno,
    },
    /// An entry of the target's grant table cannot be written.
    Grant {
        /// The entry.
        gref: Gref,
        /// Xen's answer.
        errno: Errno,
    },
    /// Xen does not say how many pages the target owns.
    Reservation(Errno),
    /// Bytes cannot be handed on to dom0.
    Blob {
        /// Of which blob.
        kind: BlobKind,
        /// Why.
        errno: Errno,
    },
    /// Dom0 could not apply the CPU policies.
    StaticData(Errno),
    /// Dom0 could not set the TSC information.
    TscInfo(Errno),
    /// Dom0 could not set the HVM context.
    Context(Errno),
}

impl From<plan::Error> for Error {
    fn from(error: plan::Error) -> Self {
        Self::Plan(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Plan(error) => error.fmt(f),
            Self::NoMemory { gfn, nr_missing } => {
                write!(f, "Xen has no memory for {nr_missing} pages from {gfn} on: free some on this host")
            }
            Self::GiveBack { gfn, order } => {
                write!(f, "Xen does not take back {gfn}, an extent of order {}", order.raw())
            }
            Self::Map { gfn, errno } => write!(f, "cannot map {gfn}: {errno}"),
            Self::Param { index, errno } => write!(f, "cannot set HVM parameter {index}: {errno}"),
            Self::Grant { gref, errno } => write!(f, "cannot write grant {}: {errno}", gref.raw()),
            Self::Reservation(errno) => write!(f, "Xen does not say how many pages the guest owns: {errno}"),
            Self::Blob { kind, errno } => write!(f, "cannot hand {kind:?} on to dom0: {errno}"),
            Self::StaticData(errno) => write!(f, "dom0 could not apply the CPU policies: {errno}"),
            Self::TscInfo(errno) => write!(f, "dom0 could not set the TSC information: {errno}"),
            Self::Context(errno) => write!(f, "dom0 could not set the HVM context: {errno}"),
        }
    }
}

impl core::error::Error for Error {}
