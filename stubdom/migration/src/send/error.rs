//! What ends a send.

use crate::xen::{BlobKind, Errno};
use core::fmt;
use xen_abi::types::Gfn;

/// Why the target cannot be sent. It is whole, and the source's, whatever is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No memory for a bit a gfn.
    TooLarge {
        /// One past the highest gfn.
        end: Gfn,
    },
    /// Dom0 does not say which pages there are.
    Present(Errno),
    /// Writes are not logged.
    StartLog(Errno),
    /// The log cannot be read.
    Log(Errno),
    /// The guest does not suspend.
    Suspend(Errno),
    /// Dom0 does not give a piece of state.
    Fetch {
        /// Which.
        kind: BlobKind,
        /// Dom0's answer.
        errno: Errno,
    },
    /// Dom0 does not give the TSC information.
    TscInfo(Errno),
    /// An HVM parameter cannot be read.
    Param {
        /// `HVM_PARAM_*`.
        index: u32,
        /// Xen's answer.
        errno: Errno,
    },
    /// Xen does not say which of the target's pages are its own.
    Special(Errno),
    /// A page cannot be mapped, and is no hole.
    Map {
        /// The page.
        gfn: Gfn,
        /// Xen's answer.
        errno: Errno,
    },
    /// The time that the operator allows is over.
    Timeout {
        /// It, in seconds.
        seconds: u64,
        /// Pages that were still to be sent.
        nr_dirty: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooLarge { end } => {
                write!(f, "no memory for a bit for each page below {end}: give the stub more")
            }
            Self::Present(errno) => write!(f, "dom0 does not say which pages the guest has: {errno}"),
            Self::StartLog(errno) => write!(f, "the guest's writes cannot be logged: {errno}"),
            Self::Log(errno) => write!(f, "the log of the guest's writes cannot be read: {errno}"),
            Self::Suspend(errno) => write!(f, "the guest did not suspend: {errno}"),
            Self::Fetch { kind, errno } => write!(f, "dom0 does not give {kind:?}: {errno}"),
            Self::TscInfo(errno) => write!(f, "dom0 does not give the TSC information: {errno}"),
            Self::Param { index, errno } => write!(f, "cannot read HVM parameter {index}: {errno}"),
            Self::Special(errno) => {
                write!(f, "Xen does not say which pages of the guest are its own: {errno}")
            }
            Self::Map { gfn, errno } => write!(f, "cannot map {gfn}: {errno}"),
            Self::Timeout { seconds, nr_dirty } => {
                write!(f, "expected the guest to be sent within {seconds} s, {nr_dirty} pages are left")
            }
        }
    }
}

impl core::error::Error for Error {}
