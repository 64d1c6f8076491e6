//! What a stub that died during an exchange has left, put right by the next one.
//!
//! **Takes** what dom0 knows of the exchange. **Gives** a guest that is whole and owns what it owned before. **Never**
//! needs to know how far the dead stub came: every step may be done twice.

use super::release::{DECREASE_FAILED, give_back};
use super::{ATTEMPTS, COPY, Error, OLD, SCRATCH_PAGES, Step, region};
use crate::xen::{Access, Errno, XenExchange};
use alloc::vec;
use alloc::vec::Vec;
use xen_abi::types::{Gfn, Mfn, Order};

/// A swap of a superpage that may have been under way: a copy waits while the superpage itself is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swapping {
    /// The failing page.
    pub gfn: Gfn,
    /// Its frame before the swap.
    pub mfn: Mfn,
    /// The first page of the copy.
    pub waiting: Gfn,
}

/// Puts the target right; the stub that exchanged pages of it is dead, so nothing of it is mapped any more.
///
/// `swapping` is a superpage's swap that was asked for and did not end: the guest stands still since then.
/// `scratch_region` is that of the request.
///
/// # Errors
/// [`Error::Lost`]: a page is gone for good. Else the guest is whole, and pages may wait at the scratch gfns still.
pub fn repair<X: XenExchange>(
    swapping: Option<Swapping>,
    scratch_region: Option<Gfn>,
    xen: &mut X,
) -> Result<(), Error> {
    if let Some(swapping) = swapping
        && has_begun(&swapping, xen)?
    {
        put_back(&swapping, xen)?;
    }
    let left = scrub_left(scratch_region, xen)?;
    if give_back(left, xen).is_empty() { Ok(()) } else { Err(DECREASE_FAILED) }
}

/// Fills with zeroes what the dead stub has left at the scratch gfns, and lists it.
fn scrub_left<X: XenExchange>(scratch_region: Option<Gfn>, xen: &mut X) -> Result<Vec<Gfn>, Error> {
    let mut gfns = scratch_region.map(region).unwrap_or_default();
    let nr_of_region = gfns.len();
    gfns.extend((SCRATCH_PAGES.start.raw()..SCRATCH_PAGES.end.raw()).map(Gfn::new));
    map_present(Access::Write, &gfns, xen)?;
    let is_there = |slot: &usize| xen.mfn(*slot).is_some();
    // A stub takes the first hole, so what one has left stands at the start; what hvmloader takes, at the end.
    let pages = (nr_of_region..gfns.len()).take_while(is_there);
    let left: Vec<usize> = (0..nr_of_region).filter(is_there).chain(pages).collect();
    left.iter().for_each(|slot| xen.zero(*slot));
    xen.unmap();
    Ok(left.into_iter().map(|slot| gfns[slot]).collect())
}

/// Tells whether the dead stub had begun to take the superpage away: it did so only when the copy was whole, and the frame
/// that fails, once out of the guest, never comes back. Before that the copy may be older than what the guest has.
fn has_begun<X: XenExchange>(swapping: &Swapping, xen: &mut X) -> Result<bool, Error> {
    let frames = frames(&region(swapping.gfn), xen)?;
    Ok(frames.iter().any(Option::is_none) || !frames.contains(&Some(swapping.mfn)))
}

/// Moves every page that waits to its place: there is a hole, or a page that is the same or not yet filled. Without the
/// copy of the failing page, which goes last, only holes are filled: what waits may have been scrubbed by then.
fn put_back<X: XenExchange>(swapping: &Swapping, xen: &mut X) -> Result<(), Error> {
    let (pages, waiting) = (region(swapping.gfn), region(swapping.waiting));
    map_present(Access::Write, &[&pages[..], &waiting].concat(), xen)?;
    let bad = swapping.gfn.offset_in(Order::PAGE_2M);
    let is_copy = xen.mfn(COPY + bad).is_some();
    let waits =
        |offset: &usize| xen.mfn(COPY + offset).is_some() && (is_copy || xen.mfn(OLD + offset).is_none());
    let offsets = (0..pages.len()).filter(|offset| *offset != bad).chain([bad]);
    let waits: Vec<usize> = offsets.filter(waits).collect();
    let is_done =
        waits.into_iter().all(|offset| move_over(OLD + offset, waiting[offset], pages[offset], xen));
    xen.unmap();
    if !is_done {
        return Err(Error::Xen { step: Step::Move, errno: Errno::EINVAL });
    }
    let missing = frames(&pages, xen)?.into_iter().zip(pages).find(|(frame, _)| frame.is_none());
    missing.map_or(Ok(()), |(_, gfn)| Err(Error::Lost { gfn }))
}

/// Moves a page over another, which the window shows at `slot` if it is there; scrubs that once it is out of the guest.
fn move_over<X: XenExchange>(slot: usize, from: Gfn, to: Gfn, xen: &mut X) -> bool {
    let is_moved = (0..ATTEMPTS).any(|_| xen.move_page(from, to).is_ok());
    if xen.mfn(slot).is_some_and(|mfn| xen.gfn(mfn).is_none()) {
        xen.zero(slot);
    }
    is_moved
}

/// Returns those of these gfns behind which there is memory.
pub(super) fn only_present<X: XenExchange>(gfns: &[Gfn], xen: &mut X) -> Result<Vec<Gfn>, Error> {
    let frames = frames(gfns, xen)?;
    Ok(gfns.iter().zip(frames).filter(|(_, frame)| frame.is_some()).map(|(gfn, _)| *gfn).collect())
}

/// Returns the frames behind these gfns.
fn frames<X: XenExchange>(gfns: &[Gfn], xen: &mut X) -> Result<Vec<Option<Mfn>>, Error> {
    map_present(Access::Read, gfns, xen)?;
    let frames = (0..gfns.len()).map(|slot| xen.mfn(slot)).collect();
    xen.unmap();
    Ok(frames)
}

/// Maps those of these gfns behind which there is memory; the slots of the others are empty.
///
/// # Errors
/// Xen does not say of one of them: neither that nothing is there (`EINVAL`) nor what. The window is empty then.
fn map_present<X: XenExchange>(access: Access, gfns: &[Gfn], xen: &mut X) -> Result<(), Error> {
    let is_known = |error: &&i32| [0, Errno::EINVAL.raw()].contains(error);
    let mut errors = vec![0; gfns.len()];
    for _ in 0..ATTEMPTS {
        xen.map(access, gfns, &mut errors);
        if errors.iter().all(|error| is_known(&error)) {
            return Ok(());
        }
    }
    xen.unmap();
    let error = errors.iter().find(|error| !is_known(error)).copied().unwrap_or_default();
    Err(Error::Xen { step: Step::Map, errno: Errno::new(error) })
}
