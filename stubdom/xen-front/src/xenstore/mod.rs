//! The xenstore client (`xen/include/public/io/xs_wire.h`, `docs/misc/xenstore.txt`).
//!
//! **Takes** paths; those without a leading `/` are below the domain's own `/local/domain/N`. **Gives** values, and watch
//! events in the order they came. **Never** has two requests on their way: a call waits for its reply, and keeps the watch
//! events that come before it.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

#[cfg(feature = "doors")]
pub(crate) mod doors;
mod wire;

use crate::boot::RingPage;
use crate::events::Events;
use crate::hypercall::event_channel;
use crate::shared_mem::SharedMem;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{Ordering, fence};
use wire::{Collector, Header};
use xen_abi::abi::XENSTORE_RING_SIZE;
use xen_abi::byte_ring as ring;
use xen_abi::errno::Errno;
use xen_abi::types::Port;
use xen_abi::xs_wire::{Kind, REQ, REQ_CONS, REQ_PROD, RSP, RSP_CONS, RSP_PROD, XENSTORE_PAYLOAD_MAX};

/// Watch events that wait for the caller; more are dropped with a log line.
const MAX_EVENTS: usize = 64;

/// Why a request had no success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The daemon refused: `ENOENT` for a missing node, `EACCES`, `EAGAIN` for a transaction to repeat, and so on.
    Refused(Errno),
    /// The daemon broke the protocol, or the ring's indices are nonsense: nothing works any more.
    Broken,
    /// A path or value longer than a message.
    TooLong(usize),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(errno) => write!(f, "xenstore: {errno}"),
            Self::Broken => write!(f, "xenstore: the daemon broke the protocol"),
            Self::TooLong(len) => {
                write!(f, "xenstore: message of {len} bytes, expected at most {}", XENSTORE_PAYLOAD_MAX)
            }
        }
    }
}

impl core::error::Error for Error {}

/// A change below a watched path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The node that changed.
    pub path: String,
    /// What the watch was registered with.
    pub token: String,
}

/// A transaction: what is read and written under it happens at once, or not at all.
#[derive(Debug)]
pub struct Transaction(u32);

/// The client.
#[derive(Debug)]
pub struct Xenstore {
    page: SharedMem,
    port: Port,
    events: Events,
    collector: Collector,
    waiting: VecDeque<Event>,
    last_id: u32,
    /// Requests whose replies nobody waits for.
    nr_posted: usize,
}

impl Xenstore {
    /// Takes the ring that the domain was started with.
    pub fn new(ring: RingPage, events: Events) -> Self {
        let RingPage { page, port } = ring;
        Self {
            page,
            port,
            events,
            collector: Collector::new(),
            waiting: VecDeque::new(),
            last_id: 0,
            nr_posted: 0,
        }
    }

    /// Returns the event channel to wait on for watch events, unless the client is [stirring](Self::is_stirring).
    pub const fn port(&self) -> Port {
        self.port
    }

    /// Returns the value of a node; what is not UTF-8 in it is replaced.
    ///
    /// # Errors
    /// `ENOENT` if there is no such node.
    pub fn read(&mut self, path: &str) -> Result<String, Error> {
        let value = self.request(Kind::Read, 0, &[path, "\0"])?;
        Ok(String::from_utf8_lossy(&value).into_owned())
    }

    /// Writes a node, and the nodes above it that are missing.
    ///
    /// # Errors
    /// The daemon's.
    pub fn write(&mut self, path: &str, value: &str) -> Result<(), Error> {
        self.request(Kind::Write, 0, &[path, "\0", value]).map(drop)
    }

    /// Writes a node as [`Xenstore::write`] does, without waiting for the daemon: a refusal is logged when it comes.
    ///
    /// # Errors
    /// The daemon broke the protocol.
    pub fn post(&mut self, path: &str, value: &str) -> Result<(), Error> {
        self.ask(Kind::Write, 0, &[path, "\0", value])?;
        self.nr_posted = self.nr_posted.saturating_add(1);
        Ok(())
    }

    /// Writes a node as part of a transaction.
    ///
    /// # Errors
    /// The daemon's.
    pub fn write_in(&mut self, transaction: &Transaction, path: &str, value: &str) -> Result<(), Error> {
        self.request(Kind::Write, transaction.0, &[path, "\0", value]).map(drop)
    }

    /// Removes a node and all below it; without the node there is nothing to do.
    ///
    /// # Errors
    /// The daemon's.
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        match self.request(Kind::Rm, 0, &[path, "\0"]) {
            Err(Error::Refused(Errno::ENOENT)) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Watches a node and all below it. One event comes at once, and it comes even if the node is not there.
    ///
    /// # Errors
    /// The daemon's; `EEXIST` if it is watched with this token already.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.request(Kind::Watch, 0, &[path, "\0", token, "\0"]).map(drop)
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// The daemon's; `ENOENT` if there is no such watch.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.request(Kind::Unwatch, 0, &[path, "\0", token, "\0"]).map(drop)
    }

