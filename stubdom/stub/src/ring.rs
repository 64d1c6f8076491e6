//! The stream over shared memory: a second vchan, one of whose rings has the stream. Stubctl fills the left one of a
//! stream that comes; the stub fills the right one of a stream that leaves, and dom0's answers come by the left one.
//!
//! **Takes** pages and grants, the first time a stream comes or leaves this way. **Gives** the bytes that come: to be
//! looked at from a private buffer, since what the parser checks must not change under it, and page contents, which
//! nobody looks at, straight from the ring. **Never** shows shared memory by reference.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use control::STREAM_VCHAN_PATH;
use stub_net::Stream;
use xen_abi::errno::Errno;
use xen_abi::types::{Domid, Port};
use xen_front::events::Events;
use xen_front::grants::GrantTable;
use xen_front::memory::Memory;
use xen_front::shared_mem::SharedMem;
use xen_front::vchan::{Error, Server, Status, VchanError};
use xen_front::xenstore::Xenstore;

/// log2 of the bytes of the ring that stubctl fills: the largest that libxenvchan takes.
const STREAM_ORDER: u32 = 20;

/// log2 of the bytes of the ring that nobody uses: the smallest of whole pages.
const IDLE_ORDER: u32 = 12;

/// log2 of the bytes of the ring by which dom0's answers come: the bitmap of 2 GiB in one piece.
const ANSWER_ORDER: u32 = 16;

/// The private buffer: the list of a batch's pages and what comes before it.
const BUFFER_BYTES: usize = 16 << 10;

/// Most contents taken at once, so that stubctl soon has the room again.
const POUR_BYTES: usize = 128 << 10;

/// The stream's vchan.
pub(crate) struct Ring {
    server: Server,
    events: Events,
    buffer: Vec<u8>,
    /// The part of the buffer that has not been taken yet.
    left: Range<usize>,
    state: Stream,
}

impl Ring {
    /// For streams that come.
    pub(crate) fn incoming(memory: &Memory, grants: &mut GrantTable, events: Events) -> Result<Self, Error> {
        Self::new(memory, grants, events, STREAM_VCHAN_PATH, [STREAM_ORDER, IDLE_ORDER])
    }

    /// For streams that leave.
    pub(crate) fn outgoing(memory: &Memory, grants: &mut GrantTable, events: Events) -> Result<Self, Error> {
        Self::new(memory, grants, events, control::send::PATH, [ANSWER_ORDER, STREAM_ORDER])
    }

    fn new(
        memory: &Memory,
        grants: &mut GrantTable,
        events: Events,
        path: &str,
        [left_order, right_order]: [u32; 2],
    ) -> Result<Self, Error> {
        let server = Server::new(memory, grants, Domid::DOM0, path, left_order, right_order)?;
        let buffer = vec![0; BUFFER_BYTES];
        Ok(Self { server, events, buffer, left: 0..0, state: Stream::Closed })
    }

    /// The event channel to sleep on.
    pub(crate) fn port(&self) -> Port {
        self.server.port()
    }

    /// Lets the next one connect, after whatever is open now is closed.
    pub(crate) fn listen(&mut self, store: &mut Xenstore) {
        self.close();
        self.state = Stream::Listening;
        self.follow(store);
    }

    /// Ends the conversation and expects no other.
    pub(crate) fn close(&mut self) {
        self.server.close();
        self.left = 0..0;
        self.state = Stream::Closed;
    }

    /// Looks whether somebody has come or gone.
    pub(crate) fn follow(&mut self, store: &mut Xenstore) {
        self.events.take(self.port());
        match self.server.follow(store) {
            Err(error) => log::warn!("stream: {error}"),
            Ok(Status::Open) if self.state == Stream::Listening => self.state = Stream::Open,
            Ok(Status::Ended) if self.state == Stream::Open => self.state = Stream::Ended,
            Ok(_) => {}
        }
    }

    /// Says how the stream's conversation is.
    pub(crate) fn stream(&self) -> Stream {
        self.state
    }

    /// Shows `take` the next bytes of the stream; it returns how many it has taken.
    pub(crate) fn receive(&mut self, take: impl FnOnce(&[u8]) -> usize) -> usize {
        if self.left.is_empty() {
            self.refill();
        }
        let taken = take(&self.buffer[self.left.clone()]).min(self.left.len());
        self.left.start += taken;
        taken
    }

    /// Shows `take` where in the ring the next bytes are, at most `most`, which it takes all; returns how many. None as
    /// long as bytes before them are in the private buffer.
    pub(crate) fn pour(&mut self, most: usize, take: impl FnMut(&SharedMem, usize, usize)) -> usize {
        if self.is_buffered() {
            return 0;
        }
        let taken = self.server.take(most.min(POUR_BYTES), take);
        self.settle(taken)
    }

    /// Waits until `out` is full.
    ///
    /// # Errors
    /// The client has closed its end or broke the protocol.
    pub(crate) fn receive_all(&mut self, out: &mut [u8]) -> Result<(), Errno> {
        let mut nr_done = 0;
        while nr_done < out.len() {
            self.events.take(self.port());
            let nr_taken = self.receive(|bytes| {
                let nr = bytes.len().min(out.len() - nr_done);
                out[nr_done..nr_done + nr].copy_from_slice(&bytes[..nr]);
                nr
            });
            nr_done += nr_taken;
            if nr_taken == 0 {
                self.wait()?;
            }
        }
        Ok(())
    }

    /// Returns how many bytes may be given; an event follows when there is room, if there is none now.
    pub(crate) fn room(&mut self) -> usize {
        let room = self.server.room();
        self.settle(room)
    }

    /// Has `give` write where in the ring the next `nr_bytes` go, for which there is room.
    pub(crate) fn give(&mut self, nr_bytes: usize, give: impl FnMut(&mut SharedMem, usize, usize)) {
        let given = self.server.give(nr_bytes, give);
        self.settle(given);
    }

    /// Sleeps until the client does something.
    fn wait(&self) -> Result<(), Errno> {
        if self.state != Stream::Open || !self.server.is_connected() {
            return Err(Errno::EPIPE);
        }
        self.events.wait(&[self.port()], None)
    }

    /// Whether there is something to do: more of an open stream has come, or its end.
    pub(crate) fn is_stirring(&self) -> bool {
        self.server.is_readable() || !self.server.is_connected()
    }

    /// Whether the private buffer holds bytes.
    pub(crate) fn is_buffered(&self) -> bool {
        !self.left.is_empty()
    }

    fn refill(&mut self) {
        let read = self.server.read(&mut self.buffer);
        self.left = 0..self.settle(read);
    }

    fn settle(&mut self, result: Result<usize, VchanError>) -> usize {
        result.unwrap_or_else(|error| {
            log::error!("stream: {error}");
            self.state = Stream::Ended;
            0
        })
    }
}
