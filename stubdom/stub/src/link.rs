//! The conversation with stubctl: control messages over a vchan.
//!
//! **Takes** messages to send. **Gives** commands, one at a time. **Never** waits for a client that is not there.

use alloc::boxed::Box;
use control::{BLOB_CHUNK_BYTES, Deframer, FrameError, FromStub, MAX_MESSAGE_BYTES, ToStub, encode};
use core::fmt;
use xen_abi::errno::Errno;
use xen_abi::types::Port;
use xen_front::events::Events;
use xen_front::vchan::{Server, Status, VchanError};
use xen_front::xenstore::{self, Xenstore};

/// Why a message did not get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkError {
    /// Nobody is connected, or no longer.
    Gone,
    /// stubctl broke the protocol of the messages.
    Frame(FrameError),
    /// stubctl broke the protocol of the channel.
    Channel(VchanError),
    /// Xen does not let us wait.
    Wait(Errno),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("stubctl has closed the control channel"),
            Self::Frame(error) => error.fmt(f),
            Self::Channel(error) => error.fmt(f),
            Self::Wait(errno) => write!(f, "waiting for stubctl: {errno}"),
        }
    }
}

/// The stub's end of the control channel.
pub(crate) struct Link {
    server: Server,
    events: Events,
    deframer: Box<Deframer>,
    out: Box<[u8; MAX_MESSAGE_BYTES + 2]>,
}

impl Link {
    pub(crate) fn new(server: Server, events: Events) -> Self {
        Self { server, events, deframer: Box::default(), out: Box::new([0; MAX_MESSAGE_BYTES + 2]) }
    }

    /// The event channel that says that something has come.
    pub(crate) fn port(&self) -> Port {
        self.server.port()
    }

    /// Follows clients that come and go; says [`Status::Ended`] once for each that has gone.
    ///
    /// # Errors
    /// Xenstore's.
    pub(crate) fn follow(&mut self, store: &mut Xenstore) -> Result<Status, xenstore::Error> {
        let status = self.server.follow(store)?;
        if status == Status::Ended {
            self.deframer.clear();
        }
        Ok(status)
    }

    /// Takes the next command, if a whole one is there.
    ///
    /// # Errors
    /// stubctl broke a protocol; the conversation is closed.
    pub(crate) fn command(&mut self) -> Result<Option<ToStub>, LinkError> {
        let nr_bytes = self.server.read(self.deframer.spare()).map_err(LinkError::Channel)?;
        self.deframer.advance(nr_bytes);
        match self.deframer.message() {
            Ok(Some(command)) => {
                self.deframer.consume();
                Ok(Some(command))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                self.server.close();
                Err(LinkError::Frame(error))
            }
        }
    }

    /// Waits for the next command.
    ///
    /// # Errors
    /// stubctl is gone or broke a protocol.
    pub(crate) fn await_command(&mut self) -> Result<ToStub, LinkError> {
        loop {
            self.events.take(self.port());
            if let Some(command) = self.command()? {
                return Ok(command);
            }
            self.wait()?;
        }
    }

    /// Sends a message, waiting for room.
    ///
    /// # Errors
    /// stubctl is gone or broke the protocol of the channel.
    pub(crate) fn send(&mut self, message: &FromStub<'_>) -> Result<(), LinkError> {
        let mut rest = encode(message, self.out.as_mut_slice()).map_err(LinkError::Frame)?;
        while !rest.is_empty() {
            self.events.take(self.server.port());
            let nr_bytes = self.server.write(rest).map_err(LinkError::Channel)?;
            rest = rest.get(nr_bytes..).unwrap_or_default();
            if !rest.is_empty() {
                wait(&self.server, self.events)?;
            }
        }
        Ok(())
    }

    /// Sends a blob in pieces.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(crate) fn send_pieces<'a>(
        &mut self,
        bytes: &'a [u8],
        message: impl Fn(usize, &'a [u8]) -> FromStub<'a>,
    ) -> Result<(), LinkError> {
        let mut pieces = bytes.chunks(BLOB_CHUNK_BYTES).enumerate();
        pieces.try_for_each(|(nr, piece)| self.send(&message(nr * BLOB_CHUNK_BYTES, piece)))
    }

    fn wait(&mut self) -> Result<(), LinkError> {
        wait(&self.server, self.events)
    }
}

/// Sleeps until the client does something.
fn wait(server: &Server, events: Events) -> Result<(), LinkError> {
    if !server.is_connected() {
        return Err(LinkError::Gone);
    }
    events.wait(&[server.port()], None).map_err(LinkError::Wait)
}
