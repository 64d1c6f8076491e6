//! How an exchange can end without one.

use super::Refusal;
use crate::xen::Errno;
use core::fmt;
use xen_abi::types::{Gfn, Mfn};

/// Why a frame was not exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No gfn leads to the frame: it is free, Xen's own, or memory without a place in its guest.
    NoGfn {
        /// The frame.
        mfn: Mfn,
    },
    /// The page must stay where it is, or is another's.
    Refused(Refusal),
    /// There is no hole to put the new page in meanwhile.
    NoScratch,
    /// No memory for the new page, on the host or within the target's `max_pages`.
    NoMemory,
    /// The guest has changed what stands at the gfn since the exchange was prepared.
    Moved {
        /// The page.
        gfn: Gfn,
    },
    /// The copy differs from what it was made of: the frame gives different bytes each time it is read.
    CopyDiffers {
        /// The page.
        gfn: Gfn,
    },
    /// Xen refused a step.
    Xen {
        /// Which.
        step: Step,
        /// Its answer.
        errno: Errno,
    },
    /// The page is gone and could not be put back: **the guest must not run on**.
    Lost {
        /// The first such page.
        gfn: Gfn,
    },
}

/// A call to Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `HVMOP_get_param`.
    Param,
    /// `HVMOP_get_mem_type`.
    PageType,
    /// Reading the grant table.
    Grants,
    /// Mapping.
    Map,
    /// `XENMEM_add_to_physmap`.
    Move,
    /// `XENMEM_decrease_reservation`.
    Decrease,
}

impl Error {
    /// Tells whether the guest is as it was: it may run on, and another attempt may succeed.
    pub fn leaves_guest_intact(&self) -> bool {
        !matches!(self, Self::Lost { .. })
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotTheTargets { gfn, got } => {
                write!(f, "at {gfn} stands {got}: the frame is not this guest's")
            }
            Self::Blocked { gfn, blocker } => write!(f, "{gfn} cannot be exchanged: {blocker}"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoGfn { mfn } => write!(f, "no gfn leads to {mfn}"),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::NoScratch => f.write_str("the guest has no hole for the new page to wait in"),
            Self::NoMemory => {
                f.write_str("no memory for the new page: free some, or raise the guest's maxmem")
            }
            Self::Moved { gfn } => write!(f, "the guest has changed what is at {gfn} meanwhile: try again"),
            Self::CopyDiffers { gfn } => {
                write!(f, "{gfn} reads differently each time: its contents are not sure")
            }
            Self::Xen { step, errno } => write!(f, "{step:?} failed: {errno}"),
            Self::Lost { gfn } => write!(f, "{gfn} is lost: the guest must not run on, restore it elsewhere"),
        }
    }
}

impl core::error::Error for Error {}
