//! The client end of a vchan: a byte channel to another domain over shared pages
//! (`xen/include/public/io/libxenvchan.h`).
//!
//! **Takes** bytes. **Gives** bytes. **Never** waits, and believes nothing that it reads in the shared pages: what decides is
//! copied out once and bounded, and this end's own indices are kept in private memory.
//!
//! "Left" is the client's writing direction, "right" the server's.
#![allow(unsafe_code, reason = "shared memory")]

mod in_ring;
mod out_ring;
mod shared;

pub(crate) use in_ring::InRing;
#[cfg(test)]
pub(crate) use in_ring::tests as in_ring_tests;
pub(crate) use out_ring::OutRing;
#[cfg(test)]
pub(crate) use out_ring::tests as out_ring_tests;
pub(crate) use shared::Nonsense;

use super::event::EventChannel;
use super::grants::Grants;
use super::xenstore::Store;
use shared::{CLI_LIVE, Shared};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use xen_abi::types::{Domid, Gref, Port};
use xen_abi::vchan::VCHAN_NOTIFY_WRITE;

/// A server cannot be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectError {
    /// Xenstore does not say where the channel is; positive errno.
    Store(i32),
    /// Nobody offers a channel.
    NoOffer,
    /// Rings of 2^left and 2^right bytes; expected are [`shared::ORDERS`].
    Order {
        /// Of the ring that the client writes.
        left: u16,
        /// Of the ring that the server writes.
        right: u16,
    },
    /// The event channel cannot be bound; positive errno.
    Event(i32),
    /// The pages cannot be mapped; positive errno.
    Map(i32),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = |errno: &i32| std::io::Error::from_raw_os_error(*errno);
        match self {
            Self::Store(errno) => write!(f, "xenstore: {}", reason(errno)),
            Self::NoOffer => write!(f, "it offers none"),
            Self::Order { left, right } => {
                let (least, most) = (shared::ORDERS.start(), shared::ORDERS.end());
                write!(f, "its rings have 2^{left} and 2^{right} bytes, expected 2^{least} to 2^{most}")
            }
            Self::Event(errno) => write!(f, "its event channel cannot be bound: {}", reason(errno)),
            Self::Map(errno) => write!(f, "its pages cannot be mapped: {}", reason(errno)),
        }
    }
}

impl std::error::Error for ConnectError {}

/// The client end.
pub(crate) struct Vchan {
    out: OutRing,
    incoming: InRing,
    // After the rings: it lets go of the pages, and says so.
    connection: Connection,
}

impl Vchan {
    /// Connects to the server that `domid` announces below the absolute xenstore path.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub(crate) fn connect(store: &Store, domid: Domid, path: &str) -> Result<Self, ConnectError> {
        let number = |node: &str| {
            let found = store.read_number::<u32>(&format!("{path}/{node}"));
            found.map_err(|error| ConnectError::Store(error.errno))?.ok_or(ConnectError::NoOffer)
        };
        let (gref, port) = (Gref::new(number("ring-ref")?), Port::new(number("event-channel")?));
        let event = EventChannel::bind(domid, port).map_err(ConnectError::Event)?;
        let grants = Grants::open(domid).map_err(ConnectError::Map)?;
        let page = grants.map_notify(gref, CLI_LIVE, event.port()).map_err(ConnectError::Map)?;
        let shared = Shared::map(page, |grefs, is_writable| grants.map(grefs, is_writable))?;
        Ok(Self::open(Rc::new(shared), event))
    }

    fn open(shared: Rc<Shared>, event: EventChannel) -> Self {
        let (out, incoming) = (OutRing::new(Rc::clone(&shared)), InRing::new(Rc::clone(&shared)));
        shared.cli_live().store(1, Ordering::SeqCst);
        shared.srv_notify().store(VCHAN_NOTIFY_WRITE, Ordering::SeqCst);
        event.notify();
        Self { out, incoming, connection: Connection { shared: Some(shared), event } }
    }

    /// Takes it apart: the ring that this end writes, the one that it reads, and the connection, to be dropped after them.
    pub(crate) fn into_parts(self) -> (OutRing, InRing, Connection) {
        (self.out, self.incoming, self.connection)
    }

    /// Its events, and whether the server is there.
    pub(crate) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Copies what is there into `out`; 0 when there is nothing, and then an event comes when there is something.
    ///
    /// # Errors
    /// The server's index makes no sense.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize, Nonsense> {
        let mut nr = self.incoming.read(out)?;
        if nr == 0 {
            self.incoming.request_event();
            nr = self.incoming.read(out)?;
        }
        if nr > 0 && self.incoming.take_wish() {
            self.connection.notify();
        }
        Ok(nr)
    }

    /// Sends as much of `bytes` as fits; when that is not all, an event comes when there is room.
    ///
    /// # Errors
    /// The server's index makes no sense.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, Nonsense> {
        let mut nr = self.out.write(bytes)?;
        if nr < bytes.len() {
            self.out.request_event();
            nr += self.out.write(&bytes[nr..])?;
        }
        if nr > 0 && self.out.take_wish() {
            self.connection.notify();
        }
        Ok(nr)
    }
}

/// A vchan without its bytes: events both ways. Dropped, it tells the server that the client has let go.
pub(crate) struct Connection {
    /// `None` only while it is dropped.
    shared: Option<Rc<Shared>>,
    event: EventChannel,
}

impl Connection {
    /// Readable when the server signalled; then call [`Connection::acknowledge`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.event.fd()
    }

    /// Takes the pending signal away.
    pub(crate) fn acknowledge(&self) {
        self.event.acknowledge();
    }

    /// Sends the server an event.
    pub(crate) fn notify(&self) {
        self.event.notify();
    }

    /// Whether the server is still there.
    pub(crate) fn is_open(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.srv_live().load(Ordering::SeqCst) == 1)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.cli_live().store(0, Ordering::SeqCst);
        }
        self.event.notify();
    }
}
