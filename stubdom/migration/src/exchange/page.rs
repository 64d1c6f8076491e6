//! The swap of one page.

use super::{ATTEMPTS, Error, Exchange, NEW, OLD, Outcome, Step, WAITING, populate, retry};
use crate::xen::{Errno, PageType, XenExchange};
use xen_abi::types::{Mfn, Order};

impl Exchange {
    /// Copies the page to the one that waits, and moves that over it.
    pub(super) fn swap_page<X: XenExchange>(&mut self, xen: &mut X) -> Result<(Outcome, Mfn), Error> {
        self.look_again(xen)?;
        let copy = self.copy_to_scratch(xen)?;
        let new = self.move_over(copy, xen)?;
        self.restore_type(xen);
        Ok((Outcome::Page, new))
    }

    /// Copies the page to the one that waits; returns the frame of the copy.
    fn copy_to_scratch<X: XenExchange>(&mut self, xen: &mut X) -> Result<Mfn, Error> {
        let frame = xen.mfn(WAITING).ok_or(Error::NoScratch)?;
        xen.copy(OLD, WAITING);
        if xen.equal(OLD, WAITING) { Ok(frame) } else { Err(Error::CopyDiffers { gfn: self.gfn }) }
    }

    /// Moves the copy over the page and confirms it; returns the frame that stands there now.
    fn move_over<X: XenExchange>(&mut self, copy: Mfn, xen: &mut X) -> Result<Mfn, Error> {
        let (scratch, page) = (self.scratch[0], [self.gfn]);
        let mut errno = Errno::EINVAL;
        for _ in 0..ATTEMPTS {
            if let Err(error) = xen.move_page(scratch, self.gfn) {
                errno = error;
            }
            if self.look(&page, xen)[0] == Some(copy) {
                self.scratch.clear();
                return Ok(copy);
            }
        }
        match self.look(&page, xen)[0] {
            Some(frame) if frame == self.mfn => Err(Error::Xen { step: Step::Move, errno }),
            None if self.errors[0] == Errno::EINVAL.raw() => self.refill(xen),
            _ => Err(Error::Lost { gfn: self.gfn }),
        }
    }

    /// Populates the page anew: Xen has taken the old frame away and then failed to put the new one there, which has
    /// no gfn now and stays with the guest until its end.
    fn refill<X: XenExchange>(&mut self, xen: &mut X) -> Result<Mfn, Error> {
        let (scratch, page) = ([self.scratch[0]], [self.gfn]);
        let lost = Error::Lost { gfn: self.gfn };
        if self.look(&scratch, xen)[0].is_none() {
            self.scratch.clear();
        }
        if !populate(Order::PAGE_4K, self.gfn, xen) {
            return Err(lost);
        }
        let frame = self.look(&page, xen)[0].ok_or(lost)?;
        xen.copy(OLD, NEW);
        if xen.equal(OLD, NEW) { Ok(frame) } else { Err(lost) }
    }

    /// Makes the page what it was: a moved page is always ordinary memory, and no log of dirty pages has seen it.
    pub(super) fn restore_type<X: XenExchange>(&mut self, xen: &mut X) {
        if self.page_type == PageType::ReadOnly {
            self.lost_read_only = retry(|| xen.set_read_only(self.gfn)).err();
        }
        let pages = self.pages();
        // Does nothing unless a log is kept; a guest with one is not exchanged (dom0 knows), so a failure loses nothing.
        let _ = retry(|| xen.note_modified(pages[0], pages.len() as u64));
    }
}
