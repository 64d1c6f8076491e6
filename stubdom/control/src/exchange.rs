//! The conversation of one exchange: a failing frame of the target for a healthy one.
//!
//! ```text
//! stubctl                                    stub
//!   Reserve* Exchange  ------------------->  survey, refuse or prepare        the guest runs
//!   stop, pause        <-------------------  Prepared
//!   Swap               ------------------->  copy and swap                    the guest stands still
//!   cont, unpause      <-------------------  Swapped
//!   Finish             ------------------->  scrub and release                the guest runs
//!                      <-------------------  Exchanged
//! ```
//! As long as old frames are held stubctl may ask again, by `CountHeld`. In place of any answer
//! [`FromStub::NotExchanged`](crate::FromStub::NotExchanged) may come. After one to `Exchange` the exchange is over; after one to `Swap` stubctl lets the guest run and sends `Finish`. A stub that loses stubctl
//! finishes by itself. When the stub dies, stubctl starts another and has it [`Repair`]: a page alone is never gone from
//! the guest, and of a superpage a copy waits before it goes.

use crate::Hypercalls;
use serde::{Deserialize, Serialize};
use xen_abi::types::{Gfn, Mfn};

/// Most [`Reserved`] runs that one exchange takes.
pub const MAX_RESERVED: usize = 64;

/// Consecutive pages that only dom0 knows the role of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// The first.
    pub first: Gfn,
    /// How many.
    pub nr_frames: u64,
    /// What they are.
    pub role: Role,
}

/// What dom0 knows of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Xen's shared information.
    XenHeap,
    /// Video memory, or a ROM that the device model keeps mapped.
    DeviceModel,
}

/// What to exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// The frame that fails.
    pub mfn: Mfn,
    /// Where a new superpage may wait; `None`: exchange pages alone.
    pub scratch_region: Option<Gfn>,
    /// Whether to look only: the stub answers and undoes all it prepared.
    pub only_check: bool,
    /// Debugging: panic before the call to Xen of this number, counted from 0 over the whole exchange.
    pub panic_at: Option<u32>,
}

/// What the stub will exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// The page whose frame fails.
    pub gfn: Gfn,
    /// How much will be exchanged.
    pub scope: Scope,
    /// How long it took by the stub's clock, in nanoseconds; the guest ran.
    pub ns: u64,
}

/// How much is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// The page; it is in no superpage.
    Page,
    /// The whole superpage around it.
    Superpage,
    /// The page of a superpage, which is split: it was asked for so.
    SplitAsAsked,
    /// The page of a superpage, which is split: another page of it must stay where it is.
    SplitByNeighbour,
    /// The page of a superpage, which is split: there is no memory for another superpage.
    SplitForMemory,
}

impl Scope {
    /// The word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Superpage => "superpage",
            Self::SplitAsAsked => "split-as-asked",
            Self::SplitByNeighbour => "split-by-neighbour",
            Self::SplitForMemory => "split-for-memory",
        }
    }

    /// What becomes of the superpage around the page.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Page => "in no superpage",
            Self::Superpage => "its superpage stays one",
            Self::SplitAsAsked => "its superpage is split, as asked",
            Self::SplitByNeighbour => "its superpage is split: another page of it must stay where it is",
            Self::SplitForMemory => "its superpage is split: no other 2 MiB of memory to be had",
        }
    }
}

/// The swap of a superpage, whose place is empty for a while; a copy waits from before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swapping {
    /// The failing page.
    pub gfn: Gfn,
    /// Its frame before the swap.
    pub mfn: Mfn,
    /// The first page of the copy.
    pub waiting: Gfn,
}

/// What a new stub puts right when the one before died during an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// A superpage's swap that the dead stub was asked for and that did not end; the target stands still since then.
    pub swapping: Option<Swapping>,
    /// [`Exchange::scratch_region`] of that exchange.
    pub scratch_region: Option<Gfn>,
}

/// What the stub did while the guest stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swapped {
    /// How it came out.
    pub outcome: Outcome,
    /// How long it took by the stub's clock, in nanoseconds.
    pub ns: u64,
    /// Hypercalls by kind.
    pub nr_hypercalls: Hypercalls,
}

/// How an exchange came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The page has a new frame.
    Page,
    /// The superpage has new frames and is one still.
    Superpage,
    /// All pages of the superpage have new frames, mapped one by one: no 2 MiB of memory were free.
    SplitSuperpage,
}

impl Outcome {
    /// The word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Superpage => "superpage",
            Self::SplitSuperpage => "split superpage",
        }
    }
}

/// What the exchange came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchanged {
    /// The page.
    pub gfn: Gfn,
    /// Its old frame.
    pub old: Mfn,
    /// Its new frame.
    pub new: Mfn,
    /// How many old frames the target still owned when the stub had let go of them.
    pub nr_held: u64,
    /// How long scrubbing and letting go took by the stub's clock, in nanoseconds; the guest ran.
    pub ns: u64,
}

/// Why a frame was not exchanged: the name that scripts go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// No gfn leads to the frame.
    NoGfn,
    /// The frame is not the target's.
    NotTheTargets,
    /// The xenstore ring.
    Store,
    /// The console ring.
    Console,
    /// A page shared with the device model.
    Ioreq,
    /// The ring of a monitor, pager or sharer.
    Ring,
    /// The identity page table of real mode.
    IdentPt,
    /// The task state of real mode.
    VmTss,
    /// Xen's shared information or grant table.
    XenHeap,
    /// Video memory or ROM that the device model keeps mapped.
    DeviceModel,
    /// It is granted to a back end.
    Granted,
    /// It has the look of a page that Xen itself writes to (registered `vcpu_info`, event channel arrays).
    LooksPinned,
    /// It is the guest's, and yet there is no memory at its place in the guest: it is broken already.
    Broken,
    /// The guest has no hole for the new page to wait in.
    NoScratch,
    /// No memory on the host or under the guest's `max_pages`.
    NoMemory,
    /// The guest changed the page meanwhile.
    Moved,
    /// The frame reads differently each time.
    CopyDiffers,
    /// Xen refused a step.
    Xen,
    /// The page is lost: the guest must not run on.
    Lost,
}

impl Reason {
    /// The name in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoGfn => "no-gfn",
            Self::NotTheTargets => "not-the-guests",
            Self::Store => "xenstore-ring",
            Self::Console => "console-ring",
            Self::Ioreq => "ioreq",
            Self::Ring => "monitor-ring",
            Self::IdentPt => "identity-page-table",
            Self::VmTss => "real-mode-tss",
            Self::XenHeap => "shared-info",
            Self::DeviceModel => "device-model",
            Self::Granted => "granted",
            Self::LooksPinned => "looks-pinned",
            Self::Broken => "broken",
            Self::NoScratch => "no-scratch",
            Self::NoMemory => "no-memory",
            Self::Moved => "moved",
            Self::CopyDiffers => "copy-differs",
            Self::Xen => "xen",
            Self::Lost => "lost",
        }
    }
}
