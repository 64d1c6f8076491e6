//! What the planner knows of each gfn, each 2 MiB region and each 1 GiB region.
//!
//! It grows by a giant at a time, with the gfns that come: where a guest's memory ends has nothing to do with how much it owns.
//! A lookup is two shifts and two loads.

use super::Error;
use alloc::vec::Vec;
use core::ops::Range;
use xen_abi::types::{Gfn, Order};

/// One past the highest gfn that Xen can give a guest memory at: its tables have four levels (`ept_set_entry`,
/// `p2m_pt_set_entry` in `xen/arch/x86/mm`).
const END: Gfn = Gfn::new(1 << 36);

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) shape: Shape,
    /// How many of its gfns are named, 0 to 512.
    pub(super) nr_named: u16,
}

impl Region {
    const UNTOUCHED: Self = Self { shape: Shape::Untouched, nr_named: 0 };
}

/// A 1 GiB region with a page or a hole in it.
#[derive(Debug)]
struct Giant {
    number: usize,
    shape: Shape,
    /// Kept for the sake of its holes alone: a page elsewhere may take its place.
    is_hint: bool,
    regions: Vec<Region>,
    named: Vec<u64>, // a bit a gfn
}

/// Bytes that keeping track of a giant takes: its regions, its bits, itself and what the heap adds.
const GIANT_BYTES: usize = GIANT_REGIONS * (size_of::<Region>() + REGION_LEN / 8) + 4 * size_of::<Giant>();

/// Returns how many bytes keeping track of `max_pages` pages takes that stand side by side.
pub(super) const fn least_bytes(max_pages: u64) -> u64 {
    max_pages.div_ceil(GIANT_FRAMES).saturating_mul(GIANT_BYTES as u64)
}

/// By how many giants the list of places grows: 512 GiB.
const PLACES_STEP: usize = 512;

/// A bit a gfn and a few bytes a region, of those giants that the stream has named something in.
///
/// A gfn is *named* when the stream has named it as memory of the guest and Xen has populated it. In a region that is
/// split, exactly the named gfns are populated; in a whole one, all are; in an untouched one, none is.
#[derive(Debug)]
pub(super) struct Map {
    places: Vec<u16>, // by giant: one more than where it is in the list; 0 when it is not kept track of
    giants: Vec<Giant>,
    nr_bytes: usize, // that may still be taken
    hint_bytes: usize,
}

impl Map {
    /// Makes the map of a guest of at most `max_pages` pages, which may take `nr_bytes` of memory. Takes none yet.
    ///
    /// # Errors
    /// [`Error::TooLarge`]: that is too little even if the guest's pages stand side by side.
    pub(super) fn new(max_pages: u64, nr_bytes: usize) -> Result<Self, Error> {
        let least = least_bytes(max_pages);
        if least > nr_bytes as u64 {
            return Err(Error::TooLarge { max_pages, nr_missing: least - nr_bytes as u64 });
        }
        Ok(Self { places: Vec::new(), giants: Vec::new(), nr_bytes, hint_bytes: nr_bytes / 2 })
    }

    /// One past the highest gfn that a guest can have.
    pub(super) const fn end() -> Gfn {
        END
    }

