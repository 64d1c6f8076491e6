//! The exchange of one frame, as stubctl asks for it step by step.
//!
//! **Takes** stubctl's commands. **Gives** the answer to each. **Never** leaves the target otherwise than whole: whatever
//! happens to stubctl, the exchange under way is finished from where it is.

use crate::calls;
use crate::target::TargetXen;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use control::exchange::{self as wire, MAX_RESERVED, Reason};
use migration::exchange::{
    Alone, Blocker, Error, Exchange, Outcome, Plan, Refusal, Request, Reserved, Role, Swapping, repair,
};
use migration::xen::{Errno, XenExchange};
use xen_abi::types::Mfn;
use xen_front::clock::Clock;
use xen_front::ledger;

/// What the stub answers.
pub(crate) enum Reply {
    /// Ready to swap, or fit for it.
    Prepared(wire::Prepared),
    /// The target may run.
    Swapped(wire::Swapped),
    /// Over, and done.
    Exchanged(wire::Exchanged),
    /// Not done; why, by name and in words.
    NotExchanged(Reason, String),
    /// Old frames that are held.
    Held(u64),
    /// Over, and nothing was done.
    Over,
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        Self::NotExchanged(reason(&error), error.to_string())
    }
}

/// What is under way.
#[derive(Default)]
pub(crate) struct Service {
    reserved: Vec<Reserved>,
    exchange: Option<Exchange>,
    /// Old frames of the last exchange that the target owned when it was asked last.
    held: Vec<Mfn>,
}

impl Service {
    /// Tells whether the window is in use.
    pub(crate) fn is_busy(&self) -> bool {
        self.exchange.is_some()
    }

    /// Notes pages that must stay; gives whether there was room.
    pub(crate) fn reserve(&mut self, reserved: &wire::Reserved) -> bool {
        let role = match reserved.role {
            wire::Role::XenHeap => Role::XenHeap,
            wire::Role::DeviceModel => Role::DeviceModel,
        };
        let fits = self.reserved.len() < MAX_RESERVED;
        if fits {
            self.reserved.push(Reserved { first: reserved.first, nr_frames: reserved.nr_frames, role });
        }
        fits
    }

    /// Looks at the frame and prepares.
    pub(crate) fn begin(&mut self, order: &wire::Exchange, xen: &mut TargetXen, clock: Clock) -> Reply {
        let began_ns = clock.now_ns();
        xen.set_fuse(order.panic_at);
        let reserved = core::mem::take(&mut self.reserved);
        let request = Request {
            mfn: order.mfn,
            reserved: &reserved,
            scratch_region: order.scratch_region,
            now_ns: began_ns,
        };
        match Exchange::prepare(&request, xen) {
            Ok(exchange) => {
                let ns = clock.now_ns().saturating_sub(began_ns);
                let prepared = wire::Prepared { gfn: exchange.gfn(), scope: scope(&exchange), ns };
                if order.only_check {
                    return release(exchange, prepared, xen);
                }
                self.exchange = Some(exchange);
                Reply::Prepared(prepared)
            }
            Err(error) => error.into(),
        }
    }

    /// Swaps; the target stands still. `None` without an exchange under way.
    pub(crate) fn swap(&mut self, xen: &mut TargetXen, clock: Clock) -> Option<Reply> {
        let exchange = self.exchange.as_mut()?;
        let (began_ns, before) = (clock.now_ns(), ledger::counts());
        let result = exchange.swap(xen);
        let ns = clock.now_ns().saturating_sub(began_ns);
        let nr_hypercalls = calls::on_wire(&ledger::counts().since(&before));
        Some(match result {
            Ok(outcome) => Reply::Swapped(wire::Swapped { outcome: on_wire(outcome), ns, nr_hypercalls }),
            Err(error) => error.into(),
        })
    }

    /// Puts right what another stub has left.
    pub(crate) fn repair(order: &wire::Repair, xen: &mut TargetXen) -> Reply {
        let swapping =
            order.swapping.map(|wire::Swapping { gfn, mfn, waiting }| Swapping { gfn, mfn, waiting });
        match repair(swapping, order.scratch_region, xen) {
            Ok(()) => Reply::Over,
            Err(error) => error.into(),
        }
    }

