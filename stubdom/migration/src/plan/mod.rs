//! PLAN: which extents of which order the target gets, and which it gives back.
//!
//! **Takes** the gfns that a page list names. **Gives** a [`Plan`]: one list an order, shaped like hypercall arguments.
//! **Never** talks to Xen, sees page contents, or depends on the order in which a batch names its pages.
//! `plan_*` decide and change nothing; [`Population::commit`] records what Xen has answered, and only that marks
//! anything populated.
//!
//! The unit is the region of 2 MiB, and the giant of 1 GiB one level up:
//! - A page of an untouched region is populated with the whole region's superpage, named or not, as long as
//!   `max_pages` allows. Once every page of it has been named, it stays.
//! - A hole in a region means that it cannot be a superpage: everything in it that is not named goes back at once, and
//!   what is named later comes in 4 KiB pages. A hole in a giant splits it: its regions that nobody has named go back.
//! - When `max_pages` is reached, regions that hold the fewest named pages give back the rest of theirs. A new region
//!   gets its superpage this way only from regions of which fewer pages are named than this batch names of it.
//! - At the end all that was never named goes back. So the guest owns exactly what it owned at the source, by the
//!   last word of the stream on each gfn: a page that becomes a hole after it was sent goes back too. (libxc's
//!   receiver keeps it: there the guest ends up owning more than it did.)
//! - No contiguous memory is an outcome: the region comes in 4 KiB pages, and later ones try again (`backoff.rs`).
//!
//! The 2009 algorithm allocated a superpage when 512 gfns came in order, and gave up for good at the first failure.

mod backoff;
mod extents;
mod give_back;
mod map;

use alloc::vec::Vec;
use backoff::Backoff;
use core::fmt;
use map::{GIANT_FRAMES, Map, REGION_FRAMES, Shape};
use xen_abi::types::{Gfn, Order};

pub use extents::{MAX_EXTENTS, Outcome, Plan};

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is too little memory for the bookkeeping of so large a guest.
    TooLarge {
        /// The most pages that the guest may own.
        max_pages: u64,
        /// How many bytes are missing.
        nr_missing: u64,
    },
    /// There is no memory to keep track of the page.
    NoMemory {
        /// The page.
        gfn: Gfn,
        /// How many bytes are missing for the 1 GiB that it is in.
        nr_missing: u64,
    },
    /// A page past the highest gfn that a guest can have.
    BeyondGuest {
        /// The page.
        gfn: Gfn,
        /// One past the highest possible: [`Population::end`].
        end: Gfn,
    },
    /// The guest would own more pages than it may.
    OverReservation {
        /// The page that is one too many.
        gfn: Gfn,
        /// The most pages that the guest may own.
        max_pages: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooLarge { max_pages, nr_missing } => write!(
                f,
                "no memory to keep track of a guest of {max_pages} pages: give the stub {} KiB more",
                kib(nr_missing)
            ),
            Self::NoMemory { gfn, nr_missing } => write!(
                f,
                "no memory to keep track of {gfn}: give the stub {} KiB more, and as much for each further GiB of the guest \
                 that has pages in it",
                kib(nr_missing)
            ),
            Self::BeyondGuest { gfn, end } => write!(f, "expected pages below {end}, got {gfn}"),
            Self::OverReservation { gfn, max_pages } => {
                write!(
                    f,
                    "expected a guest of at most {max_pages} pages, got {gfn} beyond them: raise its maxmem"
                )
            }
        }
    }
}

/// How much more memory a stub needs in which so many bytes of bookkeeping are missing.
fn kib(nr_missing: u64) -> u64 {
    nr_missing.saturating_mul(HEAP_SHARE.into()).div_ceil(1024)
}

impl core::error::Error for Error {}

/// What part of the heap that is free at its start a restore's bookkeeping may take: one in so many.
pub const HEAP_SHARE: u8 = 2;

/// Least memory of a stub, in MiB.
pub const LEAST_MIB: u64 = 16;

