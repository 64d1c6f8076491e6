//! A server of Xen's inter-domain byte channel, as libxenvchan's clients expect it
//! (`xen/include/public/io/libxenvchan.h`; behaviour: `tools/libs/vchan` of Xen's tree).
//!
//! **Takes** pages to share and the domain that may connect. **Gives** one conversation after another, each a stream of
//! bytes both ways. **Never** blocks, and never talks to two clients: the nodes that say where the channel is are
//! removed while a client is connected, and the event channel can be bound only once.
//!
//! A client that closes, dies or breaks the protocol ends its conversation; once it has let go of the pages the next
//! one may connect, with empty rings.

pub(crate) mod channel;
#[cfg(feature = "doors")]
pub(crate) mod doors;

use crate::grants::{Access, GrantTable, Lease};
use crate::hypercall::event_channel;
use crate::memory::{Memory, Pages};
use crate::ring::Notify;
use crate::shared_mem::SharedMem;
use crate::xenstore::{self, Xenstore};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use channel::{Channel, Client};
use xen_abi::errno::Errno;
use xen_abi::types::{Domid, PAGE_SHIFT, PAGE_SIZE, Port};

pub use channel::VchanError;

/// Why a server could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A ring of this order is none that libxenvchan takes.
    Order(u32),
    /// No pages are left.
    NoMemory,
    /// The grant table is full.
    NoGrant,
    /// Xen refused the event channel.
    NoPort(Errno),
}

/// How the conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nobody is connected.
    Awaited,
    /// A client is connected, or has left bytes behind that are still to be read.
    Open,
    /// The conversation has just ended; said once.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Offered,
    Open,
    /// This end has closed, and the client does not know yet.
    Closing,
}

/// A vchan server.
#[derive(Debug)]
pub struct Server {
    channel: Channel,
    state: State,
    port: Port,
    /// The rendezvous' directory in xenstore.
    path: String,
    /// The rendezvous is there.
    published: bool,
    /// The interface page's, the left ring's, the right ring's.
    leases: Vec<Lease>,
}

impl Server {
    /// Makes a channel that `client`, which must be allowed to read our part of xenstore, may connect to once
    /// [`Server::follow`] has said so at `path`. `left_order` is the log2 of the bytes of the ring that the client
    /// writes, `right_order` that of the one that it reads: 12 to 20, which is what libxenvchan takes.
    ///
    /// # Errors
    /// Another order; pages, grants or event channels have run out.
    pub fn new(
        memory: &Memory,
        grants: &mut GrantTable,
        client: Domid,
        path: &str,
        left_order: u32,
        right_order: u32,
    ) -> Result<Self, Error> {
        let (nr_left, nr_right) = (ring_pages(left_order)?, ring_pages(right_order)?);
        let nr_pages = 1 + nr_left + nr_right;
        let pages = memory.pages(nr_pages).ok_or(Error::NoMemory)?;
        let leases = (0..nr_pages).map(|page| grants.lease(&pages, page, client, Access::ReadWrite));
        let leases: Vec<Lease> = leases.collect::<Option<_>>().ok_or(Error::NoGrant)?;
        let port = event_channel::alloc_unbound(client).map_err(Error::NoPort)?;
        let rings = (view(&pages, 1, nr_left), view(&pages, 1 + nr_left, nr_right));
        let channel = Channel::new(view(&pages, 0, 1), rings.0, rings.1);
        let mut server =
            Self { channel, state: State::Closing, port, path: path.into(), published: false, leases };
        server.leases.iter_mut().for_each(Lease::lend);
        server.open();
        Ok(server)
    }

    /// Returns the event channel to wait on.
    pub const fn port(&self) -> Port {
        self.port
    }

    /// Tells whether a client is connected and has not closed its end.
    pub fn is_connected(&self) -> bool {
        self.state == State::Open && self.channel.client() == Client::Connected
    }

    /// Looks how the conversation is, gets ready for the next client when the last one has let go, and says in xenstore
    /// where the channel is as long as nobody is connected.
    ///
    /// # Errors
    /// Xenstore's; the next call tries again.
    pub fn follow(&mut self, store: &mut Xenstore) -> Result<Status, xenstore::Error> {
        let status = self.status();
        match self.state {
            State::Offered if !self.published => self.publish(store)?,
            State::Open | State::Closing if self.published => {
                store.remove(&self.path)?;
                self.published = false;
            }
            _ => {}
        }
        Ok(status)
    }

    /// Writes both nodes at once: a client reads the grant first and takes a missing port for a failure.
    fn publish(&mut self, store: &mut Xenstore) -> Result<(), xenstore::Error> {
        let ring_ref = self.leases.first().map_or(0, |lease| lease.gref().raw());
        store.transaction(|store, transaction| {
            store.write_in(transaction, &format!("{}/ring-ref", self.path), &format!("{ring_ref}"))?;
            store.write_in(
                transaction,
                &format!("{}/event-channel", self.path),
                &format!("{}", self.port.raw()),
            )
        })?;
        self.published = true;
        Ok(())
    }

