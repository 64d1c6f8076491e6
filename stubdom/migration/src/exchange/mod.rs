//! Exchange of a page of a running HVM guest for a healthy one.
//!
//! **Takes** the machine frame that fails. **Gives** the same guest on another frame. **Never** touches the guest before
//! it is known that nobody else uses the frame and that memory for the new one is there; **never** leaves a hole.
//!
//! Three phases; only the second needs the guest to stand still:
//! 1. [`Exchange::prepare`]: find the gfn, survey, refuse by name, decide ([`Plan`]), populate the new memory at a hole
//!    of the guest, map the old.
//! 2. [`Exchange::swap`]: look again, copy, compare, swap, confirm.
//! 3. [`Exchange::finish`]: scrub and release the old frame, or give the new memory back after a refusal.
//!
//! Xen does not scrub what a living domain frees, nor what it hands out. So every frame that leaves the guest is filled with
//! zeroes through its mapping before that ends, and what waits is filled before the guest could read it. All of that is
//! done while the guest runs.
//!
//! A page alone is swapped by moving the new page over the old gfn: one call that either does it or does nothing. A
//! superpage has to be taken away and populated anew at its place, or its entry would never be one again; so a second
//! 2 MiB waits at the hole as insurance, a copy from which the guest gets its pages back one by one when Xen has no further
//! 2 MiB (the superpage is split then, nothing is lost), or when the stub dies at that moment ([`repair`]). That needs room for 1024 pages under `max_pages`, a single page
//! needs one; without the room the page alone is exchanged.
//!
//! The mapping of the old frames is kept from the first phase to the last: it keeps them alive after they have left the
//! guest, for copying, repair and scrubbing, and its end is what retires a frame that was marked offline before.
//!
//! No hypercall shows the pages that Xen itself has pinned (a registered `vcpu_info`, the FIFO event channels). The survey
//! knows them by their look ([`pinned`]); one that it missed shows afterwards: [`Report::held`].

mod error;
pub mod grants;
mod page;
mod pinned;
mod plan;
mod release;
mod repair;
mod superpage;
mod survey;

use crate::xen::{Access, EXCHANGE_FRAMES, Errno, PageType, XenExchange};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use xen_abi::types::{Gfn, Mfn, Order};

pub use error::{Error, Step};
pub use plan::{Alone, Blocker, Plan, Refusal, Reserved, Role, Survey};
pub use repair::{Swapping, repair};
use survey::grant_blocker;

/// Pages of a region.
const REGION_LEN: usize = 1 << 9;

/// How often a step is tried that would leave the guest with a hole.
const ATTEMPTS: u32 = 3;

/// Where in the window the old frames are; a page alone is at its offset in the region.
const OLD: usize = 0;

/// Where in the window the new frame of a page alone is, while it waits.
const WAITING: usize = 1;

/// Where in the window the copy of a superpage is, while it waits.
const COPY: usize = REGION_LEN;

/// Where in the window new frames are, and where the guest's are looked at.
const NEW: usize = 2 * REGION_LEN;

const _: () = assert!(NEW + REGION_LEN <= EXCHANGE_FRAMES);

/// Gfns where no guest has memory or devices: between the local APIC's page and libxc's special pages (hvmloader takes
/// a few from the top).
pub const SCRATCH_PAGES: Range<Gfn> = Gfn::new(0xfef00)..Gfn::new(0xfefe0);

/// What to exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The frame that fails.
    pub mfn: Mfn,
    /// Pages that only dom0 knows the role of; those that HVM parameters name are found here.
    pub reserved: &'a [Reserved],
    /// Where a new superpage may wait: 512 gfns from here on, aligned, that are a hole and that the guest does not use
    /// for anything; just past its highest gfn is a good place. `None` exchanges pages alone.
    pub scratch_region: Option<Gfn>,
    /// Xen's system time in nanoseconds, by which a page that Xen keeps the time in is known.
    pub now_ns: u64,
}

/// How the exchange came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The page has a new frame; a superpage that was around it is split.
    Page,
    /// All pages of the superpage have new frames and are a superpage.
    Superpage,
    /// All pages of the superpage have new frames, mapped one by one: Xen had no further 2 MiB.
    SplitSuperpage,
}