/// Returns the memory that a stub needs to receive a guest that may own `max_pages` pages, in MiB: 69 KiB for each GiB of it
/// and 6 MiB, at least [`LEAST_MIB`]. The guest's pages may stand in as many places of its own as holes of the usual kinds cut.
pub const fn stub_memory_mib(max_pages: u64) -> u64 {
    /// Image, rings, network, window and the buffers of a restore.
    const FIXED_BYTES: u64 = 5 << 20;
    /// Giants that holes and pages far up add: below 4 GiB, the device model's, tables of the firmware.
    const STRAY_GIANTS: u64 = 8;
    let heap = (HEAP_SHARE as u64)
        .saturating_mul(map::least_bytes(max_pages.saturating_add(STRAY_GIANTS * GIANT_FRAMES)));
    let bytes = heap.saturating_add(FIXED_BYTES);
    // A page has 8 bytes in a page table, and 8 in the list of machine frames.
    let mib = bytes.saturating_add(bytes / 256).div_ceil(1 << 20);
    if mib < LEAST_MIB { LEAST_MIB } else { mib }
}

/// What the target has at the end, in extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// 1 GiB extents.
    pub nr_1g: u64,
    /// 2 MiB extents outside of these.
    pub nr_2m: u64,
    /// 4 KiB pages.
    pub nr_4k: u64,
}

/// Which gfns of the target are populated, and how.
#[derive(Debug)]
pub struct Population {
    max_pages: u64,
    nr_owned: u64,
    map: Map,
    backoff_1g: Backoff,
    backoff_2m: Backoff,
}

