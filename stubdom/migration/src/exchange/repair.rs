//! What a stub that died during an exchange has left, put right by the next one.
//!
//! **Takes** what dom0 knows of the exchange. **Gives** a guest that is whole and owns what it owned before. **Never**
//! needs to know how far the dead stub came: every step may be done twice.

use super::{ATTEMPTS, Error, SCRATCH_PAGES, Step, decrease, region};
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
    let region_left = scratch_region.map(region).unwrap_or_default();
    let mut left = only_present(region_left, xen)?;
    let candidates: Vec<Gfn> = (SCRATCH_PAGES.start.raw()..SCRATCH_PAGES.end.raw()).map(Gfn::new).collect();
    // A stub takes the first hole, so what one has left stands at the start; what hvmloader takes, at the end.
    let is_there = present(&candidates, xen)?;
    left.extend(
        candidates.into_iter().zip(is_there).take_while(|(_, is_there)| *is_there).map(|(gfn, _)| gfn),
    );
    let nr_done = decrease(Order::PAGE_4K, &left, xen);
    if nr_done == left.len() { Ok(()) } else { Err(super::DECREASE_FAILED) }
}

/// Tells whether the dead stub had begun to take the superpage away: it did so only when the copy was whole, and the frame
/// that fails, once out of the guest, never comes back. Before that the copy may be older than what the guest has.
fn has_begun<X: XenExchange>(swapping: &Swapping, xen: &mut X) -> Result<bool, Error> {
    let frames = frames(&region(swapping.gfn), xen)?;
    Ok(frames.iter().any(Option::is_none) || !frames.contains(&Some(swapping.mfn)))
}

/// Moves every page that waits to its place: there is a hole, or a page that is the same or not yet filled.
fn put_back<X: XenExchange>(swapping: &Swapping, xen: &mut X) -> Result<(), Error> {
    let (pages, waiting) = (region(swapping.gfn), region(swapping.waiting));
    for ((&page, &copy), is_there) in pages.iter().zip(&waiting).zip(present(&waiting, xen)?) {
        if is_there && !(0..ATTEMPTS).any(|_| xen.move_page(copy, page).is_ok()) {
            return Err(Error::Xen { step: Step::Move, errno: Errno::EINVAL });
        }
    }
    let missing = present(&pages, xen)?.into_iter().zip(pages).find(|(is_there, _)| !is_there);
    missing.map_or(Ok(()), |(_, gfn)| Err(Error::Lost { gfn }))
}

fn only_present<X: XenExchange>(gfns: Vec<Gfn>, xen: &mut X) -> Result<Vec<Gfn>, Error> {
    let is_there = present(&gfns, xen)?;
    Ok(gfns.into_iter().zip(is_there).filter(|(_, is_there)| *is_there).map(|(gfn, _)| gfn).collect())
}

/// Tells behind which of these gfns there is memory.
fn present<X: XenExchange>(gfns: &[Gfn], xen: &mut X) -> Result<Vec<bool>, Error> {
    Ok(frames(gfns, xen)?.iter().map(Option::is_some).collect())
}

/// Returns the frames behind these gfns.
///
/// # Errors
/// Xen does not say of one of them: neither that nothing is there (`EINVAL`) nor what.
fn frames<X: XenExchange>(gfns: &[Gfn], xen: &mut X) -> Result<Vec<Option<Mfn>>, Error> {
    let mut errors = vec![0; gfns.len()];
    for _ in 0..ATTEMPTS {
        xen.map(Access::Read, gfns, &mut errors);
        if errors.iter().all(|error| [0, Errno::EINVAL.raw()].contains(error)) {
            break;
        }
    }
    let frames = (0..gfns.len()).map(|slot| xen.mfn(slot)).collect();
    xen.unmap();
    match errors.iter().find(|error| ![0, Errno::EINVAL.raw()].contains(error)) {
        Some(error) => Err(Error::Xen { step: Step::Map, errno: Errno::new(*error) }),
        None => Ok(frames),
    }
}
