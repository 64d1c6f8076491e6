//! How an exchange of a PV guest's frame can end without one.

use super::survey::MAX_ENTRIES;
use crate::xen::Errno;
use core::fmt;
use xen_abi::types::{Gref, Mfn, Pfn};

/// Why a frame was not exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It must stay where it is.
    Refused {
        /// The frame.
        mfn: Mfn,
        /// Why.
        refusal: Refusal,
    },
    /// The guest's p2m cannot be followed: it has none yet, or it is broken from here on.
    NoP2m {
        /// The first pfn whose entry is out of reach.
        pfn: Pfn,
    },
    /// The guest says that its p2m has more entries than a guest of its size can need.
    HugeP2m {
        /// What it says.
        max_pfn: u64,
        /// The most that is believed.
        limit: u64,
    },
    /// Nothing in the guest's tables refers to the frame any more, and still somebody holds it: Xen for the guest (a
    /// registered `vcpu_info`, an event channel page, a descriptor table), or a backend.
    Held {
        /// The frame.
        mfn: Mfn,
    },
    /// No memory for the new frame on the host.
    NoMemory,
    /// Xen refused a step, and everything before it was undone.
    Xen {
        /// Which.
        step: Step,
        /// Its answer.
        errno: Errno,
    },
    /// A step failed and could not be undone: **the guest must not run on**.
    Lost {
        /// The frame that was to go.
        mfn: Mfn,
        /// Which step.
        step: Step,
        /// Xen's answer.
        errno: Errno,
    },
}

/// Why a frame must stay where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The guest's p2m does not name it: it is not ordinary memory of this guest.
    NoPfn,
    /// It has a role outside of the guest's page tables.
    Reserved(Role),
    /// The grant table names it: another domain may use it at any time.
    Granted(Gref),
    /// Xen says that it is not the guest's, or broken.
    Foreign,
    /// More than [`MAX_ENTRIES`] entries of page tables map it.
    MappedTooOften,
}

/// What a frame is for, to someone who is not told when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Start information, which the suspended guest's vCPU 0 names to the toolstack.
    StartInfo,
    /// Xen's shared information.
    SharedInfo,
    /// The xenstore ring.
    Store,
    /// The console ring.
    Console,
    /// Part of the p2m, or of the tree that leads the toolstack there.
    P2m,
    /// A descriptor table that a vCPU has loaded.
    DescriptorTable,
    /// The page table that a vCPU has loaded.
    Root,
}

/// A call to Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reading frames.
    Read,
    /// `XEN_DOMCTL_getpageframeinfo3`.
    PageTypes,
    /// `MMUEXT_UNPIN_TABLE`.
    Unpin,
    /// `mmu_update` to not present.
    Clear,
    /// `XENMEM_exchange`.
    Exchange,
    /// Writing the contents.
    Write,
    /// Writing the p2m.
    P2m,
    /// `mmu_update` to what it was, or to the new frame.
    Restore,
    /// `MMUEXT_PIN_Ln_TABLE`.
    Pin,
}

impl Error {
    /// Names the reason in a word, for scripts.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Refused { refusal: Refusal::NoPfn, .. } => "no-pfn",
            Self::Refused { refusal: Refusal::Reserved(role), .. } => role.name(),
            Self::Refused { refusal: Refusal::Granted(_), .. } => "granted",
            Self::Refused { refusal: Refusal::Foreign, .. } => "foreign",
            Self::Refused { refusal: Refusal::MappedTooOften, .. } => "mapped-too-often",
            Self::NoP2m { .. } => "no-p2m",
            Self::HugeP2m { .. } => "huge-p2m",
            Self::Held { .. } => "in-use-by-xen",
            Self::NoMemory => "no-memory",
            Self::Xen { .. } => "xen",
            Self::Lost { .. } => "lost",
        }
    }

    /// Tells whether the guest is as it was: it may run on, and another attempt may succeed.
    pub fn leaves_guest_intact(&self) -> bool {
        !matches!(self, Self::Lost { .. })
    }
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::StartInfo => "start-info",
            Self::SharedInfo => "shared-info",
            Self::Store => "xenstore-ring",
            Self::Console => "console-ring",
            Self::P2m => "p2m",
            Self::DescriptorTable => "descriptor-table",
            Self::Root => "page-table-root",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StartInfo => "the guest's start_info",
            Self::SharedInfo => "Xen's shared_info",
            Self::Store => "the xenstore ring",
            Self::Console => "the console ring",
            Self::P2m => "part of the guest's p2m",
            Self::DescriptorTable => "a descriptor table in use",
            Self::Root => "the page table root of a vCPU",
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoPfn => f.write_str("the guest's p2m does not name it"),
            Self::Reserved(role) => write!(f, "it is {role}"),
            Self::Granted(gref) => write!(f, "the guest grants it, by grant {}", gref.raw()),
            Self::MappedTooOften => write!(f, "more than {MAX_ENTRIES} entries of its page tables map it"),
            Self::Foreign => f.write_str("Xen says that it is not this guest's, or broken"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Refused { mfn, refusal } => write!(f, "{mfn} cannot be exchanged: {refusal}"),
            Self::NoP2m { pfn } => write!(f, "the guest's p2m has no entry for {pfn}"),
            Self::HugeP2m { max_pfn, limit } => {
                write!(
                    f,
                    "the guest's p2m claims {max_pfn} entries, expected {limit} at most for its size: give it back more of \
                     the memory that it was started with (xl mem-set)"
                )
            }
            Self::Held { mfn } => {
                write!(f, "{mfn} cannot be exchanged: Xen or a backend holds it for the guest")
            }
            Self::NoMemory => f.write_str("no memory for the new frame"),
            Self::Xen { step, errno } => write!(f, "{step:?} failed: {errno}; the guest is as it was"),
            Self::Lost { mfn, step, errno } => write!(
                f,
                "{mfn}: {step:?} failed ({errno}) and cannot be undone: the guest must not run on, restore it elsewhere"
            ),
        }
    }
}

impl core::error::Error for Error {}
