//! What is exchanged: decided from a survey, before anything is touched.

use crate::xen::{Errno, PageType};
use alloc::vec::Vec;
use core::fmt;
use xen_abi::abi::{
    HVM_PARAM_BUFIOREQ_PFN, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_IDENT_PT, HVM_PARAM_IOREQ_PFN,
    HVM_PARAM_IOREQ_SERVER_PFN, HVM_PARAM_MONITOR_RING_PFN, HVM_PARAM_PAGING_RING_PFN,
    HVM_PARAM_SHARING_RING_PFN, HVM_PARAM_STORE_PFN, HVM_PARAM_VM86_TSS_SIZED,
};
use xen_abi::types::{Gfn, Gref, Mfn, Order};

/// Why a page must stay where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocker {
    /// Something outside of the guest knows the frame by this role.
    Reserved(Role),
    /// It is granted to another domain by this grant, which may use it at any moment, and the old frame then.
    Granted(Gref),
    /// It cannot be mapped: it has failed (`EINVAL`), or is another domain's (`EBUSY`).
    Unmappable(Errno),
    /// It is no ordinary memory; [`PageType::None`] where a frame has failed.
    Type(PageType),
    /// It looks like a page that Xen itself has pinned and writes to; it would go on writing to the old frame.
    LooksPinned,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Reserved(role) => write!(f, "it is {role}"),
            Self::Granted(gref) => write!(f, "it is granted to another domain, by grant {}", gref.raw()),
            Self::Unmappable(Errno::EBUSY) => f.write_str("it belongs to another domain"),
            Self::Type(PageType::Ioreq) => f.write_str("its writes go to an ioreq server"),
            Self::Unmappable(Errno::EINVAL) | Self::Type(_) => {
                f.write_str("it is broken already: Xen has no memory at its place in the guest any more")
            }
            Self::Unmappable(errno) => write!(f, "it cannot be mapped: {errno}"),
            Self::LooksPinned => f.write_str(
                "the page looks like one that Xen itself writes to (vcpu_info, an event channel array or its control \
                 block)",
            ),
        }
    }
}

/// What a page is for, to someone outside of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The xenstore ring.
    Store,
    /// The console ring.
    Console,
    /// A page that the device model and Xen share.
    Ioreq,
    /// The ring of a monitor, pager or sharer.
    Ring,
    /// The page table that Xen runs the guest's real mode with.
    IdentPt,
    /// The task state that Xen runs the guest's real mode with.
    VmTss,
    /// Xen's shared information or a frame of the grant table.
    XenHeap,
    /// The video memory, or a ROM that the device model keeps mapped.
    DeviceModel,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Store => "the xenstore ring",
            Self::Console => "the console ring",
            Self::Ioreq => "shared with the device model",
            Self::Ring => "a monitor's ring",
            Self::IdentPt => "the identity page table",
            Self::VmTss => "the real-mode task state",
            Self::XenHeap => "Xen's shared information or grant table",
            Self::DeviceModel => "mapped by the device model: video memory or a ROM",
        })
    }
}

/// Consecutive gfns with a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The first gfn.
    pub first: Gfn,
    /// How many.
    pub nr_frames: u64,
    /// What they are.
    pub role: Role,
}

impl Reserved {
    /// Tells whether `gfn` is one of them.
    pub fn holds(&self, gfn: Gfn) -> bool {
        gfn.raw().checked_sub(self.first.raw()).is_some_and(|offset| offset < self.nr_frames)
    }
}

/// What is known of a frame and of the region around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The frame.
    pub mfn: Mfn,
    /// Where it should be.
    pub gfn: Gfn,
    /// The frames of the 2 MiB region around `gfn`, by offset; `None` where none can be mapped.
    pub frames: Vec<Option<Mfn>>,
    /// What blocks pages of that region.
    pub blockers: Vec<(Gfn, Blocker)>,
}

/// What is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The page alone. A superpage around it, if there is one, is split.
    Page,
    /// The whole superpage around it, which stays one.
    Superpage,
}

/// Why a page of a superpage is exchanged alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alone {
    /// It was asked for so.
    Asked,
    /// Another page of the superpage must stay where it is.
    Neighbour,
    /// There is no memory for another superpage: on the host, under the guest's `max_pages`, or no hole to put it in.
    NoMemory,
}