impl Population {
    /// Starts with no gfn populated, of a target that may own `max_pages` pages and owns `nr_owned` already. `nr_bytes` is how
    /// much memory the bookkeeping may take: 34 KiB for each GiB that has pages in it.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn new(max_pages: u64, nr_owned: u64, nr_bytes: usize) -> Result<Self, Error> {
        Ok(Self {
            max_pages,
            nr_owned,
            map: Map::new(max_pages, nr_bytes)?,
            backoff_1g: Backoff::new(),
            backoff_2m: Backoff::new(),
        })
    }

    /// One past the highest gfn that can be populated, whatever the guest's size: 256 TiB.
    pub const fn end() -> Gfn {
        Map::end()
    }

    /// Tells whether the stream has named `gfn` as memory of the guest.
    pub fn is_named(&self, gfn: Gfn) -> bool {
        self.map.is_named(gfn)
    }

    /// Lists the named gfns of an extent that a plan gives back.
    pub fn named(&self, order: Order, extent: Gfn) -> impl Iterator<Item = Gfn> {
        self.map.named(extent, order.nr_frames())
    }

    /// Returns how many pages the target owns, as far as Xen has answered.
    pub fn nr_owned(&self) -> u64 {
        self.nr_owned
    }

    /// Counts what is populated, by the extents that it came in.
    pub fn census(&self) -> Census {
        let nr_1g = self.map.nr_giants(Shape::Whole);
        let of_shape = |shape| self.map.regions_from(0).filter(move |(_, region)| region.shape == shape);
        let (whole, split) = (of_shape(Shape::Whole).count() as u64, of_shape(Shape::Split));
        Census {
            nr_1g,
            nr_2m: whole - nr_1g * map::GIANT_REGIONS as u64,
            nr_4k: split.map(|(_, region)| u64::from(region.nr_named)).sum(),
        }
    }

    /// Names those of `pages` that are populated already, and keeps track of the others.
    ///
    /// # Errors
    /// [`Error::BeyondGuest`] for a gfn from [`Self::end`] on, [`Error::NoMemory`].
    pub fn name(&mut self, pages: &[Gfn]) -> Result<(), Error> {
        let end = Self::end();
        for &gfn in pages {
            if gfn >= end {
                return Err(Error::BeyondGuest { gfn, end });
            }
            self.map.keep(gfn)?;
            if self.map.is_populated(gfn) {
                self.map.name(gfn);
            }
        }
        Ok(())
    }

    /// Plans how those of `pages` that are not named yet are populated; an empty plan means that all are.
    ///
    /// `pages` have been through [`Self::name`], and are at most [`MAX_EXTENTS`]. A plan either populates or makes
    /// room; in both cases the next step is to carry it out, [`Self::commit`], name and plan again.
    ///
    /// # Errors
    /// [`Error::OverReservation`].
    pub fn plan_pages(&self, pages: &[Gfn], plan: &mut Plan) -> Result<(), Error> {
        plan.clear();
        plan.populate_4k.extend(pages.iter().filter(|gfn| !self.map.is_named(**gfn)));
        plan.populate_4k.sort_unstable();
        plan.populate_4k.dedup();
        let mut room = self.max_pages.saturating_sub(self.nr_owned);
        self.promote(Order::PAGE_1G, &mut room, &mut plan.populate_4k, &mut plan.populate_1g);
        let crowded = self.promote(Order::PAGE_2M, &mut room, &mut plan.populate_4k, &mut plan.populate_2m);
        if crowded > 0 && self.can_reclaim(REGION_FRAMES - room, crowded) {
            self.plan_reclaim(REGION_FRAMES - room, crowded, plan);
            return Ok(());
        }
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let Some(&excess) = plan.populate_4k.get(room) else { return Ok(()) };
        if self.can_reclaim(1, ANY) {
            self.plan_reclaim((plan.populate_4k.len() - room) as u64, ANY, plan);
            return Ok(());
        }
        plan.populate_4k.truncate(room);
        if plan.is_empty() {
            return Err(Error::OverReservation { gfn: excess, max_pages: self.max_pages });
        }
        Ok(())
    }

    /// Plans to give back at least `nr_pages` that nobody has named, or as many as there are and a plan can hold.
    pub fn plan_relief(&self, nr_pages: usize, plan: &mut Plan) {
        self.plan_reclaim(nr_pages as u64, ANY, plan);
    }

    /// Moves the pages of each extent of `order` that may be populated as one from `pages` to `extents`.
    ///
    /// Returns how many pages are shown of the extent that shows the most among those that only lack room; 0 when
    /// there is none.
    fn promote(&self, order: Order, room: &mut u64, pages: &mut Vec<Gfn>, extents: &mut Vec<Gfn>) -> u64 {
        let mut crowded = 0;
        for shown in pages.chunk_by(|a, b| a.align_down(order) == b.align_down(order)) {
            let extent = shown[0].align_down(order);
            if !self.may_be_whole(order, extent) {
                continue;
            }
            match room.checked_sub(order.nr_frames()) {
                Some(rest) => {
                    *room = rest;
                    extents.push(extent);
                }
                None => crowded = crowded.max(shown.len() as u64),
            }
        }
        if !extents.is_empty() {
            pages.retain(|gfn| extents.binary_search(&gfn.align_down(order)).is_err());
        }
        crowded
    }

    fn may_be_whole(&self, order: Order, extent: Gfn) -> bool {
        let (shape, backoff) = if order == Order::PAGE_1G {
            (self.map.giant(extent), self.backoff_1g)
        } else {
            (self.map.region(extent).shape, self.backoff_2m)
        };
        shape == Shape::Untouched && backoff.is_ready()
    }

    /// Records what Xen has answered to `plan`: all that it gives back is given back, of the rest as much as `outcome`
    /// says.
    pub fn commit(&mut self, plan: &Plan, outcome: &Outcome) {
        self.nr_owned -= plan.nr_given_back();
        for &gfn in &plan.give_back_2m {
            self.map.forget_region(gfn);
            self.map.shape_region(gfn, Shape::Untouched);
        }
        for &gfn in &plan.give_back_4k {
            self.map.forget(gfn);
            self.map.shape_region(gfn, Shape::Split);
        }
        self.commit_1g(&plan.populate_1g, outcome.nr_populated_1g);
        self.commit_2m(&plan.populate_2m, outcome.nr_populated_2m);
        self.commit_4k(&plan.populate_4k[..outcome.nr_populated_4k]);
    }

    fn commit_1g(&mut self, asked: &[Gfn], nr_done: usize) {
        for &gfn in &asked[..nr_done] {
            self.map.make_giant_whole(gfn);
        }
        self.nr_owned += nr_done as u64 * GIANT_FRAMES;
        self.backoff_1g.record(asked.len(), nr_done);
    }

    fn commit_2m(&mut self, asked: &[Gfn], nr_done: usize) {
        for &gfn in &asked[..nr_done] {
            self.touch(gfn, Shape::Whole);
        }
        self.nr_owned += nr_done as u64 * REGION_FRAMES;
        self.backoff_2m.record(asked.len(), nr_done);
    }

    fn commit_4k(&mut self, done: &[Gfn]) {
        for &gfn in done {
            if self.map.region(gfn).shape == Shape::Untouched {
                self.backoff_2m.count_down();
            }
            self.touch(gfn, Shape::Split);
            self.map.name(gfn);
        }
        self.nr_owned += done.len() as u64;
    }

    fn touch(&mut self, gfn: Gfn, shape: Shape) {
        if self.map.shape_region(gfn, shape) == Shape::Untouched {
            self.backoff_1g.count_down();
        }
    }
}

/// Takes from any region that has something unnamed.
const ANY: u64 = REGION_FRAMES;

#[cfg(test)]
mod tests;