    /// Keeps track of the giant of a gfn below [`Map::end`], where a page is.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub(super) fn keep(&mut self, gfn: Gfn) -> Result<(), Error> {
        let number = giant_of(gfn);
        if let Some(giant) = self.giant_mut(gfn) {
            giant.is_hint = false;
            return Ok(());
        }
        let hint = self.giants.iter().position(|giant| giant.is_hint);
        match hint {
            Some(at) if self.nr_bytes < self.cost(number) => self.replace(at, number),
            _ => self.add(number, false),
        }
        .map_err(|nr_missing| Error::NoMemory { gfn, nr_missing })
    }

    /// Keeps track of the giant of a hole, if there is room to spare; without it a later page costs more calls to Xen, and
    /// ends in the same memory.
    pub(super) fn keep_hint(&mut self, gfn: Gfn) {
        let number = giant_of(gfn);
        if self.giant_at(gfn).is_none() && self.nr_bytes >= self.hint_bytes + self.cost(number) {
            let _ = self.add(number, true);
        }
    }

    /// Returns what keeping track of one more giant takes, in bytes.
    fn cost(&self, number: usize) -> usize {
        let nr_places = (number + 1).next_multiple_of(PLACES_STEP);
        GIANT_BYTES + nr_places.saturating_sub(self.places.len()) * size_of::<u16>()
    }

    /// Returns how many bytes are missing if there is no room.
    fn add(&mut self, number: usize, is_hint: bool) -> Result<(), u64> {
        let cost = self.cost(number);
        let place = u16::try_from(self.giants.len() + 1);
        let (Some(rest), Ok(place)) = (self.nr_bytes.checked_sub(cost), place) else {
            return Err(cost.saturating_sub(self.nr_bytes) as u64);
        };
        let giant = Giant::new(number, is_hint).filter(|_| self.reserve(number));
        self.giants.push(giant.ok_or(cost as u64)?);
        self.places[number] = place;
        self.nr_bytes = rest;
        Ok(())
    }

    /// Makes room for one more giant in both lists; tells whether there is memory.
    fn reserve(&mut self, number: usize) -> bool {
        let nr_places = self.places.len().max((number + 1).next_multiple_of(PLACES_STEP));
        let is_room = self.giants.try_reserve(1).is_ok()
            && self.places.try_reserve_exact(nr_places - self.places.len()).is_ok();
        if is_room {
            self.places.resize(nr_places, 0);
        }
        is_room
    }

    /// Forgets the giant at a place of the list for the sake of another.
    fn replace(&mut self, at: usize, number: usize) -> Result<(), u64> {
        let cost = self.cost(number) - GIANT_BYTES;
        if cost > self.nr_bytes || !self.reserve(number) {
            return Err(cost as u64);
        }
        self.nr_bytes -= cost;
        let giant = &mut self.giants[at];
        self.places[number] = core::mem::take(&mut self.places[giant.number]);
        (giant.number, giant.shape, giant.is_hint) = (number, Shape::Untouched, false);
        giant.regions.fill(Region::UNTOUCHED);
        giant.named.fill(0);
        Ok(())
    }

    /// Returns how many bytes it may still take.
    #[cfg(test)]
    pub(super) fn nr_bytes_left(&self) -> usize {
        self.nr_bytes
    }

    fn giant_at(&self, gfn: Gfn) -> Option<&Giant> {
        let place = self.places.get(giant_of(gfn)).copied().unwrap_or(0);
        self.giants.get(usize::from(place).checked_sub(1)?)
    }

    fn giant_mut(&mut self, gfn: Gfn) -> Option<&mut Giant> {
        let place = self.places.get(giant_of(gfn)).copied().unwrap_or(0);
        self.giants.get_mut(usize::from(place).checked_sub(1)?)
    }

    pub(super) fn is_named(&self, gfn: Gfn) -> bool {
        let (word, bit) = position(gfn);
        self.giant_at(gfn).is_some_and(|giant| giant.named[word] & bit != 0)
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
        let Some(giant) = self.giant_mut(gfn) else { return };
        let is_new = giant.named[word] & bit == 0;
        giant.named[word] |= bit;
        giant.regions[region_in_giant(gfn)].nr_named += u16::from(is_new);
    }

    pub(super) fn forget(&mut self, gfn: Gfn) {
        let (word, bit) = position(gfn);
        let Some(giant) = self.giant_mut(gfn) else { return };
        let was_named = giant.named[word] & bit != 0;
        giant.named[word] &= !bit;
        giant.regions[region_in_giant(gfn)].nr_named -= u16::from(was_named);
    }

    /// Forgets all gfns of a region.
    pub(super) fn forget_region(&mut self, gfn: Gfn) {
        let (word, _) = position(gfn.align_down(Order::PAGE_2M));
        let Some(giant) = self.giant_mut(gfn) else { return };
        giant.named[word..word + REGION_LEN / 64].fill(0);
        giant.regions[region_in_giant(gfn)].nr_named = 0;
    }

    /// Returns what is known of the region that holds `gfn`; untouched where nothing is.
    pub(super) fn region(&self, gfn: Gfn) -> Region {
        self.giant_at(gfn).map_or(Region::UNTOUCHED, |giant| giant.regions[region_in_giant(gfn)])
    }

    /// Lists the regions that are kept track of from an index on, in ascending order.
    pub(super) fn regions_from(&self, first: usize) -> impl Iterator<Item = (usize, Region)> {
        let kept = self.places.iter().skip(first / GIANT_REGIONS).filter(|place| **place > 0);
        let giants = kept.filter_map(|place| self.giants.get(usize::from(*place) - 1));
        let regions =
            giants.flat_map(|giant| (giant.number * GIANT_REGIONS..).zip(giant.regions.iter().copied()));
        regions.skip_while(move |(index, _)| *index < first)
    }

    /// Returns the regions of the giant that holds `gfn`, as indices.
    pub(super) fn regions_of_giant(gfn: Gfn) -> Range<usize> {
        let first = region_of(gfn.align_down(Order::PAGE_1G));
        first..first + GIANT_REGIONS
    }

    pub(super) fn giant(&self, gfn: Gfn) -> Shape {
        self.giant_at(gfn).map_or(Shape::Untouched, |giant| giant.shape)
    }

    /// Counts the giants of a shape.
    pub(super) fn nr_giants(&self, shape: Shape) -> u64 {
        self.giants.iter().filter(|giant| giant.shape == shape).count() as u64
    }

    /// Sets the shape of a region; a giant with a region of its own is split. Returns what the giant was before.
    pub(super) fn shape_region(&mut self, gfn: Gfn, shape: Shape) -> Shape {
        let Some(giant) = self.giant_mut(gfn) else { return Shape::Untouched };
        giant.regions[region_in_giant(gfn)].shape = shape;
        core::mem::replace(&mut giant.shape, Shape::Split)
    }

    /// Records that a giant and all its regions are backed by one extent.
    pub(super) fn make_giant_whole(&mut self, gfn: Gfn) {
        let Some(giant) = self.giant_mut(gfn) else { return };
        giant.regions.iter_mut().for_each(|region| region.shape = Shape::Whole);
        giant.shape = Shape::Whole;
    }
}

