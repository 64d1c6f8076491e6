//! What a stub that died during an exchange has left, put right by the next one.
//!
//! **Takes** what dom0 knows of the exchange. **Gives** a guest that is whole and owns what it owned before. **Never**
//! needs to know how far the dead stub came: every step may be done twice.

use super::{ATTEMPTS, Error, SCRATCH_PAGES, Step, decrease, region};
use crate::xen::{Access, Errno, XenExchange};
use alloc::vec;
use alloc::vec::Vec;
use xen_front::types::{Gfn, Order};

/// Where a copy of a superpage waits while the superpage itself is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insurance {
    /// The first page of the superpage.
    pub region: Gfn,
    /// The first page of the copy.
    pub waiting: Gfn,
}

/// Puts the target right; the stub that exchanged pages of it is dead, so nothing of it is mapped any more.
///
/// `insurance` is what [`Exchange::swap`](super::Exchange::swap) told of a swap that did not end: the guest stands still
/// since then. `scratch_region` is that of the request.
///
/// # Errors
/// [`Error::Lost`]: a page is gone for good. Else the guest is whole, and pages may wait at the scratch gfns still.
pub fn repair<X: XenExchange>(
    insurance: Option<Insurance>,
    scratch_region: Option<Gfn>,
    xen: &mut X,
) -> Result<(), Error> {
    if let Some(insurance) = insurance {
        put_back(insurance, xen)?;
    }
    let region_left = scratch_region.map(region).unwrap_or_default();
    let is_there = present(&region_left, xen);
    let mut left: Vec<Gfn> =
        region_left.into_iter().zip(is_there).filter(|(_, is_there)| *is_there).map(|(gfn, _)| gfn).collect();
    let candidates: Vec<Gfn> = (SCRATCH_PAGES.start.raw()..SCRATCH_PAGES.end.raw()).map(Gfn::new).collect();
    // A stub takes the first hole, so what one has left stands at the start; what hvmloader takes, at the end.
    let is_there = present(&candidates, xen);
    left.extend(
        candidates.into_iter().zip(is_there).take_while(|(_, is_there)| *is_there).map(|(gfn, _)| gfn),
    );
    let nr_done = decrease(Order::PAGE_4K, &left, xen);
    if nr_done == left.len() { Ok(()) } else { Err(super::DECREASE_FAILED) }
}

/// Moves every page that waits to its place: there is a hole, or a page that is the same or not yet filled.
fn put_back<X: XenExchange>(insurance: Insurance, xen: &mut X) -> Result<(), Error> {
    let (pages, waiting) = (region(insurance.region), region(insurance.waiting));
    for ((&page, &copy), is_there) in pages.iter().zip(&waiting).zip(present(&waiting, xen)) {
        if is_there && !(0..ATTEMPTS).any(|_| xen.move_page(copy, page).is_ok()) {
            return Err(Error::Xen { step: Step::Move, errno: Errno::EINVAL });
        }
    }
    let missing = present(&pages, xen).into_iter().zip(pages).find(|(is_there, _)| !is_there);
    missing.map_or(Ok(()), |(_, gfn)| Err(Error::Lost { gfn }))
}

/// Tells behind which of these gfns there is memory.
fn present<X: XenExchange>(gfns: &[Gfn], xen: &mut X) -> Vec<bool> {
    let mut errors = vec![0; gfns.len()];
    xen.map(Access::Read, gfns, &mut errors);
    let present = (0..gfns.len()).map(|slot| xen.mfn(slot).is_some()).collect();
    xen.unmap();
    present
}
