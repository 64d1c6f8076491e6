//! What goes back: holes, what nobody has named, and speculation that stands in the way.

use super::map::{Map, Shape, region_of, region_start};
use super::{Plan, Population};
use core::ops::Range;
use xen_abi::types::{Gfn, Order};

/// No hole.
const NOWHERE: Range<Gfn> = Gfn::new(0)..Gfn::new(0);

impl Population {
    /// Plans what a run of holes asks to be given back, from `first` on.
    ///
    /// Returns where to go on after this plan has been carried out; `None` when it is the last. Holes past
    /// [`Population::end`] ask for nothing. [`Population::note_holes`] comes after the last.
    pub fn plan_holes(&self, first: Gfn, nr_frames: u64, plan: &mut Plan) -> Option<Gfn> {
        plan.clear();
        let holes = clip(first, nr_frames);
        for index in regions(&holes) {
            let start = region_start(index);
            let splits_giant = self.map.giant(start) == Shape::Whole;
            if !plan.has_room_for_region() || (splits_giant && !plan.is_empty()) {
                return Some(start.max(first));
            }
            if splits_giant {
                self.plan_split_giant(index, &holes, plan);
                return Some(start.max(first));
            }
            self.plan_region(index, &holes, plan);
        }
        None
    }

    /// Records that the regions with these holes cannot be superpages.
    pub fn note_holes(&mut self, first: Gfn, nr_frames: u64) {
        let holes = clip(first, nr_frames);
        for index in regions(&holes) {
            let start = region_start(index);
            if !covers_giant(&holes, start) {
                self.map.keep_hint(start);
            }
            if self.map.region(start).shape == Shape::Untouched {
                self.map.shape_region(start, Shape::Split);
            }
        }
    }

    /// Plans to give back what nobody has named, from the region of `from` on.
    ///
    /// Returns where to go on after this plan has been carried out; `None` when it is the last.
    pub fn plan_unnamed(&self, from: Gfn, plan: &mut Plan) -> Option<Gfn> {
        plan.clear();
        for (index, region) in self.map.regions_from(region_of(from)) {
            if !plan.has_room_for_region() {
                return Some(region_start(index));
            }
            if region.shape == Shape::Whole {
                self.plan_region(index, &NOWHERE, plan);
            }
        }
        None
    }

    /// Plans to give back at least `nr_pages`, or as many as a plan can hold, from whole regions of which fewer than
    /// `below` pages are named: fewest first.
    pub(super) fn plan_reclaim(&self, nr_pages: u64, below: u64, plan: &mut Plan) {
        plan.clear();
        let mut last = None;
        while plan.nr_given_back() < nr_pages && plan.has_room_for_region() {
            last = self.next_victim(last, below);
            let Some((_, index)) = last else { break };
            self.plan_region(index, &NOWHERE, plan);
        }
        plan.give_back_2m.sort_unstable();
        plan.give_back_4k.sort_unstable();
    }

    /// Tells whether [`Self::plan_reclaim`] would find `nr_pages`.
    pub(super) fn can_reclaim(&self, nr_pages: u64, below: u64) -> bool {
        let mut nr_left = nr_pages;
        let mut last = None;
        while nr_left > 0 {
            last = self.next_victim(last, below);
            let Some((nr_named, _)) = last else { return false };
            nr_left = nr_left.saturating_sub(Order::PAGE_2M.nr_frames() - u64::from(nr_named));
        }
        true
    }

    /// Returns the whole region with the fewest named pages after `last`, as that number and its index.
    fn next_victim(&self, last: Option<(u16, usize)>, below: u64) -> Option<(u16, usize)> {
        let whole = self.map.regions_from(0).filter(|(_, region)| region.shape == Shape::Whole);
        let victims = whole.map(|(index, region)| (region.nr_named, index));
        victims.filter(|victim| u64::from(victim.0) < below && Some(*victim) > last).min()
    }

    /// Plans to give back the regions of a giant that nobody has named, and what a hole asks for in one of them.
    fn plan_split_giant(&self, index: usize, holes: &Range<Gfn>, plan: &mut Plan) {
        let unnamed = Map::regions_of_giant(region_start(index));
        let unnamed = unnamed.filter(|index| self.map.region(region_start(*index)).nr_named == 0);
        plan.give_back_2m.extend(unnamed.map(region_start));
        if self.map.region(region_start(index)).nr_named > 0 {
            self.plan_region(index, holes, plan);
        }
    }

    /// Plans to give back what of a region is populated, and either not named or in `holes`; when anything of a whole
    /// region is kept, what goes back goes in 4 KiB pages.
    fn plan_region(&self, index: usize, holes: &Range<Gfn>, plan: &mut Plan) {
        let start = region_start(index);
        let region = self.map.region(start);
        let stays = |gfn: &Gfn| self.map.is_named(*gfn) && !holes.contains(gfn);
        let gfns = (0..Order::PAGE_2M.nr_frames()).filter_map(|nr| start.checked_add(nr));
        match region.shape {
            Shape::Untouched => {}
            Shape::Whole if !gfns.clone().any(|gfn| stays(&gfn)) => plan.give_back_2m.push(start),
            Shape::Whole => plan.give_back_4k.extend(gfns.filter(|gfn| !stays(gfn))),
            Shape::Split if region.nr_named == 0 => {}
            Shape::Split => {
                plan.give_back_4k.extend(gfns.filter(|gfn| self.map.is_named(*gfn) && holes.contains(gfn)));
            }
        }
    }
}

/// Returns what of a run lies below the end of all guests.
fn clip(first: Gfn, nr_frames: u64) -> Range<Gfn> {
    let end = first.checked_add(nr_frames).unwrap_or(Map::end()).min(Map::end());
    first.min(end)..end
}

/// Tells whether all of the giant that holds `gfn` is in a run.
fn covers_giant(run: &Range<Gfn>, gfn: Gfn) -> bool {
    let start = gfn.align_down(Order::PAGE_1G);
    let end = start.checked_add(Order::PAGE_1G.nr_frames());
    run.start <= start && end.is_some_and(|end| end <= run.end)
}

/// Returns the indices of the regions that `gfns` touches.
fn regions(gfns: &Range<Gfn>) -> Range<usize> {
    let last = gfns.end.checked_add(Order::PAGE_2M.nr_frames() - 1).unwrap_or(gfns.end);
    if gfns.is_empty() { 0..0 } else { region_of(gfns.start)..region_of(last) }
}
