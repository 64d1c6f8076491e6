//! What the planner knows of each gfn, each 2 MiB region and each 1 GiB region.

use super::Error;
use alloc::vec::Vec;
use core::ops::Range;
use xen_abi::types::{Gfn, Order};

/// Frames of 4 GiB: the most by which holes below 4 GiB can push a guest's memory up.
const FRAMES_4G: u64 = 1 << 20;

/// Gfns of a 2 MiB region.
pub(super) const REGION_FRAMES: u64 = Order::PAGE_2M.nr_frames();

/// Gfns of a 1 GiB region.
pub(super) const GIANT_FRAMES: u64 = Order::PAGE_1G.nr_frames();

/// Gfns of a 2 MiB region, as a length.
pub(super) const REGION_LEN: usize = 1 << 9;

/// 2 MiB regions of a 1 GiB region.
pub(super) const GIANT_REGIONS: usize = 1 << 9;

const _: () = assert!(REGION_LEN as u64 == REGION_FRAMES);
const _: () = assert!(GIANT_REGIONS as u64 * REGION_FRAMES == GIANT_FRAMES);

/// How a region is backed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Not at all, and nothing speaks against a superpage.
    Untouched,
    /// By contiguous memory, all of it: also the pages that nobody has named yet.
    Whole,
    /// In smaller pieces: a hole is in it, or there was no contiguous memory.
    Split,
}

/// A 2 MiB region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) shape: Shape,
    /// How many of its gfns are named, 0 to 512.
    pub(super) nr_named: u16,
}

/// A bit a gfn, a few bytes a region.
///
/// A gfn is *named* when the stream has named it as memory of the guest and Xen has populated it. In a region that is
/// split, exactly the named gfns are populated; in a whole one, all are; in an untouched one, none is.
#[derive(Debug)]
pub(super) struct Map {
    named: Vec<u64>,
    regions: Vec<Region>,
    giants: Vec<Shape>,
}

impl Map {
    /// Allocates the map of a guest of at most `max_pages` pages: 1/8 of a byte a page and little more.
    pub(super) fn new(max_pages: u64) -> Result<Self, Error> {
        let too_large = Error::TooLarge { max_pages };
        let end = max_pages.checked_add(FRAMES_4G).and_then(|end| end.checked_next_multiple_of(GIANT_FRAMES));
        let end = end.and_then(|end| usize::try_from(end).ok()).ok_or(too_large)?;
        let region = Region { shape: Shape::Untouched, nr_named: 0 };
        Ok(Self {
            named: filled(end / 64, 0).ok_or(too_large)?,
            regions: filled(end / REGION_LEN, region).ok_or(too_large)?,
            giants: filled(end / (REGION_LEN * GIANT_REGIONS), Shape::Untouched).ok_or(too_large)?,
        })
    }

    /// One past the highest gfn that the guest can have.
    pub(super) fn end(&self) -> Gfn {
        Gfn::new(self.named.len() as u64 * 64)
    }

    pub(super) fn is_named(&self, gfn: Gfn) -> bool {
        let (word, bit) = position(gfn);
        self.named[word] & bit != 0
    }

    /// Lists the named gfns of an extent of at most a region.
    pub(super) fn named(&self, extent: Gfn, nr_frames: u64) -> impl Iterator<Item = Gfn> {
        let nr_frames = if self.region(extent).nr_named == 0 { 0 } else { nr_frames };
        (extent.raw()..extent.raw() + nr_frames).map(Gfn::new).filter(|gfn| self.is_named(*gfn))
    }

    pub(super) fn is_populated(&self, gfn: Gfn) -> bool {
        self.is_named(gfn) || self.region(gfn).shape == Shape::Whole
    }

    /// Names a populated gfn.
    pub(super) fn name(&mut self, gfn: Gfn) {
        let (word, bit) = position(gfn);
        let is_new = self.named[word] & bit == 0;
        self.named[word] |= bit;
        self.regions[region_of(gfn)].nr_named += u16::from(is_new);
    }

    pub(super) fn forget(&mut self, gfn: Gfn) {
        let (word, bit) = position(gfn);
        let was_named = self.named[word] & bit != 0;
        self.named[word] &= !bit;
        self.regions[region_of(gfn)].nr_named -= u16::from(was_named);
    }

    /// Forgets all gfns of a region.
    pub(super) fn forget_region(&mut self, gfn: Gfn) {
        let (word, _) = position(gfn.align_down(Order::PAGE_2M));
        self.named[word..word + REGION_LEN / 64].fill(0);
        self.regions[region_of(gfn)].nr_named = 0;
    }

    pub(super) fn region(&self, gfn: Gfn) -> Region {
        self.regions[region_of(gfn)]
    }

    pub(super) fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Returns the regions of the giant that holds `gfn`, as indices.
    pub(super) fn regions_of_giant(gfn: Gfn) -> Range<usize> {
        let first = region_of(gfn.align_down(Order::PAGE_1G));
        first..first + GIANT_REGIONS
    }

    pub(super) fn giant(&self, gfn: Gfn) -> Shape {
        self.giants[giant_of(gfn)]
    }

    pub(super) fn giants(&self) -> &[Shape] {
        &self.giants
    }

    /// Sets the shape of a region; a giant with a region of its own is split. Returns what the giant was before.
    pub(super) fn shape_region(&mut self, gfn: Gfn, shape: Shape) -> Shape {
        self.regions[region_of(gfn)].shape = shape;
        core::mem::replace(&mut self.giants[giant_of(gfn)], Shape::Split)
    }

    /// Records that a giant and all its regions are backed by one extent.
    pub(super) fn make_giant_whole(&mut self, gfn: Gfn) {
        for region in &mut self.regions[Self::regions_of_giant(gfn)] {
            region.shape = Shape::Whole;
        }
        self.giants[giant_of(gfn)] = Shape::Whole;
    }
}

/// Returns the index of the region that holds `gfn`.
pub(super) fn region_of(gfn: Gfn) -> usize {
    index(gfn) / REGION_LEN
}

/// Returns the first gfn of a region.
pub(super) fn region_start(index: usize) -> Gfn {
    Gfn::new(index as u64 * REGION_FRAMES)
}

fn giant_of(gfn: Gfn) -> usize {
    index(gfn) / (REGION_LEN * GIANT_REGIONS)
}

/// Returns a gfn as an index; one past every list when the target's own indices are too narrow for it.
fn index(gfn: Gfn) -> usize {
    usize::try_from(gfn.raw()).unwrap_or(usize::MAX)
}

fn position(gfn: Gfn) -> (usize, u64) {
    (index(gfn) / 64, 1 << (gfn.raw() % 64))
}

/// Allocates a list of `len` equal values; `None` when there is no memory.
fn filled<T: Clone>(len: usize, value: T) -> Option<Vec<T>> {
    let mut list = Vec::new();
    list.try_reserve_exact(len).ok()?;
    list.resize(len, value);
    Some(list)
}