/// Why there is nothing to exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another frame stands where this one should be: it is not the target's.
    NotTheTargets {
        /// Where it should be.
        gfn: Gfn,
        /// What is there.
        got: Mfn,
    },
    /// The page must stay where it is.
    Blocked {
        /// The page.
        gfn: Gfn,
        /// Why.
        blocker: Blocker,
    },
}

impl Survey {
    /// Decides what is exchanged: the superpage if there is one and none of its pages is blocked, else the page.
    ///
    /// # Errors
    /// The page itself is blocked or not the target's.
    pub fn plan(&self) -> Result<Plan, Refusal> {
        let gfn = self.gfn;
        let frame = self.frames.get(gfn.offset_in(Order::PAGE_2M)).copied().flatten();
        // Whose the frame is goes before what the page is for: of another's frame the latter says nothing.
        if let Some(got) = frame.filter(|got| *got != self.mfn) {
            return Err(Refusal::NotTheTargets { gfn, got });
        }
        if let Some(&(gfn, blocker)) = self.blockers.iter().find(|(blocked, _)| *blocked == gfn) {
            return Err(Refusal::Blocked { gfn, blocker });
        }
        match frame {
            None => Err(Refusal::Blocked { gfn, blocker: Blocker::Unmappable(Errno::EINVAL) }),
            Some(_) if self.is_superpage() && self.blockers.is_empty() => Ok(Plan::Superpage),
            Some(_) => Ok(Plan::Page),
        }
    }

    /// Tells whether the region is one aligned run of machine memory.
    pub fn is_superpage(&self) -> bool {
        is_run(self.frames.iter().copied())
    }
}

/// Tells whether these frames are a whole, aligned 2 MiB of machine memory.
pub(super) fn is_run(frames: impl Iterator<Item = Option<Mfn>>) -> bool {
    let mut first = None;
    let mut nr_frames = 0;
    for mfn in frames {
        let Some(mfn) = mfn else { return false };
        let first = *first.get_or_insert(mfn);
        if first.checked_add(nr_frames) != Some(mfn) || !first.is_aligned(Order::PAGE_2M) {
            return false;
        }
        nr_frames += 1;
    }
    nr_frames == Order::PAGE_2M.nr_frames()
}

/// The parameters that name pages, and how to read them.
pub(super) const PARAMS: [(u32, Role, Unit); 10] = [
    (HVM_PARAM_STORE_PFN, Role::Store, Unit::Frame),
    (HVM_PARAM_IOREQ_PFN, Role::Ioreq, Unit::Frame),
    (HVM_PARAM_BUFIOREQ_PFN, Role::Ioreq, Unit::Frame),
    (HVM_PARAM_IDENT_PT, Role::IdentPt, Unit::Byte),
    (HVM_PARAM_CONSOLE_PFN, Role::Console, Unit::Frame),
    (HVM_PARAM_PAGING_RING_PFN, Role::Ring, Unit::Frame),
    (HVM_PARAM_MONITOR_RING_PFN, Role::Ring, Unit::Frame),
    (HVM_PARAM_SHARING_RING_PFN, Role::Ring, Unit::Frame),
    (HVM_PARAM_IOREQ_SERVER_PFN, Role::Ioreq, Unit::Servers),
    (HVM_PARAM_VM86_TSS_SIZED, Role::VmTss, Unit::SizedByte),
];

/// Most pages that legacy ioreq servers use from HVM_PARAM_IOREQ_SERVER_PFN on (libxc reserves 8).
const NR_IOREQ_SERVER_PAGES: u64 = 8;

/// What the value of a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// A gfn.
    Frame,
    /// The first gfn of the ioreq servers' pages.
    Servers,
    /// A guest-physical address.
    Byte,
    /// A guest-physical address in the low, a size in bytes in the high 32 bits.
    SizedByte,
}

/// Says which pages the value of a parameter reserves; 0 reserves none.
pub(super) fn reserved_by(role: Role, unit: Unit, value: u64) -> Option<Reserved> {
    let (first, nr_frames) = match unit {
        _ if value == 0 => return None,
        Unit::Frame => (value, 1),
        Unit::Servers => (value, NR_IOREQ_SERVER_PAGES),
        Unit::Byte => (value >> 12, 1),
        Unit::SizedByte => {
            let (start, size) = (value & 0xffff_ffff, value >> 32);
            (start >> 12, (start + size).div_ceil(4096).max((start >> 12) + 1) - (start >> 12))
        }
    };
    Some(Reserved { first: Gfn::new(first), nr_frames, role })
}
