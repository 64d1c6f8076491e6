//! The survey of a frame and the region around it, while the guest runs.
//!
//! Each question is asked only of pages that it can still matter for. The look of the pages comes last: it reads them, and
//! is a guess, so that what Xen says for sure goes before it.

use super::{
    Blocker, Error, Exchange, NEW, Plan, Refusal, Request, Reserved, Role, Step, Survey, at, pinned, plan,
    region, retry,
};
use crate::xen::{Errno, PageType, XenExchange};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use xen_abi::types::{Gfn, PAGE_SIZE};

impl Exchange {
    /// Learns all that decides about the frame and the region around it.
    pub(super) fn survey<X: XenExchange>(
        &mut self,
        request: &Request<'_>,
        xen: &mut X,
    ) -> Result<Survey, Error> {
        let reserved = reserved(request, xen)?;
        let region = region(self.gfn);
        let frames = self.look(&region, xen);
        let mut blockers = Vec::new();
        for (&gfn, &error) in region.iter().zip(&self.errors) {
            if error != 0 {
                blockers.push((gfn, Blocker::Unmappable(Errno::new(error))));
            }
            let role = reserved.iter().find(|reserved| reserved.holds(gfn));
            blockers.extend(role.map(|reserved| (gfn, Blocker::Reserved(reserved.role))));
        }
        if retry(|| xen.is_grant_table(self.mfn)).map_err(at(Step::Grants))? {
            blockers.push((self.gfn, Blocker::Reserved(Role::XenHeap)));
        }
        let mut survey = Survey { mfn: self.mfn, gfn: self.gfn, frames, blockers };
        let pages = concerned(&survey, request)?;
        for &gfn in &pages {
            survey.blockers.extend(self.type_blocker(gfn, xen)?.map(|blocker| (gfn, blocker)));
        }
        survey.blockers.extend(grant_blocker(&[self.gfn], xen)?);
        if pages.len() > 1 {
            survey.blockers.extend(grant_blocker(&pages, xen)?);
        }
        let pages = concerned(&survey, request)?;
        survey.blockers.extend(pinned_pages(&pages, request.now_ns, xen));
        Ok(survey)
    }

    /// Asks Xen whether a page is ordinary memory.
    fn type_blocker<X: XenExchange>(&mut self, gfn: Gfn, xen: &mut X) -> Result<Option<Blocker>, Error> {
        let page_type = retry(|| xen.page_type(gfn)).map_err(at(Step::PageType))?;
        if gfn == self.gfn {
            self.page_type = page_type;
        }
        Ok(match page_type {
            PageType::Ram => None,
            PageType::ReadOnly if gfn == self.gfn => None,
            PageType::ReadOnly | PageType::None | PageType::Ioreq => Some(Blocker::Type(page_type)),
        })
    }
}

/// Lists the pages that only dom0 knows the role of, and those that HVM parameters name.
fn reserved<X: XenExchange>(request: &Request<'_>, xen: &mut X) -> Result<Vec<Reserved>, Error> {
    let mut reserved = request.reserved.to_vec();
    for (index, role, unit) in plan::PARAMS {
        let value = retry(|| xen.param(index)).map_err(at(Step::Param))?;
        reserved.extend(plan::reserved_by(role, unit, value));
    }
    Ok(reserved)
}

/// Returns the pages that the rest of a survey is about: all of what could be exchanged whole, else the page. They are
/// mapped. A page that is refused already is not asked about any more.
fn concerned(survey: &Survey, request: &Request<'_>) -> Result<Vec<Gfn>, Refusal> {
    let is_whole = survey.plan()? == Plan::Superpage && request.scratch_region.is_some();
    Ok(if is_whole { region(survey.gfn) } else { vec![survey.gfn] })
}

/// Finds those of consecutive pages of a region, which stand in the new part of the window, that look as if Xen writes
/// to them.
fn pinned_pages<X: XenExchange>(pages: &[Gfn], now_ns: u64, xen: &X) -> Vec<(Gfn, Blocker)> {
    let mut bytes = Box::new([0; PAGE_SIZE]);
    let mut looks_pinned = |slot| {
        xen.read(slot, &mut bytes);
        pinned::looks_pinned(&bytes[..], now_ns)
    };
    let slots = region(pages[0]).into_iter().zip(NEW..).skip_while(|(gfn, _)| *gfn < pages[0]);
    let found = slots.take(pages.len()).filter(|(_, slot)| looks_pinned(*slot));
    found.map(|(gfn, _)| (gfn, Blocker::LooksPinned)).collect()
}

/// Asks whether one of these consecutive pages is granted.
pub(super) fn grant_blocker<X: XenExchange>(
    pages: &[Gfn],
    xen: &mut X,
) -> Result<Option<(Gfn, Blocker)>, Error> {
    let grant = retry(|| xen.grant_in_force(pages[0], pages.len() as u64)).map_err(at(Step::Grants))?;
    Ok(grant.map(|(gfn, gref)| (gfn, Blocker::Granted(gref))))
}
