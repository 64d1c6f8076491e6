//! One connection to a back end: two queues, their grants and their event channels.
//!
//! **Takes** the front end's memory and a back end's domain. **Gives** frames both ways. **Never** allocates, grants or
//! calls Xen per frame: events are sent when the back end asks for them, at most one a batch and direction.
#![allow(unsafe_code, reason = "hands the front end's pages to its rings and queues")]

use super::buffers::Buffers;
use super::rx::{Frame, NR_RX_PAGES, RxQueue};
use super::tx::{NR_TX_PAGES, TxPages, TxQueue};
use super::{NR_RX_SLOTS, NetError};
use crate::grants::{Access, GrantTable, Lease};
use crate::hypercall::event_channel;
use crate::memory::{Memory, Pages};
use crate::ring::{FrontRing, Notify};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;
use xen_abi::errno::Errno;
use xen_abi::types::{Domid, Gref, Port};

// Where what lies in the front end's pages.
const TX_RING: usize = 0;
const RX_RING: usize = 1;
const TX_PAGES: Range<usize> = 2..2 + NR_TX_PAGES;
const RX_PAGES: Range<usize> = TX_PAGES.end..TX_PAGES.end + NR_RX_PAGES;

const NR_PAGES: usize = RX_PAGES.end;

/// The pages of a link, which one link at a time uses.
#[derive(Debug)]
pub(super) struct LinkPages(Pages);

impl LinkPages {
    /// Allocates them, for ever.
    pub(super) fn new(memory: &Memory) -> Option<Self> {
        memory.pages(NR_PAGES).map(Self)
    }
}

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
    /// Of the transmit and the receive ring.
    rings: [Lease; 2],
    /// Of the transmit buffers.
    buffers: Vec<Lease>,
}

impl Link {
    /// Prepares a connection to a back end in `backend`; it works once the back end has mapped the rings.
    ///
    /// # Errors
    /// Grants or event channels have run out; nothing is left behind.
    pub(super) fn new(
        LinkPages(pages): &LinkPages,
        grants: &mut GrantTable,
        backend: Domid,
        split: bool,
    ) -> Result<Self, LinkError> {
        let ports = Ports::new(backend, split).map_err(LinkError::NoPort)?;
        let Some(leases) = lease(pages, grants, backend) else {
            ports.close();
            return Err(LinkError::NoGrant);
        };
        Ok(Self::start(pages, leases, ports))
    }

    fn start(pages: &Pages, mut leases: Leases, ports: Ports) -> Self {
        let tx_grefs: Box<[Gref]> = leases.buffers_tx.iter().map(Lease::gref).collect();
        // SAFETY: the pages stay mapped for ever (`Pages`) and are this link's alone (`LinkPages`); this one becomes
        // the transmit ring, and nothing else.
        let tx_ring = unsafe { FrontRing::new(pages.page(TX_RING)) };
        // SAFETY: as above, for the receive ring.
        let rx_ring = unsafe { FrontRing::new(pages.page(RX_RING)) };
        // SAFETY: the pages are mapped for ever and this link's alone; `lease` grants them read-only.
        let tx_pages = unsafe { TxPages::new(pages.page(TX_PAGES.start), tx_grefs) };
        // SAFETY: the pages are mapped for ever and this link's alone; lease i is that of page i, the only one.
        let buffers =
            unsafe { Buffers::new(pages.page(RX_PAGES.start), NR_RX_PAGES, leases.buffers_rx.into()) };
        leases.rings.iter_mut().chain(&mut leases.buffers_tx).for_each(Lease::lend);
        let mut rx = RxQueue::new(rx_ring, buffers);
        // Nobody listens yet; the back end looks at the ring when it connects.
        let _ = rx.refill();
        Self {
            rx,
            tx: TxQueue::new(tx_ring, tx_pages),
            ports,
            rings: leases.rings,
            buffers: leases.buffers_tx,
        }
    }

    /// Returns the grants of the transmit and the receive ring.
    pub(super) const fn ring_refs(&self) -> (Gref, Gref) {
        let [tx, rx] = &self.rings;
        (tx.gref(), rx.gref())
    }

    /// Wakes the back end that has just connected: it has not been told of the buffers.
    pub(super) fn kick(&mut self) {
        self.flush();
        send(self.ports.rx);
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
        // Without room for an answer no frame is taken: then only room is worth waking up for.
        if self.tx.has_room()? { self.rx.request_event() } else { self.tx.request_event() }
    }

    /// Ends the connection; returns the leases of pages that the back end still uses.
    pub(super) fn end(self, grants: &mut GrantTable) -> Vec<Lease> {
        self.ports.close();
        let leases = self.rings.into_iter().chain(self.buffers).chain(self.rx.into_leases());
        release(grants, leases)
    }
}

/// The grants of a link.
struct Leases {
    rings: [Lease; 2],
    buffers_tx: Vec<Lease>,
    buffers_rx: Vec<Lease>,
}

/// Prepares the grants of a link's pages: the transmit buffers read-only, all else writable. Nothing is lent yet.
fn lease(pages: &Pages, grants: &mut GrantTable, backend: Domid) -> Option<Leases> {
    let mut leases = Vec::with_capacity(NR_PAGES);
    for index in 0..RX_PAGES.start + NR_RX_SLOTS {
        let access = if TX_PAGES.contains(&index) { Access::ReadOnly } else { Access::ReadWrite };
        leases.extend(grants.lease(pages, index, backend, access));
    }
    if leases.len() < RX_PAGES.start + NR_RX_SLOTS {
        release(grants, leases);
        return None;
    }
    let buffers_rx = leases.split_off(RX_PAGES.start);
    let buffers_tx = leases.split_off(TX_PAGES.start);
    let rings = leases.try_into().ok()?;
    Some(Leases { rings, buffers_tx, buffers_rx })
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