    fn status(&mut self) -> Status {
        let client = self.channel.client();
        // A client that came and went before anybody looked has had its conversation too.
        if self.state == State::Offered && client != Client::Awaited {
            self.state = State::Open;
        }
        match (self.state, client) {
            (State::Open, Client::Gone) if self.channel.is_readable() => Status::Open,
            (State::Open | State::Closing, Client::Gone) => self.end(),
            (State::Open, _) => Status::Open,
            (State::Offered | State::Closing, _) => Status::Awaited,
        }
    }

    /// Tells whether the client has written what has not been read; asks for no event.
    pub fn is_readable(&self) -> bool {
        self.state == State::Open && self.channel.is_readable()
    }

    /// Reads what has come, at most `out`; 0 if nothing has. An event follows when more comes, once less than `out`
    /// was there.
    ///
    /// # Errors
    /// The client broke the protocol: the conversation is closed.
    pub fn read(&mut self, out: &mut [u8]) -> Result<usize, VchanError> {
        if self.state != State::Open {
            return Ok(0);
        }
        let result = self.channel.read(out);
        self.settle(result)
    }

    /// As [`Server::read`] of at most `most` bytes, but shows `take` where in the ring they are, one run after the other:
    /// so many bytes from that offset on. The client may write there all the while: copy, and decide nothing by the
    /// original.
    ///
    /// # Errors
    /// The client broke the protocol: the conversation is closed.
    pub fn take(
        &mut self,
        most: usize,
        take: impl FnMut(&SharedMem, usize, usize),
    ) -> Result<usize, VchanError> {
        if self.state != State::Open {
            return Ok(0);
        }
        let result = self.channel.take(most, take);
        self.settle(result)
    }

    /// Writes as much of `bytes` as there is room for. An event follows when there is more room, once not all went in.
    ///
    /// # Errors
    /// The client broke the protocol: the conversation is closed.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, VchanError> {
        if self.state != State::Open {
            return Ok(0);
        }
        let result = self.channel.write(bytes);
        self.settle(result)
    }

    /// As [`Server::write`] of `most` bytes, but has `give` write where in the ring they go, one run after the other: so
    /// many bytes from that offset on. The client may read them once the call returns.
    ///
    /// # Errors
    /// The client broke the protocol: the conversation is closed.
    pub fn give(
        &mut self,
        most: usize,
        give: impl FnMut(&mut SharedMem, usize, usize),
    ) -> Result<usize, VchanError> {
        if self.state != State::Open {
            return Ok(0);
        }
        let result = self.channel.give(most, give);
        self.settle(result)
    }

    /// Returns how many bytes may be written. An event follows when there is more room, if there is none now.
    ///
    /// # Errors
    /// The client broke the protocol: the conversation is closed.
    pub fn room(&mut self) -> Result<usize, VchanError> {
        if self.state != State::Open {
            return Ok(0);
        }
        let result = self.channel.room(1).map(|room| (room, Notify::NotWanted));
        self.settle(result)
    }

    /// Ends the conversation from this end. The next one begins when the client has let go.
    pub fn close(&mut self) {
        if self.state == State::Open {
            self.channel.close();
            self.state = State::Closing;
            self.notify();
        }
    }

    fn settle(&mut self, result: Result<(usize, Notify), VchanError>) -> Result<usize, VchanError> {
        match result {
            Ok((len, notify)) => {
                if notify == Notify::Wanted {
                    self.notify();
                }
                Ok(len)
            }
            Err(error) => {
                self.close();
                Err(error)
            }
        }
    }

    fn end(&mut self) -> Status {
        self.open();
        Status::Ended
    }

    fn open(&mut self) {
        self.channel.open(self.leases.iter().skip(1).map(Lease::gref));
        self.state = State::Offered;
    }

    fn notify(&self) {
        if let Err(errno) = event_channel::send(self.port) {
            log::warn!("vchan: event on port {}: {errno}", self.port.raw());
        }
    }
}

/// A ring of its own pages; libxenvchan's largest is 1 MiB, so that the list of grants fits the interface page.
fn ring_pages(order: u32) -> Result<usize, Error> {
    if (12..=20).contains(&order) { Ok(1 << (order - PAGE_SHIFT)) } else { Err(Error::Order(order)) }
}

#[allow(unsafe_code, reason = "hands the server's own pages to its channel")]
fn view(pages: &Pages, first: usize, nr_pages: usize) -> SharedMem {
    // SAFETY: the pages are mapped for ever (`Pages`); they were allocated for this server alone, which touches them
    // only through what it makes here.
    unsafe { SharedMem::new(pages.page(first), nr_pages * PAGE_SIZE) }
}
