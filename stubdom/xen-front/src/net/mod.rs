//! A network front end (`xen/include/public/io/netif.h`): one queue, receive copy, scatter-gather, GSO receive,
//! checksum offload, split event channels where the back end has them.
//!
//! **Takes** memory, once, and the vif that the toolstack has plugged in. **Gives** whole Ethernet frames, as slices of
//! the pages they were received in, and room for frames to send. **Never** ends because a back end goes away or
//! misbehaves: the link goes down, and comes up again with the next back end.
//!
//! What a back end writes is copied and checked before it means anything; a frame's bytes are looked at only after the
//! back end has lost access to them.

mod buffers;
mod error;
mod frame;
mod handshake;
mod link;
mod rx;
mod tx;
mod xenbus;

pub use error::NetError;
pub use rx::{Frame, RxCounters};
pub use tx::{TxCounters, TxQueue};

use crate::grants::Lease;
use crate::memory::Memory;
use alloc::string::String;
use alloc::vec::Vec;
use link::{Link, LinkPages};
use xen_abi::types::Port;
use xenbus::Backend;

/// Slots, and so buffers, of the receive ring.
pub const NR_RX_SLOTS: usize = 256;

/// The most data slots of one frame: 64 KiB of payload and the headers in front of it.
pub const MAX_FRAME_PAGES: usize = 17;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A network front end: the device `device/vif/N`.
#[derive(Debug)]
pub struct Netfront {
    /// The device's own directory in xenstore, below the domain's.
    path: String,
    pages: LinkPages,
    backend: Option<Backend>,
    link: Option<Link>,
    /// Frames can flow.
    up: bool,
    /// The MAC address of a link that has just come up.
    came_up: Option<Mac>,
    /// The back end broke the protocol; cleared when it goes away.
    fault: Option<NetError>,
    /// Grants that a former back end has not let go of.
    stale: Vec<Lease>,
}

impl Netfront {
    /// Makes the front end of vif `index`, which need not be plugged in yet: [`Netfront::follow`] connects it.
    /// `None` if there is no memory: it takes 1.2 MiB.
    pub fn new(memory: &Memory, index: u32) -> Option<Self> {
        let pages = LinkPages::new(memory)?;
        let path = alloc::format!("device/vif/{index}");
        Some(Self {
            path,
            pages,
            backend: None,
            link: None,
            up: false,
            came_up: None,
            fault: None,
            stale: Vec::new(),
        })
    }

    /// Tells whether frames can flow.
    pub const fn is_up(&self) -> bool {
        self.up
    }

    /// Returns the MAC address of a link that has come up since this was asked last.
    pub fn take_link_up(&mut self) -> Option<Mac> {
        self.came_up.take()
    }

    /// Returns the event channels to wait on: none, one or two.
    pub fn ports(&self) -> impl Iterator<Item = Port> + use<> {
        let ports = self.link.as_ref().map(|link| link.ports);
        let rx = ports.filter(|ports| ports.is_split()).map(|ports| ports.rx);
        ports.map(|ports| ports.tx).into_iter().chain(rx)
    }

    /// Takes the next received frame, with room for an answer. None while there is no such room.
    pub fn receive(&mut self) -> Option<(Frame<'_>, &mut TxQueue)> {
        let link = self.link.as_mut().filter(|_| self.up)?;
        match link.receive() {
            Ok(received) => received,
            Err(error) => {
                fail(&mut self.up, &mut self.fault, error);
                None
            }
        }
    }

    /// Returns the queue to send a frame by, if there is room.
    pub fn transmit(&mut self) -> Option<&mut TxQueue> {
        let link = self.link.as_mut().filter(|_| self.up)?;
        match link.tx.has_room() {
            Ok(room) => room.then_some(&mut link.tx),
            Err(error) => {
                fail(&mut self.up, &mut self.fault, error);
                None
            }
        }
    }

    /// Shows the back end what was sent, and gives it the buffers of received frames back: at most one event each.
    pub fn flush(&mut self) {
        if let Some(link) = self.link.as_mut().filter(|_| self.up) {
            link.flush();
        }
    }

    /// Asks the back end for events, before sleeping; true if there is something to do already.
    pub fn request_events(&mut self) -> bool {
        let Some(link) = self.link.as_mut().filter(|_| self.up) else { return false };
        link.request_events().unwrap_or_else(|error| {
            fail(&mut self.up, &mut self.fault, error);
            false
        })
    }

    /// Tells whether the back end broke the protocol: [`Netfront::follow`] must close the link.
    pub const fn has_failed(&self) -> bool {
        self.fault.is_some() && self.link.is_some()
    }

    /// Returns what the current connection has received and sent.
    pub fn counters(&self) -> Option<(RxCounters, TxCounters)> {
        self.link.as_ref().map(|link| (link.rx.counters, link.tx.counters))
    }
}

fn fail(up: &mut bool, fault: &mut Option<NetError>, error: NetError) {
    log::error!("network: back end broke the protocol: {error}");
    *up = false;
    *fault = Some(error);
}
