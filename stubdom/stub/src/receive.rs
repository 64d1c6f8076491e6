//! The reception of one stream: from the token to the report.
//!
//! **Takes** the bytes of the stream's connection, as they come. **Gives** progress and, at the end, a report or the
//! reason why not. **Never** copies a page but once: from the receive buffer into the target's frame.

use crate::broker::Dom0;
use crate::calls;
use crate::link::Link;
use crate::net::Net;
use crate::ring::Ring;
use crate::target::TargetXen;
use alloc::boxed::Box;
use control::{FromStub, Pace, Phase, Progress, Proof, Receive, Report, Stage, WrongToken};
use core::fmt;
use migration::engine::{Config, Service};
use migration::plan::HEAP_SHARE;
use migration::restore::{self, Restore};
use xen_abi::types::{Gfn, Port};
use xen_front::ledger;

/// Least time between two progress messages of one phase, in nanoseconds.
const PROGRESS_NS: u64 = 200_000_000;

/// Why a reception ends without a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReceiveError {
    /// The connection did not open with the token.
    Intruder,
    /// The stream, or what it asks for.
    Restore(restore::Error),
    /// The stream is complete and has not named one of the two rings.
    NoRing(&'static str),
}

impl fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Intruder => f.write_str("a connection that does not open with the token"),
            Self::Restore(error) => error.fmt(f),
            Self::NoRing(name) => write!(f, "expected HVM_PARAMS to name {name}, got a stream without it"),
        }
    }
}

/// One reception under way.
pub(crate) struct Reception {
    proof: Proof,
    restore: Box<Restore>,
    calls_before: ledger::Counts,
    stages_before_ns: [u64; Stage::ALL.len()],
    pace: Pace,
}

impl Reception {
    /// Gets ready for a stream; allocates all that it will need but a bounded share of the heap, for keeping track of pages.
    ///
    /// # Errors
    /// No memory for the bookkeeping.
    pub(crate) fn new(order: &Receive, xen: &mut TargetXen) -> Result<Self, ReceiveError> {
        let service = |port, domid| Service { port: Port::new(port), domid };
        let config = Config {
            max_pages: order.max_pages,
            map_bytes: xen_front::heap::usage().1 / usize::from(HEAP_SHARE),
            store: service(order.store_port, order.store_domid),
            console: service(order.console_port, order.console_domid),
        };
        let (calls_before, stages_before_ns) = (ledger::counts(), xen.stages.spent_ns());
        let restore = Box::new(Restore::new(config, xen).map_err(ReceiveError::Restore)?);
        let (proof, pace) = (Proof::new(order.token), Pace::new(PROGRESS_NS));
        Ok(Self { proof, restore, calls_before, stages_before_ns, pace })
    }

    /// Takes what the ring holds: page contents straight into frames, all else by way of its private buffer; returns how
    /// many bytes it took.
    ///
    /// # Errors
    /// As [`Reception::take`].
    pub(crate) fn take_ring(
        &mut self,
        ring: &mut Ring,
        xen: &mut TargetXen,
        link: &mut Link,
    ) -> Result<usize, ReceiveError> {
        let nr_unseen = self.restore.nr_unseen();
        if nr_unseen > 0 && !ring.is_buffered() {
            return Ok(ring.pour(nr_unseen as usize, |shared, at, len| {
                let put = |slot, offset| xen.fill_shared(slot, offset, shared, at, len);
                // No more than `nr_unseen` come, which is a u32.
                self.restore.fill(u32::try_from(len).unwrap_or(u32::MAX), put);
            }));
        }
        let mut result = Ok(0);
        ring.receive(|bytes| {
            result = self.take(bytes, xen, link);
            result.unwrap_or(0)
        });
        result
    }

    /// Takes what the network holds; returns how many bytes it took.
    ///
    /// # Errors
    /// As [`Reception::take`].
    pub(crate) fn take_net(
        &mut self,
        net: &mut Net,
        xen: &mut TargetXen,
        link: &mut Link,
    ) -> Result<usize, ReceiveError> {
        let mut result = Ok(0);
        net.stack().receive(|bytes| {
            result = self.take(bytes, xen, link);
            result.unwrap_or(0)
        });
        result
    }

