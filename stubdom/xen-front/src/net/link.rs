//! One connection to a back end: two queues, their grants and their event channels.
//!
//! **Takes** the front end's memory and a back end's domain. **Gives** frames both ways. **Never** allocates, grants or
//! calls Xen per frame: events are sent when the back end asks for them, at most one a batch and direction.
#![allow(unsafe_code, reason = "hands the front end's pages to its rings and queues")]

use super::buffers::Buffers;
use super::rx::{Frame, NR_RX_PAGES, RxQueue};
use super::tx::{NR_TX_PAGES, TxPages, TxQueue};
use super::{NR_RX_SLOTS, NetError};
use crate::errno::Errno;
use crate::grants::{Access, GrantTable, Lease};
use crate::hypercall::event_channel;
use crate::memory::Pages;
use crate::ring::{FrontRing, Notify};
use crate::types::{Domid, Gref, Port};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

// Where what lies in the front end's pages.
const TX_RING: usize = 0;
const RX_RING: usize = 1;
const TX_PAGES: Range<usize> = 2..2 + NR_TX_PAGES;
const RX_PAGES: Range<usize> = TX_PAGES.end..TX_PAGES.end + NR_RX_PAGES;

/// Pages that a front end needs.
pub(super) const NR_PAGES: usize = RX_PAGES.end;

/// Why a connection could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkError {
    /// The grant table is full.
    NoGrant,
    /// Xen refused an event channel.
    NoPort(Errno),
}

/// The event channels of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) tx: Port,
    /// The same as `tx` where the back end does not split them.
    pub(super) rx: Port,
}

impl Ports {
    fn new(backend: Domid, split: bool) -> Result<Self, Errno> {
        let tx = event_channel::alloc_unbound(backend)?;
        let rx = if split { event_channel::alloc_unbound(backend) } else { Ok(tx) };
        if rx.is_err() {
            close(tx);
        }
        Ok(Self { tx, rx: rx? })
    }

    pub(super) fn is_split(self) -> bool {
        self.tx != self.rx
    }

    fn close(self) {
        close(self.tx);
        if self.is_split() {
            close(self.rx);
        }
    }
}

/// A connection to a back end.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) rx: RxQueue,
    pub(super) tx: TxQueue,
    pub(super) ports: Ports,
    /// The rings' pages, transmit first, then the transmit buffers'.
    leases: Vec<Lease>,
}

impl Link {
    /// Prepares a connection to a back end in `backend`; it works once the back end has mapped the rings.
    ///
    /// # Errors
    /// Grants or event channels have run out; nothing is left behind.
    ///
    /// # Safety
    /// `pages` are [`NR_PAGES`] pages that only this link uses while it or a lease of it lives.
    pub(super) unsafe fn new(
        pages: &Pages,
        grants: &mut GrantTable,
        backend: Domid,
        split: bool,
    ) -> Result<Self, LinkError> {
        let ports = Ports::new(backend, split).map_err(LinkError::NoPort)?;
        let leased = lease(pages, grants, TX_RING..TX_PAGES.end, backend).and_then(|leases| {
            match lease(pages, grants, RX_PAGES.start..RX_PAGES.start + NR_RX_SLOTS, backend) {
                Some(buffers) => Some((leases, buffers)),
                None => {
                    release(grants, leases);
                    None
                }
            }
        });
        let Some((mut leases, buffers)) = leased else {
            ports.close();
            return Err(LinkError::NoGrant);
        };
        // SAFETY: the pages stay mapped for ever (`Pages`) and are this link's alone (the caller's obligation); this
        // page becomes the transmit ring, and nothing else.
        let tx_ring = unsafe { FrontRing::new(pages.page(TX_RING)) };
        // SAFETY: as above, for the receive ring.
        let rx_ring = unsafe { FrontRing::new(pages.page(RX_RING)) };
        let tx_grefs: Box<[Gref]> = leases.iter().skip(TX_PAGES.start).map(Lease::gref).collect();
        // SAFETY: the pages are mapped for ever and this link's alone; `lease` grants them read-only.
        let tx_pages = unsafe { TxPages::new(pages.page(TX_PAGES.start), tx_grefs) };
        // SAFETY: the pages are mapped for ever and this link's alone; lease i is that of page i, the only one.
        let buffers = unsafe { Buffers::new(pages.page(RX_PAGES.start), NR_RX_PAGES, buffers.into()) };
        leases.iter_mut().for_each(Lease::lend);
        let mut rx = RxQueue::new(rx_ring, buffers);
        // Nobody listens yet; the back end looks at the ring when it connects.
        let _ = rx.refill();
        Ok(Self { rx, tx: TxQueue::new(tx_ring, tx_pages), ports, leases })
    }

    /// Returns the grants of the transmit and the receive ring.
    pub(super) fn ring_refs(&self) -> Option<(Gref, Gref)> {
        match self.leases.as_slice() {
            [tx, rx, ..] => Some((tx.gref(), rx.gref())),
            _ => None,
        }
    }

    /// Takes the next frame and the queue for an answer; nothing while there is no room for an answer.
    pub(super) fn receive(&mut self) -> Result<Option<(Frame<'_>, &mut TxQueue)>, NetError> {
        if !self.tx.has_room()? {
            return Ok(None);
        }
        if self.rx.wants_refill() {
            self.flush();
        }
        Ok(self.rx.frame()?.map(|frame| (frame, &mut self.tx)))
    }

    /// Shows the back end what was sent and gives it the free buffers.
    pub(super) fn flush(&mut self) {
        let (tx, rx) = (self.tx.publish(), self.rx.refill());
        if tx == Notify::Wanted {
            send(self.ports.tx);
        }
        if rx == Notify::Wanted && (self.ports.is_split() || tx != Notify::Wanted) {
            send(self.ports.rx);
        }
    }

    /// Asks for events; true if there is something to do already.
    pub(super) fn request_events(&mut self) -> Result<bool, NetError> {
        self.flush();
        Ok(self.rx.request_event()? | self.tx.request_event()?)
    }

    /// Ends the connection; returns the leases of pages that the back end still uses.
    pub(super) fn end(self, grants: &mut GrantTable) -> Vec<Lease> {
        self.ports.close();
        let leases = self.leases.into_iter().chain(self.rx.into_leases());
        release(grants, leases)
    }
}

/// Prepares the grants of some pages: the transmit buffers read-only, all else writable.
fn lease(pages: &Pages, grants: &mut GrantTable, range: Range<usize>, backend: Domid) -> Option<Vec<Lease>> {
    let mut leases = Vec::with_capacity(range.len());
    for index in range {
        let access = if TX_PAGES.contains(&index) { Access::ReadOnly } else { Access::ReadWrite };
        match pages.mfns().get(index).and_then(|&mfn| grants.lease(mfn, backend, access)) {
            Some(lease) => leases.push(lease),
            None => {
                release(grants, leases);
                return None;
            }
        }
    }
    Some(leases)
}

/// Ends leases; returns those that the other domain still uses.
pub(super) fn release(grants: &mut GrantTable, leases: impl IntoIterator<Item = Lease>) -> Vec<Lease> {
    leases.into_iter().filter_map(|lease| grants.end_lease(lease).err()).collect()
}

fn send(port: Port) {
    if let Err(errno) = event_channel::send(port) {
        log::warn!("network: event on port {}: {errno}", port.raw());
    }
}

fn close(port: Port) {
    if let Err(errno) = event_channel::close(port) {
        log::warn!("network: closing port {}: {errno}", port.raw());
    }
}