/// What an exchange came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The page.
    pub gfn: Gfn,
    /// Its old frame.
    pub old: Mfn,
    /// Its new frame.
    pub new: Mfn,
    /// How it came out.
    pub outcome: Outcome,
    /// Frames that are out of the guest and that it owns still: somebody else (Xen itself, a backend, a device model that
    /// has not let go yet) holds them and goes on using them. [`XenExchange::retain_orphans`] tells later whether he has let go.
    pub held: Vec<Mfn>,
    /// Whether Xen refused to have the page read-only again, as it was.
    pub lost_read_only: Option<Errno>,
}

/// An exchange under way.
///
/// It has to be ended by [`finish`](Self::finish), whatever [`swap`](Self::swap) returned.
#[derive(Debug)]
#[must_use = "an exchange holds memory of the target until it is finished"]
pub struct Exchange {
    mfn: Mfn,
    gfn: Gfn,
    plan: Plan,
    alone: Option<Alone>,
    page_type: PageType,
    scratch: Vec<Gfn>, // where new pages wait that are not the guest's yet
    errors: Vec<i32>,
    is_filled: bool, // what waits may hold bytes of the guest
    swapped: Option<(Outcome, Mfn)>,
    lost: Option<Gfn>,
    lost_read_only: Option<Errno>,
}

impl Exchange {
    /// Prepares the exchange; the guest runs on meanwhile and notices nothing.
    ///
    /// # Errors
    /// Why not; everything is as it was then.
    pub fn prepare<X: XenExchange>(request: &Request<'_>, xen: &mut X) -> Result<Self, Error> {
        let mfn = request.mfn;
        let gfn = xen.gfn(mfn).ok_or(Error::NoGfn { mfn })?;
        let mut exchange = Self {
            mfn,
            gfn,
            plan: Plan::Page,
            alone: None,
            page_type: PageType::Ram,
            scratch: Vec::with_capacity(REGION_LEN),
            errors: vec![0; 2 * REGION_LEN],
            is_filled: false,
            swapped: None,
            lost: None,
            lost_read_only: None,
        };
        match exchange.prepare_with(request, xen) {
            Ok(()) => Ok(exchange),
            Err(error) => {
                exchange.release(xen);
                Err(error)
            }
        }
    }

    /// Returns what will be exchanged.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Returns the page whose frame fails.
    pub fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// Returns why the page of a superpage is exchanged alone, which splits the superpage; `None` when the whole superpage
    /// is exchanged, or there is none.
    pub fn alone(&self) -> Option<Alone> {
        self.alone
    }

    /// Exchanges; the guest and its device model stand still from before the call until after it.
    ///
    /// A superpage is gone from the guest for a while. Before that a whole copy waits: whoever outlives the caller can put
    /// the guest right with it ([`repair`]). A page alone is never gone.
    ///
    /// # Errors
    /// Why not; unless it is [`Error::Lost`], the guest is as it was.
    pub fn swap<X: XenExchange>(&mut self, xen: &mut X) -> Result<Outcome, Error> {
        let swapped = match self.plan {
            Plan::Page => self.swap_page(xen),
            Plan::Superpage => self.swap_superpage(xen),
        };
        if let Err(Error::Lost { gfn }) = swapped {
            self.lost = Some(gfn);
        }
        self.swapped = Some(swapped?);
        Ok(swapped?.0)
    }

    fn prepare_with<X: XenExchange>(&mut self, request: &Request<'_>, xen: &mut X) -> Result<(), Error> {
        let survey = self.survey(request, xen)?;
        self.plan = survey.plan()?;
        if survey.is_superpage() {
            self.alone = match (self.plan, request.scratch_region) {
                (_, None) => Some(Alone::Asked),
                (Plan::Page, _) => Some(Alone::Neighbour),
                (Plan::Superpage, Some(start)) if self.reserve_region(start, xen) => None,
                (Plan::Superpage, Some(_)) => Some(Alone::NoMemory),
            };
        }
        if self.plan == Plan::Page || self.alone.is_some() {
            self.plan = Plan::Page;
            self.reserve_page(xen)?;
        }
        let mut held = self.pages();
        held.extend(&self.scratch);
        let errors = &mut self.errors[..held.len()];
        xen.map(Access::Write, &held, errors);
        if errors.iter().any(|error| *error != 0) {
            xen.map(Access::Write, &held, errors);
        }
        if let Some(error) = errors.iter().find(|error| **error != 0) {
            return Err(Error::Xen { step: Step::Map, errno: Errno::new(*error) });
        }
        self.is_filled = true;
        match self.plan {
            Plan::Page => xen.zero(WAITING),
            // The guest may write while its pages are compared; the swap looks again.
            Plan::Superpage => drop(self.insure(xen)),
        }
        Ok(())
    }

