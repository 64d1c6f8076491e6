//! The swap of a superpage.

use super::release::decrease;
use super::{ATTEMPTS, COPY, Error, Exchange, NEW, OLD, Outcome, REGION_LEN, Step, plan, populate, region};
use crate::xen::{Errno, XenExchange};
use alloc::vec::Vec;
use xen_abi::types::{Gfn, Mfn, Order};

impl Exchange {
    /// Takes the superpage away, populates another at its place and copies; falls back on the one that waits.
    pub(super) fn swap_superpage<X: XenExchange>(&mut self, xen: &mut X) -> Result<(Outcome, Mfn), Error> {
        self.look_again(xen)?;
        self.insure(xen)?;
        let start = self.gfn.align_down(Order::PAGE_2M);
        let is_gone = decrease(Order::PAGE_2M, &[start], xen) == 1 || self.is_gone(xen)?;
        let swapped = if is_gone && populate(Order::PAGE_2M, start, xen) {
            self.fill_region(xen)?
        } else {
            self.patch_region(xen)?
        };
        self.restore_type(xen);
        Ok(swapped)
    }

    /// Makes the pages that wait a copy of the superpage, so that nothing is lost with whoever runs this. Done before
    /// the swap too, when the guest still writes: then only what has changed since is copied while it stands still. Copies
    /// all pages, also behind one whose copy differs.
    pub(super) fn insure<X: XenExchange>(&mut self, xen: &mut X) -> Result<(), Error> {
        let mut differing = None;
        for (offset, gfn) in region(self.gfn).into_iter().enumerate() {
            let (old, copy) = (OLD + offset, COPY + offset);
            if !xen.equal(old, copy) {
                xen.copy(old, copy);
                if !xen.equal(old, copy) {
                    differing = differing.or(Some(gfn));
                }
            }
        }
        differing.map_or(Ok(()), |gfn| Err(Error::CopyDiffers { gfn }))
    }

    /// Finds out what a failed decrease has left: Xen takes page after page and may stop between two.
    fn is_gone<X: XenExchange>(&mut self, xen: &mut X) -> Result<bool, Error> {
        let frames = self.look(&region(self.gfn), xen);
        let intact = frames.iter().zip(OLD..).all(|(frame, slot)| frame.is_some() && *frame == xen.mfn(slot));
        if intact {
            return Err(Error::Xen { step: Step::Decrease, errno: Errno::EINVAL });
        }
        Ok(self.errors[..REGION_LEN].iter().all(|error| *error == Errno::EINVAL.raw()))
    }

    /// Fills the new superpage from the copies, which were compared: the frame that fails is not read once more.
    fn fill_region<X: XenExchange>(&mut self, xen: &mut X) -> Result<(Outcome, Mfn), Error> {
        let pages = region(self.gfn);
        let frames = self.look_hard(&pages, xen)?;
        (0..REGION_LEN).for_each(|offset| xen.copy(COPY + offset, NEW + offset));
        let is_whole = plan::is_run(frames.iter().copied().map(Some));
        let outcome = if is_whole { Outcome::Superpage } else { Outcome::SplitSuperpage };
        Ok((outcome, frames[self.gfn.offset_in(Order::PAGE_2M)]))
    }

    /// Gives the guest the pages that wait, one by one: those that are gone, and the one that fails.
    fn patch_region<X: XenExchange>(&mut self, xen: &mut X) -> Result<(Outcome, Mfn), Error> {
        let (pages, bad) = (region(self.gfn), self.gfn.offset_in(Order::PAGE_2M));
        let frames = self.look(&pages, xen);
        let (kept, patched): (Vec<usize>, Vec<usize>) =
            (0..pages.len()).partition(|offset| frames[*offset].is_some() && *offset != bad);
        let waiting = core::mem::take(&mut self.scratch);
        self.scratch.extend(kept.iter().map(|offset| waiting[*offset]));
        for &offset in &patched {
            // Whether it worked shows below.
            let _ = (0..ATTEMPTS).any(|_| xen.move_page(waiting[offset], pages[offset]).is_ok());
        }
        let frames = self.look_hard(&pages, xen)?;
        let copies: Vec<Option<Mfn>> = (COPY..COPY + REGION_LEN).map(|slot| xen.mfn(slot)).collect();
        let is_moved = |offset: &usize| Some(frames[*offset]) == copies[*offset];
        self.scratch.extend(patched.iter().filter(|offset| !is_moved(offset)).map(|offset| waiting[*offset]));
        match patched.iter().find(|offset| !is_moved(offset)) {
            None => Ok((Outcome::SplitSuperpage, frames[bad])),
            Some(_) if frames[bad] == self.mfn => Err(Error::Xen { step: Step::Move, errno: Errno::EINVAL }),
            Some(&offset) => Err(Error::Lost { gfn: pages[offset] }),
        }
    }

    /// Maps pages that must be there, at the last attempt if need be.
    fn look_hard<X: XenExchange>(&mut self, gfns: &[Gfn], xen: &mut X) -> Result<Vec<Mfn>, Error> {
        let mut frames = self.look(gfns, xen);
        for _ in 1..ATTEMPTS {
            if frames.iter().any(Option::is_none) {
                frames = self.look(gfns, xen);
            }
        }
        let missing = frames.iter().zip(gfns).find(|(frame, _)| frame.is_none());
        match missing {
            Some((_, &gfn)) => Err(Error::Lost { gfn }),
            None => Ok(frames.into_iter().flatten().collect()),
        }
    }
}