impl Giant {
    /// Makes a giant in which nothing is populated; `None` when there is no memory.
    fn new(number: usize, is_hint: bool) -> Option<Self> {
        let regions = filled(GIANT_REGIONS, Region::UNTOUCHED)?;
        let named = filled(GIANT_REGIONS * REGION_LEN / 64, 0)?;
        Some(Self { number, shape: Shape::Untouched, is_hint, regions, named })
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

fn region_in_giant(gfn: Gfn) -> usize {
    region_of(gfn) % GIANT_REGIONS
}

fn giant_of(gfn: Gfn) -> usize {
    index(gfn) / (REGION_LEN * GIANT_REGIONS)
}

/// Returns a gfn as an index; one past every list when the target's own indices are too narrow for it.
fn index(gfn: Gfn) -> usize {
    usize::try_from(gfn.raw()).unwrap_or(usize::MAX)
}

/// Returns the word of a gfn in its giant, and the bit in that.
fn position(gfn: Gfn) -> (usize, u64) {
    (index(gfn) % (REGION_LEN * GIANT_REGIONS) / 64, 1 << (gfn.raw() % 64))
}

/// Allocates a list of `len` equal values; `None` when there is no memory.
fn filled<T: Clone>(len: usize, value: T) -> Option<Vec<T>> {
    let mut list = Vec::new();
    list.try_reserve_exact(len).ok()?;
    list.resize(len, value);
    Some(list)
}
