//! The way to a stub over shared pages: a vchan whose left ring carries the stream.
//!
//! The read from the source lands in the ring itself, so dom0 touches each byte once. Events are few, since each may cost
//! two changes of context: the stub is told of new bytes only when it asked, and then of half a ring, or of what there
//! is when the source has no more for now; and we ask for room only when the ring is nearly full.

use super::RelayError;
use crate::ffi::sys::Polled;
use crate::ffi::vchan::{Connection, OutRing, Vchan};
use crate::ffi::xenstore::Store;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use xen_abi::types::Domid;

/// The part of the ring that is read at once: a fourth, so that the stub works on one part while the next is read.
const NR_PARTS: usize = 4;

/// A vchan without its bytes: events both ways, and whether the server is still there. Dropped, it tells the server that
/// the client has closed its end.
pub(super) trait Line {
    /// Readable when the server signalled; then call [`Line::acknowledge`].
    fn fd(&self) -> BorrowedFd<'_>;
    /// Takes the pending signal away.
    fn acknowledge(&self);
    /// Sends the server an event.
    fn notify(&self);
    /// Whether the server is still there.
    fn is_open(&self) -> bool;
}

impl Line for Connection {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }

    fn acknowledge(&self) {
        self.acknowledge();
    }

    fn notify(&self) {
        self.notify();
    }

    fn is_open(&self) -> bool {
        self.is_open()
    }
}

/// The ring, and the vchan that it belongs to.
pub(crate) struct Ring {
    out: OutRing,
    line: Box<dyn Line>,
    /// The stub may wait for bytes that it has not been told of.
    untold: bool,
}

impl Ring {
    /// Connects to the stub and opens the stream with its token.
    ///
    /// # Errors
    /// [`RelayError::Ring`], [`RelayError::Token`].
    pub(crate) fn connect(
        store: &Store,
        stub: Domid,
        token: &[u8; control::TOKEN_BYTES],
    ) -> Result<Self, RelayError> {
        let path = format!("/local/domain/{}/{}", stub.raw(), control::STREAM_VCHAN_PATH);
        let (out, _, line) = Vchan::connect(store, stub, &path).map_err(RelayError::Ring)?.into_parts();
        let mut ring = Self::over(out, Box::new(line));
        ring.put(token).map_err(|error| RelayError::Token(error.kind()))?;
        Ok(ring)
    }

    /// Takes an open ring and its vchan.
    pub(super) fn over(out: OutRing, line: Box<dyn Line>) -> Self {
        Self { out, line, untold: false }
    }

    /// Whether a part of the ring is free; asks for an event if not.
    pub(super) fn has_room(&self) -> bool {
        let has_room = || self.out.len() - self.nr_waiting() >= self.part();
        has_room() || {
            self.out.request_event();
            has_room()
        }
    }

    pub(super) fn signalled(&self) -> Polled<'_> {
        Polled::readable(self.line.fd())
    }

    /// Bytes that the stub has not taken; all of the ring if its index makes no sense, which stops the relay.
    pub(super) fn nr_waiting(&self) -> usize {
        self.out.nr_waiting().unwrap_or(self.out.len())
    }

    /// Puts bytes of a header into the ring, which has room.
    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let nr = self.out.write(bytes)?;
        self.untold = true;
        if nr == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }

    /// Reads at most `len` bytes from the source into the ring, which has room.
    pub(super) fn fill(&mut self, source: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        let nr = self.out.read_from(source, len.min(self.part()))?;
        self.untold = true;
        if self.nr_waiting() >= self.out.len() / 2 {
            self.tell();
        }
        Ok(nr)
    }

    /// Whether the stub may have to be told of bytes.
    pub(super) fn is_untold(&self) -> bool {
        self.untold
    }

    /// Takes the stub's event.
    ///
    /// # Errors
    /// The stub has closed the ring, or writes nonsense into it.
    pub(super) fn acknowledge(&mut self) -> io::Result<()> {
        self.line.acknowledge();
        self.out.nr_waiting()?;
        if self.line.is_open() { Ok(()) } else { Err(ErrorKind::BrokenPipe.into()) }
    }

    /// Tells the stub of new bytes, if it asked.
    pub(super) fn tell(&mut self) {
        self.untold = false;
        if self.out.take_wish() {
            self.line.notify();
        }
    }

    fn part(&self) -> usize {
        self.out.len() / NR_PARTS
    }
}