    /// Counts the old frames that the target still owns; `None` with an exchange under way.
    pub(crate) fn count_held(&mut self, xen: &mut TargetXen) -> Option<Reply> {
        if self.is_busy() {
            return None;
        }
        xen.retain_orphans(&mut self.held);
        Some(Reply::Held(self.held.len() as u64))
    }

    /// Scrubs and releases; `None` without an exchange under way.
    pub(crate) fn finish(&mut self, xen: &mut TargetXen, clock: Clock) -> Option<Reply> {
        let began_ns = clock.now_ns();
        let finished = self.exchange.take()?.finish(xen);
        xen.set_fuse(None);
        Some(match finished {
            Ok(None) => Reply::Over,
            Ok(Some(report)) => {
                if let Some(errno) = report.lost_read_only {
                    log::warn!("{} was read-only and is not any more: {errno}", report.gfn);
                }
                let migration::exchange::Report { gfn, old, new, held, .. } = report;
                self.held = held;
                let nr_held = self.held.len() as u64;
                let ns = clock.now_ns().saturating_sub(began_ns);
                Reply::Exchanged(wire::Exchanged { gfn, old, new, nr_held, ns })
            }
            Err(error) => error.into(),
        })
    }
}

/// Undoes what was prepared, after a check.
fn release(exchange: Exchange, prepared: wire::Prepared, xen: &mut TargetXen) -> Reply {
    match exchange.finish(xen) {
        Ok(_) => Reply::Prepared(prepared),
        Err(error) => error.into(),
    }
}

fn scope(exchange: &Exchange) -> wire::Scope {
    match (exchange.plan(), exchange.alone()) {
        (Plan::Superpage, _) => wire::Scope::Superpage,
        (Plan::Page, None) => wire::Scope::Page,
        (Plan::Page, Some(Alone::Asked)) => wire::Scope::SplitAsAsked,
        (Plan::Page, Some(Alone::Neighbour)) => wire::Scope::SplitByNeighbour,
        (Plan::Page, Some(Alone::NoMemory)) => wire::Scope::SplitForMemory,
    }
}

fn on_wire(outcome: Outcome) -> wire::Outcome {
    match outcome {
        Outcome::Page => wire::Outcome::Page,
        Outcome::Superpage => wire::Outcome::Superpage,
        Outcome::SplitSuperpage => wire::Outcome::SplitSuperpage,
    }
}

fn reason(error: &Error) -> Reason {
    match error {
        Error::NoGfn { .. } => Reason::NoGfn,
        Error::Refused(Refusal::NotTheTargets { .. }) => Reason::NotTheTargets,
        Error::Refused(Refusal::Blocked { blocker, .. }) => blocked(blocker),
        Error::NoScratch => Reason::NoScratch,
        Error::NoMemory => Reason::NoMemory,
        Error::Moved { .. } => Reason::Moved,
        Error::CopyDiffers { .. } => Reason::CopyDiffers,
        Error::Xen { .. } => Reason::Xen,
        Error::Lost { .. } => Reason::Lost,
    }
}

fn blocked(blocker: &Blocker) -> Reason {
    match blocker {
        Blocker::Granted(_) => Reason::Granted,
        Blocker::Type(migration::xen::PageType::Ioreq) => Reason::Ioreq,
        Blocker::Unmappable(Errno::EBUSY) => Reason::NotTheTargets,
        Blocker::Type(_) | Blocker::Unmappable(Errno::EINVAL) => Reason::Broken,
        Blocker::Unmappable(_) => Reason::Xen,
        Blocker::LooksPinned => Reason::LooksPinned,
        Blocker::Reserved(role) => match role {
            Role::Store => Reason::Store,
            Role::Console => Reason::Console,
            Role::Ioreq => Reason::Ioreq,
            Role::Ring => Reason::Ring,
            Role::IdentPt => Reason::IdentPt,
            Role::VmTss => Reason::VmTss,
            Role::XenHeap => Reason::XenHeap,
            Role::DeviceModel => Reason::DeviceModel,
        },
    }
}