    /// Has a new page wait at a hole.
    fn reserve_page<X: XenExchange>(&mut self, xen: &mut X) -> Result<(), Error> {
        let mut candidates = (SCRATCH_PAGES.start.raw()..SCRATCH_PAGES.end.raw()).map(Gfn::new);
        let hole = candidates.find(|gfn| self.is_hole(*gfn, xen)).ok_or(Error::NoScratch)?;
        if !populate(Order::PAGE_4K, hole, xen) {
            return Err(Error::NoMemory);
        }
        self.scratch.push(hole);
        Ok(())
    }

    /// Tells whether nothing stands at a gfn.
    fn is_hole<X: XenExchange>(&mut self, gfn: Gfn, xen: &mut X) -> bool {
        self.look(&[gfn], xen);
        self.errors[0] == Errno::EINVAL.raw() && has_no_memory(gfn, xen)
    }

    /// Has a new superpage wait at a hole; tells whether there was one and memory for it.
    fn reserve_region<X: XenExchange>(&mut self, start: Gfn, xen: &mut X) -> bool {
        if !start.is_aligned(Order::PAGE_2M) {
            return false;
        }
        let gfns = region(start);
        self.look(&gfns, xen);
        // A grant that the guest has mapped cannot be mapped either, and Xen crashes a guest where memory is put over one
        // (`p2m_is_special` in `guest_physmap_add_entry`). Xen gives a device's memory the type of a hole: dom0 refuses
        // guests with such devices.
        let are_holes = self.errors[..REGION_LEN].iter().all(|error| *error == Errno::EINVAL.raw())
            && gfns.iter().all(|gfn| has_no_memory(*gfn, xen));
        if are_holes && populate(Order::PAGE_2M, start, xen) {
            self.scratch = gfns;
        }
        !self.scratch.is_empty()
    }

    /// Returns the pages that are exchanged.
    fn pages(&self) -> Vec<Gfn> {
        match self.plan {
            Plan::Page => vec![self.gfn],
            Plan::Superpage => region(self.gfn),
        }
    }

    /// Maps `gfns` in the new half of the window and reads back their frames; [`Self::errors`] says why one has none.
    fn look<X: XenExchange>(&mut self, gfns: &[Gfn], xen: &mut X) -> Vec<Option<Mfn>> {
        let errors = &mut self.errors[..gfns.len()];
        for _ in 0..ATTEMPTS {
            xen.map_at(NEW, Access::Write, gfns, errors);
            // A hole fails again; what failed for want of memory may not.
            if errors.iter().all(|error| [0, Errno::EINVAL.raw()].contains(error)) {
                break;
            }
        }
        (NEW..NEW + gfns.len()).map(|slot| xen.mfn(slot)).collect()
    }

    /// Refuses what has changed since the survey.
    fn look_again<X: XenExchange>(&mut self, xen: &mut X) -> Result<(), Error> {
        let pages = self.pages();
        let frames = self.look(&pages, xen);
        for ((&gfn, frame), slot) in pages.iter().zip(frames).zip(OLD..) {
            if frame.is_none() || frame != xen.mfn(slot) || (gfn == self.gfn && frame != Some(self.mfn)) {
                return Err(Error::Moved { gfn });
            }
        }
        match grant_blocker(&pages, xen)? {
            Some((gfn, blocker)) => Err(Refusal::Blocked { gfn, blocker }.into()),
            None => Ok(()),
        }
    }
}

/// Returns the gfns of the 2 MiB region that holds `gfn`.
fn region(gfn: Gfn) -> Vec<Gfn> {
    let start = gfn.align_down(Order::PAGE_2M);
    (0..Order::PAGE_2M.nr_frames()).filter_map(|nr| start.checked_add(nr)).collect()
}

fn at(step: Step) -> impl Fn(Errno) -> Error {
    move |errno| Error::Xen { step, errno }
}

/// Calls once more after a failure: what Xen lacks for a moment is no reason to leave a failing frame in use.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    call().or_else(|_| call())
}

/// Tells whether Xen says that nothing is at a gfn that cannot be mapped.
fn has_no_memory<X: XenExchange>(gfn: Gfn, xen: &mut X) -> bool {
    retry(|| xen.page_type(gfn)) == Ok(PageType::None)
}

/// Populates one extent, at the second attempt if need be.
fn populate<X: XenExchange>(order: Order, gfn: Gfn, xen: &mut X) -> bool {
    (0..2).any(|_| xen.populate_physmap(order, &[gfn]) == 1)
}

#[cfg(test)]
mod tests;
