//! The end of an exchange: what leaves the guest is scrubbed and let go of.

use super::{COPY, Error, Exchange, NEW, OLD, Plan, REGION_LEN, Report, Step, WAITING, repair};
use crate::xen::{Errno, XenExchange};
use alloc::vec::Vec;
use xen_abi::types::{Gfn, Mfn, Order};

/// What [`give_back`] leaves behind.
pub(super) const DECREASE_FAILED: Error = Error::Xen { step: Step::Decrease, errno: Errno::ENOMEM };

impl Exchange {
    /// Cleans up; the guest runs on again. `None` when nothing was exchanged.
    ///
    /// # Errors
    /// New memory cannot be given back: it waits in the guest still, and [`repair`](super::repair()) has to be tried. After
    /// [`Error::Lost`] the same, and what waits is left as it is.
    pub fn finish<X: XenExchange>(mut self, xen: &mut X) -> Result<Option<Report>, Error> {
        let gone = self.scrub_gone(xen);
        if let Some(gfn) = self.lost {
            xen.unmap();
            return Err(Error::Lost { gfn });
        }
        let mut held: Vec<Mfn> = gone.iter().filter_map(|slot| xen.mfn(*slot)).collect();
        self.retire(&gone, xen);
        self.release(xen);
        if !self.scratch.is_empty() {
            return Err(DECREASE_FAILED);
        }
        let Some((outcome, new)) = self.swapped else { return Ok(None) };
        xen.retain_orphans(&mut held);
        Ok(Some(Report {
            gfn: self.gfn,
            old: self.mfn,
            new,
            outcome,
            held,
            lost_read_only: self.lost_read_only,
        }))
    }

    /// Fills those frames with zeroes that are mapped here and that no gfn leads to any more; returns their slots. They are
    /// free once they are unmapped, unless somebody else holds them too.
    fn scrub_gone<X: XenExchange>(&self, xen: &mut X) -> Vec<usize> {
        let nr_slots = if self.plan == Plan::Page { WAITING + 1 } else { COPY + REGION_LEN };
        let is_gone = |slot: &usize| xen.mfn(*slot).is_some_and(|mfn| xen.gfn(mfn).is_none());
        let gone: Vec<usize> = (OLD..nr_slots).filter(is_gone).collect();
        gone.iter().for_each(|slot| xen.zero(*slot));
        gone
    }

    /// Lets go of the failing frame before the others of its superpage. Xen merges what is freed with free memory beside
    /// it and then cuts a marked frame out of the piece, which before 4.20.4 and 4.21.2 damages its allocator
    /// (`reserve_offlined_page`, `common/page_alloc.c`); nothing is merged while the other frame of its pair is in use.
    fn retire<X: XenExchange>(&self, gone: &[usize], xen: &mut X) {
        if let Some(&slot) = gone.iter().find(|slot| xen.mfn(**slot) == Some(self.mfn)) {
            xen.unmap_at(slot);
        }
    }

    /// Empties the window and gives back what still waits at the scratch gfns, scrubbed; what cannot be given back stays in
    /// the list.
    pub(super) fn release<X: XenExchange>(&mut self, xen: &mut X) {
        let is_ready = !self.is_filled || (self.spend_copy(xen) && self.scrub_waiting(xen));
        xen.unmap();
        if is_ready {
            self.scratch = give_back(core::mem::take(&mut self.scratch), xen);
        }
    }

    /// Takes the copy of the failing page from the guest, before the others are scrubbed: without it [`repair`] knows that
    /// what waits is no copy any more, whatever dom0 still believes. Tells whether it is gone.
    fn spend_copy<X: XenExchange>(&mut self, xen: &mut X) -> bool {
        let is_copy =
            |gfn: &Gfn| self.slot(*gfn) == COPY + self.gfn.offset_in(Order::PAGE_2M) && self.waits(*gfn, xen);
        let copy = self.scratch.iter().position(is_copy);
        let (Plan::Superpage, Some(_), Some(at)) = (self.plan, self.swapped, copy) else { return true };
        let left = give_back(alloc::vec![self.scratch[at]], xen);
        if left.is_empty() {
            self.scratch.remove(at);
            self.scrub_gone(xen);
        }
        left.is_empty()
    }

    /// Fills with zeroes what stands at the scratch gfns: the pages that wait, or what the guest has put there instead. Tells
    /// whether all of it could be reached.
    fn scrub_waiting<X: XenExchange>(&mut self, xen: &mut X) -> bool {
        let (waiting, others): (Vec<Gfn>, Vec<Gfn>) =
            self.scratch.iter().partition(|gfn| self.waits(**gfn, xen));
        waiting.iter().for_each(|gfn| xen.zero(self.slot(*gfn)));
        if others.is_empty() {
            return true;
        }
        let frames = self.look(&others, xen);
        (NEW..).zip(frames).filter(|(_, frame)| frame.is_some()).for_each(|(slot, _)| xen.zero(slot));
        self.errors[..others.len()].iter().all(|error| [0, Errno::EINVAL.raw()].contains(error))
    }

    /// Tells whether the page that was to wait at a scratch gfn is there still.
    fn waits<X: XenExchange>(&self, scratch: Gfn, xen: &X) -> bool {
        xen.mfn(self.slot(scratch)).and_then(|mfn| xen.gfn(mfn)) == Some(scratch)
    }

    /// Returns where in the window a page is that waits at a scratch gfn.
    fn slot(&self, scratch: Gfn) -> usize {
        match self.plan {
            Plan::Page => WAITING,
            Plan::Superpage => COPY + scratch.offset_in(Order::PAGE_2M),
        }
    }
}

/// Takes pages from the guest; returns those that it still has. Some may be holes: the guest runs, and may have given them
/// up itself.
pub(super) fn give_back<X: XenExchange>(pages: Vec<Gfn>, xen: &mut X) -> Vec<Gfn> {
    if pages.len() == REGION_LEN && decrease(Order::PAGE_2M, &pages[..1], xen) == 1 {
        return Vec::new();
    }
    let mut left = pages;
    left.drain(..decrease(Order::PAGE_4K, &left, xen));
    if left.is_empty() {
        return left;
    }
    // Xen stops at a hole.
    let Ok(present) = repair::only_present(&left, xen) else { return left };
    let (mut kept, mut nr_seen) = (Vec::new(), 0);
    while nr_seen < present.len() {
        nr_seen += decrease(Order::PAGE_4K, &present[nr_seen..], xen);
        kept.extend(present.get(nr_seen));
        nr_seen += 1;
    }
    kept
}

/// Takes back a prefix of `extents`, with one more attempt after a short count.
pub(super) fn decrease<X: XenExchange>(order: Order, extents: &[Gfn], xen: &mut X) -> usize {
    let mut nr_done = 0;
    for _ in 0..2 {
        if nr_done < extents.len() {
            nr_done += xen.decrease_reservation(order, &extents[nr_done..]);
        }
    }
    nr_done
}
