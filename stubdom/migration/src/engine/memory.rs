//! The target's memory: what is populated, what goes back, and with what in it.

use super::{Engine, Error, map_all};
use crate::plan::Outcome;
use crate::stream::BATCH_PAGES;
use crate::xen::{Access, WINDOW_FRAMES, Xen};
use xen_abi::types::{Gfn, Order};

impl Engine {
    /// Populates pages that come without contents; those that were not named before are filled with zeroes.
    pub(super) fn populate_blank<X: Xen>(
        &mut self,
        mut pages: impl Iterator<Item = Gfn>,
        xen: &mut X,
    ) -> Result<(), Error> {
        let mut blank = core::mem::take(&mut self.blank);
        let mut outcome = Ok(());
        while outcome.is_ok() {
            blank.clear();
            blank.extend(pages.by_ref().filter(|gfn| !self.population.is_named(*gfn)).take(BATCH_PAGES));
            if blank.is_empty() {
                break;
            }
            outcome = self.populate(&blank, xen).and_then(|()| self.zero(&blank, xen));
        }
        self.blank = blank;
        outcome
    }

    pub(super) fn populate<X: Xen>(&mut self, pages: &[Gfn], xen: &mut X) -> Result<(), Error> {
        loop {
            self.population.name(pages)?;
            self.population.plan_pages(pages, &mut self.plan)?;
            if self.plan.is_empty() {
                return Ok(());
            }
            self.execute(xen)?;
        }
    }

    pub(super) fn give_back_holes<X: Xen>(
        &mut self,
        first: Gfn,
        nr_frames: u64,
        xen: &mut X,
    ) -> Result<(), Error> {
        let end = first.checked_add(nr_frames).unwrap_or(Gfn::new(u64::MAX));
        let mut next = Some(first);
        while let Some(from) = next {
            next = self.population.plan_holes(from, end.raw() - from.raw(), &mut self.plan);
            self.execute(xen)?;
        }
        self.population.note_holes(first, nr_frames);
        Ok(())
    }

    pub(super) fn give_back_unnamed<X: Xen>(&mut self, xen: &mut X) -> Result<(), Error> {
        let mut next = Some(Gfn::new(0));
        while let Some(from) = next {
            next = self.population.plan_unnamed(from, &mut self.plan);
            self.execute(xen)?;
        }
        Ok(())
    }

    /// Asks Xen for what the plan says and records the answer.
    fn execute<X: Xen>(&mut self, xen: &mut X) -> Result<(), Error> {
        self.give_back(xen)?;
        let mut done = [0; 3];
        for ((order, gfns), nr_done) in self.plan.populate().into_iter().zip(&mut done) {
            *nr_done = populate_extents(order, gfns, xen);
        }
        let [nr_populated_1g, nr_populated_2m, nr_populated_4k] = done;
        let outcome = Outcome { nr_populated_1g, nr_populated_2m, nr_populated_4k };
        self.population.commit(&self.plan, &outcome);
        match self.plan.populate_4k.get(nr_populated_4k) {
            Some(&gfn) => self.relieve(gfn, self.plan.populate_4k.len() - nr_populated_4k, xen),
            None => Ok(()),
        }
    }

    /// Makes room on a host without memory for single pages, by giving back speculation.
    fn relieve<X: Xen>(&mut self, gfn: Gfn, nr_missing: usize, xen: &mut X) -> Result<(), Error> {
        self.population.plan_relief(nr_missing, &mut self.plan);
        if self.plan.is_empty() {
            return Err(Error::NoMemory { gfn, nr_missing });
        }
        self.give_back(xen)?;
        self.population.commit(&self.plan, &Outcome::default());
        Ok(())
    }

    fn give_back<X: Xen>(&mut self, xen: &mut X) -> Result<(), Error> {
        if !self.plan.gives_back() {
            return Ok(());
        }
        self.zero_named(xen)?;
        xen.unmap(); // a mapped frame would stay allocated
        for (order, gfns) in self.plan.give_back() {
            let nr_done = insist(gfns, |rest| xen.decrease_reservation(order, rest));
            self.tally.nr_given_back += nr_done as u64 * order.nr_frames();
            if let Some(&gfn) = gfns.get(nr_done) {
                return Err(Error::GiveBack { gfn, order });
            }
        }
        Ok(())
    }

    /// Fills those pages with zeroes that the plan gives back and that may hold contents: a page that nobody has named was
    /// never written to.
    fn zero_named<X: Xen>(&mut self, xen: &mut X) -> Result<(), Error> {
        let Self { population, plan, errors, blank, .. } = self;
        let extents =
            plan.give_back().into_iter().flat_map(|(order, gfns)| gfns.iter().map(move |gfn| (order, *gfn)));
        let mut named = extents.flat_map(|(order, gfn)| population.named(order, gfn));
        loop {
            blank.clear();
            blank.extend(named.by_ref().take(WINDOW_FRAMES));
            if blank.is_empty() {
                return Ok(());
            }
            zero_all(blank, errors, xen)?;
        }
    }

    fn zero<X: Xen>(&mut self, pages: &[Gfn], xen: &mut X) -> Result<(), Error> {
        zero_all(pages, &mut self.errors, xen)
    }
}

/// The gfns of a run; none past the highest number.
pub(super) fn gfns(first: Gfn, nr_frames: u64) -> impl Iterator<Item = Gfn> {
    (first.raw()..first.raw().saturating_add(nr_frames)).map(Gfn::new)
}

/// Maps pages, no more than the window holds, and fills them with zeroes.
fn zero_all<X: Xen>(pages: &[Gfn], errors: &mut [i32], xen: &mut X) -> Result<(), Error> {
    map_all(Access::Write, pages, errors, xen)?;
    (0..pages.len()).for_each(|slot| xen.zero(slot));
    Ok(())
}

/// Populates a prefix of `extents`; single pages are asked for again, larger ones have a lower order to fall back to.
fn populate_extents<X: Xen>(order: Order, extents: &[Gfn], xen: &mut X) -> usize {
    if order == Order::PAGE_4K {
        insist(extents, |rest| xen.populate_physmap(order, rest))
    } else if extents.is_empty() {
        0
    } else {
        xen.populate_physmap(order, extents)
    }
}

/// Calls for what is left of `list` until all is done or two calls in a row do nothing; returns how many were done.
fn insist(list: &[Gfn], mut call: impl FnMut(&[Gfn]) -> usize) -> usize {
    let mut nr_done = 0;
    let mut nr_idle = 0;
    while nr_done < list.len() && nr_idle < 2 {
        let nr_more = call(&list[nr_done..]);
        nr_done += nr_more;
        nr_idle = if nr_more == 0 { nr_idle + 1 } else { 0 };
    }
    nr_done
}