    /// Runs `steps` as one transaction, again and again while others change the same nodes.
    ///
    /// # Errors
    /// The first error of a step, or the daemon's.
    pub fn transaction(
        &mut self,
        mut steps: impl FnMut(&mut Self, &Transaction) -> Result<(), Error>,
    ) -> Result<(), Error> {
        loop {
            let id = self.request(Kind::TransactionStart, 0, &["\0"])?;
            let id = wire::number(&id).ok_or(Error::Broken)?;
            let result = steps(self, &Transaction(id));
            let verdict = if result.is_ok() { "T\0" } else { "F\0" };
            match self.request(Kind::TransactionEnd, id, &[verdict]) {
                Err(Error::Refused(Errno::EAGAIN)) if result.is_ok() => {}
                end => return result.and(end.map(drop)),
            }
        }
    }

    /// Takes the next watch event, if one has come.
    ///
    /// # Errors
    /// The daemon broke the protocol.
    pub fn event(&mut self) -> Result<Option<Event>, Error> {
        self.events.take(self.port);
        while let Some((header, body)) = self.take()? {
            self.keep(header, &body);
        }
        Ok(self.waiting.pop_front())
    }

    /// Tells whether [`Xenstore::event`] has something to look at: a request takes the event channel's event with its reply,
    /// also when a watch event comes beside it. Ask before sleeping on [`Xenstore::port`].
    pub fn is_stirring(&self) -> bool {
        !self.waiting.is_empty() || self.page.read::<u32>(RSP_CONS) != self.page.read::<u32>(RSP_PROD)
    }

    /// Sends a request and waits for its reply.
    fn request(&mut self, kind: Kind, transaction: u32, parts: &[&str]) -> Result<Vec<u8>, Error> {
        let header = self.ask(kind, transaction, parts)?;
        loop {
            match self.take()? {
                Some((reply, body)) if reply.id == header.id && !reply.is(Kind::WatchEvent) => {
                    return reply.result(kind, body);
                }
                Some((other, body)) => self.keep(other, &body),
                None => self.wait()?,
            }
        }
    }

    /// Sends a request; returns its header.
    fn ask(&mut self, kind: Kind, transaction: u32, parts: &[&str]) -> Result<Header, Error> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.last_id = self.last_id.wrapping_add(1);
        let header = Header::new(kind, self.last_id, transaction, len).ok_or(Error::TooLong(len))?;
        self.send(&header.to_bytes())?;
        for part in parts {
            self.send(part.as_bytes())?;
        }
        self.notify();
        Ok(header)
    }

    /// Deals with what is not the reply that somebody waits for.
    fn keep(&mut self, header: Header, body: &[u8]) {
        if header.is(Kind::WatchEvent) {
            return self.keep_event(body);
        }
        // Replies come in the order of their requests.
        match self.nr_posted.checked_sub(1) {
            None => log::warn!("xenstore: message of type {} that nobody asked for", header.kind),
            Some(nr_left) => {
                self.nr_posted = nr_left;
                if let Err(error) = header.result(Kind::Write, body.to_vec()) {
                    log::warn!("{error}");
                }
            }
        }
    }

    fn keep_event(&mut self, body: &[u8]) {
        match wire::event(body) {
            Some(_) if self.waiting.len() >= MAX_EVENTS => {
                log::warn!("xenstore: too many watch events, one dropped")
            }
            Some((path, token)) => self.waiting.push_back(Event { path, token }),
            None => log::warn!("xenstore: a watch event of {} bytes that is none", body.len()),
        }
    }

    /// Puts bytes into the request ring, waiting for room.
    fn send(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (cons, prod) = (self.page.read(REQ_CONS), self.page.read(REQ_PROD));
            fence(Ordering::Acquire); // the daemon is done with what it consumed before we write there
            let run = ring::writable(cons, prod, XENSTORE_RING_SIZE, bytes.len()).ok_or(Error::Broken)?;
            let (now, later) = bytes.split_at(run.len.min(bytes.len()));
            self.page.copy_in(REQ.saturating_add(run.offset), now);
            fence(Ordering::Release); // the bytes are there before the index that covers them
            self.page.write(REQ_PROD, ring::advance(prod, now.len()));
            bytes = later;
            if now.is_empty() {
                self.notify();
                self.wait()?;
            }
        }
        Ok(())
    }

    /// Takes the next whole message, if it is there.
    fn take(&mut self) -> Result<Option<(Header, Vec<u8>)>, Error> {
        loop {
            let (cons, prod) = (self.page.read(RSP_CONS), self.page.read(RSP_PROD));
            fence(Ordering::Acquire); // the bytes are read after the index that covers them
            let room = self.collector.missing();
            let run = ring::readable(cons, prod, XENSTORE_RING_SIZE, room.len()).ok_or(Error::Broken)?;
            if run.len == 0 {
                return Ok(None);
            }
            self.page.copy_out(RSP.saturating_add(run.offset), room.get_mut(..run.len).unwrap_or_default());
            fence(Ordering::SeqCst); // the bytes are out before the daemon may overwrite them
            self.page.write(RSP_CONS, ring::advance(cons, run.len));
            self.notify();
            if let Some(message) = self.collector.advance(run.len).map_err(|_| Error::Broken)? {
                return Ok(Some(message));
            }
        }
    }

    fn notify(&self) {
        if let Err(errno) = event_channel::send(self.port) {
            log::warn!("xenstore: event on port {}: {errno}", self.port.raw());
        }
    }

    /// Sleeps until the daemon has moved.
    fn wait(&self) -> Result<(), Error> {
        self.events.wait(&[self.port], None).map_err(Error::Refused)?;
        self.events.take(self.port);
        Ok(())
    }
}