    /// Takes what has arrived; returns how many bytes it took.
    ///
    /// # Errors
    /// What ends the reception; [`ReceiveError::Intruder`] ends only the connection.
    fn take(&mut self, bytes: &[u8], xen: &mut TargetXen, link: &mut Link) -> Result<usize, ReceiveError> {
        if !self.is_proven() {
            return self.proof.take(bytes).map_err(|WrongToken| ReceiveError::Intruder);
        }
        if self.restore.report().is_some() && bytes.is_empty() {
            return Ok(0);
        }
        self.restore.push(bytes, xen, &mut Dom0(link)).map_err(ReceiveError::Restore)
    }

    /// Takes the end of the connection.
    ///
    /// # Errors
    /// The stream is not complete.
    pub(crate) fn close(&mut self, xen: &mut TargetXen) -> Result<(), ReceiveError> {
        if !self.is_proven() {
            return Err(ReceiveError::Intruder);
        }
        self.restore.close(xen).map(drop).map_err(ReceiveError::Restore)
    }

    /// Tells whether the client is stubctl: the whole token has come.
    pub(crate) fn is_proven(&self) -> bool {
        self.proof.is_proven()
    }

    /// Forgets what an unproven client has sent.
    pub(crate) fn forget_client(&mut self) {
        self.proof.restart();
    }

    /// Returns what the reception came to, once it is complete.
    ///
    /// # Errors
    /// The target lacks one of its rings.
    pub(crate) fn restored(&self, xen: &TargetXen) -> Result<Option<FromStub<'static>>, ReceiveError> {
        let Some(restore::Report { nr_bytes, tally, target }) = self.restore.report() else {
            return Ok(None);
        };
        let ring = |gfn: Option<Gfn>, name| gfn.ok_or(ReceiveError::NoRing(name));
        let report = Report {
            nr_bytes,
            nr_pages: tally.nr_pages,
            nr_superpages_1g: target.census.nr_1g,
            nr_superpages_2m: target.census.nr_2m,
            nr_pages_4k: target.census.nr_4k,
            nr_given_back: tally.nr_given_back,
            nr_mismatches: tally.nr_mismatches,
            mismatches: core::array::from_fn(|nr| tally.mismatches.get(nr).copied().flatten()),
            nr_hypercalls: calls::on_wire(&ledger::counts().since(&self.calls_before)),
            stage_ns: self.stage_ns(xen),
        };
        if target.nr_owned != target.nr_expected {
            log::warn!("the target owns {} pages, expected {}", target.nr_owned, target.nr_expected);
        }
        let store = ring(target.store, "HVM_PARAM_STORE_PFN")?;
        let console = ring(target.console, "HVM_PARAM_CONSOLE_PFN")?;
        Ok(Some(FromStub::Restored { store, console, report }))
    }

    /// Returns how far it is, when that is worth a message: a new phase, or a while after the last.
    pub(crate) fn progress(&mut self, now_ns: u64) -> Option<Progress> {
        let progress = self.state();
        self.pace.is_due(progress.phase, now_ns).then_some(progress)
    }

    /// Returns how far it is.
    pub(crate) fn state(&self) -> Progress {
        let tally = self.restore.tally();
        let phase = match tally.pass {
            _ if !self.is_proven() => Phase::Listening,
            _ if self.restore.is_finishing() => Phase::Finishing,
            0 => Phase::Opening,
            1 => Phase::Memory,
            _ => Phase::Precopy,
        };
        let nr_bytes = self.restore.place().offset;
        Progress { phase, nr_bytes, nr_pages: tally.nr_pages, pass: tally.pass }
    }

    fn stage_ns(&self, xen: &TargetXen) -> [u64; Stage::ALL.len()] {
        let now = xen.stages.spent_ns();
        core::array::from_fn(|stage| now[stage] - self.stages_before_ns[stage])
    }
}
