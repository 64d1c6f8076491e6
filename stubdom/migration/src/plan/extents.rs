//! The plan as a value: lists shaped like hypercall arguments.

use super::map::REGION_LEN;
use alloc::vec::Vec;
use core::fmt;
use xen_abi::types::{Gfn, Order};

/// Most extents in one list of a plan.
pub const MAX_EXTENTS: usize = 1024;

/// What to ask of Xen, in this order: give back, then populate from the largest extents down.
///
/// Every list is sorted and has no extent twice. A list never grows past [`MAX_EXTENTS`], its first capacity.
#[derive(Clone, PartialEq, Eq)]
pub struct Plan {
    /// 2 MiB extents for `XENMEM_decrease_reservation`.
    pub give_back_2m: Vec<Gfn>,
    /// 4 KiB pages for `XENMEM_decrease_reservation`.
    pub give_back_4k: Vec<Gfn>,
    /// 1 GiB extents for `XENMEM_populate_physmap`.
    pub populate_1g: Vec<Gfn>,
    /// 2 MiB extents for `XENMEM_populate_physmap`.
    pub populate_2m: Vec<Gfn>,
    /// 4 KiB pages for `XENMEM_populate_physmap`.
    pub populate_4k: Vec<Gfn>,
}

impl Plan {
    /// Makes an empty plan; allocates all that it will ever hold, 40 KiB.
    pub fn new() -> Self {
        let list = || Vec::with_capacity(MAX_EXTENTS);
        Self {
            give_back_2m: list(),
            give_back_4k: list(),
            populate_1g: list(),
            populate_2m: list(),
            populate_4k: list(),
        }
    }

    /// Returns the lists to give back, with their order.
    pub fn give_back(&self) -> [(Order, &[Gfn]); 2] {
        [(Order::PAGE_2M, &self.give_back_2m), (Order::PAGE_4K, &self.give_back_4k)]
    }

    /// Returns the lists to populate, with their order.
    pub fn populate(&self) -> [(Order, &[Gfn]); 3] {
        [
            (Order::PAGE_1G, &self.populate_1g),
            (Order::PAGE_2M, &self.populate_2m),
            (Order::PAGE_4K, &self.populate_4k),
        ]
    }

    /// Tells whether something is given back.
    pub fn gives_back(&self) -> bool {
        self.give_back().iter().any(|(_, gfns)| !gfns.is_empty())
    }

    /// Tells whether there is nothing to ask.
    pub fn is_empty(&self) -> bool {
        !self.gives_back() && self.populate().iter().all(|(_, gfns)| gfns.is_empty())
    }

    pub(super) fn clear(&mut self) {
        self.give_back_2m.clear();
        self.give_back_4k.clear();
        self.populate_1g.clear();
        self.populate_2m.clear();
        self.populate_4k.clear();
    }

    /// Tells whether a further region can be given back whole or in pages.
    pub(super) fn has_room_for_region(&self) -> bool {
        let nr_pages = self.give_back_4k.len() + REGION_LEN;
        self.give_back_2m.len() < MAX_EXTENTS && nr_pages <= MAX_EXTENTS
    }

    /// Returns how many pages the plan gives back.
    pub(super) fn nr_given_back(&self) -> u64 {
        self.give_back().iter().map(|(order, gfns)| order.nr_frames() * gfns.len() as u64).sum()
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self::new()
    }
}

/// Prints each list that is not empty, adjacent extents as half-open ranges of gfns.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (order, gfns) in self.give_back() {
            write_list(f, "give back", order, gfns)?;
        }
        for (order, gfns) in self.populate() {
            write_list(f, "populate", order, gfns)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, verb: &str, order: Order, gfns: &[Gfn]) -> fmt::Result {
    if gfns.is_empty() {
        return Ok(());
    }
    write!(f, "{verb} order {}:", order.raw())?;
    for run in gfns.chunk_by(|a, b| a.checked_add(order.nr_frames()) == Some(*b)) {
        let (first, nr_frames) = (run[0].raw(), run.len() as u64 * order.nr_frames());
        write!(f, " {first:#x}..{:#x}", first + nr_frames)?;
    }
    writeln!(f)
}

/// How far Xen went with the lists to populate: the length of the prefix that is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// 1 GiB extents.
    pub nr_populated_1g: usize,
    /// 2 MiB extents.
    pub nr_populated_2m: usize,
    /// 4 KiB pages.
    pub nr_populated_4k: usize,
}
