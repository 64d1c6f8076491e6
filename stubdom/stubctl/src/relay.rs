//! From libxl's descriptor to the stub, without looking at more than record headers.
//!
//! **Takes** the descriptor that libxl handed over, and a way to the stub. **Gives** bytes, in order, up to and
//! including the END record. **Never** reads one byte more, since libxl reads on behind it; never changes the
//! descriptor's flags, since libxl shares them; never finds the end of a record by bytes that the stub can reach.
//!
//! There are two ways: [`ring`], pages that dom0 and the stub share, and [`tcp`], a connection. On both the bodies of
//! records do not pass through this process's own memory.

pub(crate) mod ring;
pub(crate) mod tcp;

use crate::ffi::sys::{self, Polled};
use crate::ffi::vchan::ConnectError;
use crate::framing::{Framing, Place, STREAM_HEADER_BYTES, Want};
use migration::stream::RecordType;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring::Ring;
use tcp::Tcp;

/// What ended the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RelayError {
    /// The stub's port does not answer.
    Connect {
        /// The stub's address.
        address: Ipv6Addr,
        /// Why.
        kind: ErrorKind,
    },
    /// Who answers at the stub's address is not the stub.
    Impostor {
        /// The stub's address.
        address: Ipv6Addr,
    },
    /// The stub's ring cannot be had.
    Ring(ConnectError),
    /// The token does not fit into the ring, or the server's index makes no sense.
    Token(ErrorKind),
    /// The stream ended before its END record.
    Ended(Place),
    /// The stream cannot be read.
    Source {
        /// Where it was.
        place: Place,
        /// Why.
        kind: ErrorKind,
    },
    /// The stub says that it is done and has not had all.
    Early(Place),
    /// The stub does not take the stream any more.
    Sink {
        /// Where it was.
        place: Place,
        /// Why.
        kind: ErrorKind,
    },
}

impl fmt::Display for RelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { address, kind } => {
                write!(f, "cannot connect to the stub at [{address}]:{}: {kind}", control::STREAM_PORT)?;
                match kind {
                    ErrorKind::TimedOut => f.write_str(
                        " (a packet filter in dom0 has to let TCP pass between the relay's bridge and that port)",
                    ),
                    _ => Ok(()),
                }
            }
            Self::Impostor { address } => write!(
                f,
                "who answers at the stub's address [{address}]:{} is not the stub: nothing was sent there; look who else is on \
                 the relay's bridge",
                control::STREAM_PORT
            ),
            Self::Ring(error) => write!(f, "cannot open the stub's ring: {error}"),
            Self::Token(kind) => write!(f, "cannot write the token into the stub's ring: {kind}"),
            Self::Ended(place) => {
                write!(
                    f,
                    "the stream ends at {place}, expected it to go on to an END record: whoever sends it gave up or lost its \
                     connection and says why (of a file: it is not complete)"
                )
            }
            Self::Source { place, kind } => write!(f, "cannot read the stream at {place}: {kind}"),
            Self::Early(place) => write!(f, "the stub says it is done while the stream is at {place}"),
            Self::Sink { place, kind } => write!(f, "the stub closed the stream at {place}: {kind}"),
        }
    }
}

impl std::error::Error for RelayError {}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {}", self.offset)?;
        match self.kind {
            Some(kind) => write!(f, ", in record {} at {}", RecordType::new(kind), self.start)?,
            None if self.start == 0 && self.offset < STREAM_HEADER_BYTES as u64 => {
                write!(f, ", in the stream header")?;
            }
            None => write!(f, ", in the record header at {}", self.start)?,
        }
        write!(f, " ({} bytes of it missing)", self.missing)
    }
}

/// The way to the stub.
pub(crate) enum Way {
    /// Shared pages.
    Ring(Ring),
    /// A connection.
    Tcp(Tcp),
    /// None any more: one of the two has ended the stream.
    Closed,
}

/// A running relay.
pub(crate) struct Relay {
    source: OwnedFd,
    framing: Framing,
    way: Way,
    /// The source has ended too early, or cannot be read.
    is_cut: bool,
}

impl Relay {
    /// Stands between the two, with nothing moved yet.
    pub(crate) fn new(source: OwnedFd, way: Way) -> Self {
        Self { source, framing: Framing::new(), way, is_cut: false }
    }

    /// The descriptor to wait on for [`Relay::fill`]; `None` when the stream is over or there is no room.
    pub(crate) fn source(&self) -> Option<BorrowedFd<'_>> {
        let has_room = || match &self.way {
            Way::Ring(ring) => ring.has_room(),
            Way::Tcp(tcp) => tcp.has_room(),
            Way::Closed => false,
        };
        let is_over = self.is_cut || self.framing.want() == Want::Nothing;
        (!is_over && has_room()).then(|| self.source.as_fd())
    }

    /// What to wait for before [`Relay::drain`].
    pub(crate) fn sink(&self) -> Polled<'_> {
        match &self.way {
            Way::Ring(ring) => ring.signalled(),
            Way::Tcp(tcp) => tcp.writable(),
            Way::Closed => Polled::never(),
        }
    }

    /// Whether all up to and including END is the stub's.
    pub(crate) fn is_done(&self) -> bool {
        self.framing.want() == Want::Nothing && self.nr_waiting() == 0
    }

    /// Bytes that wait for the stub to take them.
    pub(crate) fn nr_waiting(&self) -> usize {
        match &self.way {
            Way::Ring(ring) => ring.nr_waiting(),
            Way::Tcp(tcp) => tcp.nr_waiting(),
            Way::Closed => 0,
        }
    }

    /// Where the reading is.
    pub(crate) fn place(&self) -> Place {
        self.framing.place()
    }

    /// Takes from the source what there is; call it when [`Relay::source`] is readable.
    ///
    /// # Errors
    /// The stream ended too early or cannot be read. The stub still gets all that came, and then sees the end: what is
    /// wrong with the last bytes is for it to say. So [`Relay::drain`] goes on.
    pub(crate) fn fill(&mut self) -> Result<(), RelayError> {
        self.take().inspect_err(|_| {
            self.is_cut = true;
            self.close_behind_the_last_byte();
        })
    }

    fn take(&mut self) -> Result<(), RelayError> {
        let place = self.framing.place();
        let moved = match self.framing.want() {
            Want::Header(len) => self.header(len),
            Want::Body(len) => self.body(usize::try_from(len).unwrap_or(usize::MAX)),
            Want::Nothing => return Ok(()),
        };
        match moved {
            Ok(0) => Err(RelayError::Ended(place)),
            Ok(_) => Ok(()),
            Err(error) if is_nothing_yet(&error) => Ok(()),
            Err(error) => Err(RelayError::Source { place, kind: error.kind() }),
        }
    }

    /// Whether the stub may not know yet of all that it was sent: [`Relay::flush`] before a wait.
    pub(crate) fn is_untold(&self) -> bool {
        matches!(&self.way, Way::Ring(ring) if ring.is_untold())
    }

    /// Tells the stub of all that it was sent.
    pub(crate) fn flush(&mut self) {
        if let Way::Ring(ring) = &mut self.way {
            ring.tell();
        }
    }

    /// Gives the stub what it has room for; call it when [`Relay::sink`] is ready.
    ///
    /// # Errors
    /// The stub is gone, and the way to it is closed.
    pub(crate) fn drain(&mut self) -> Result<(), RelayError> {
        let drained = match &mut self.way {
            Way::Ring(ring) => ring.acknowledge(),
            Way::Tcp(tcp) => tcp.drain(),
            Way::Closed => Ok(()),
        };
        match drained {
            // A stub that has all of the stream closes its end.
            Err(_) if self.is_done() => return Ok(()),
            Err(error) if !is_nothing_yet(&error) => {
                self.way = Way::Closed;
                return Err(RelayError::Sink { place: self.framing.place(), kind: error.kind() });
            }
            _ => {}
        }
        self.close_behind_the_last_byte();
        Ok(())
    }

    /// Lets the stub see the end of a stream that was cut. What is in its ring is its own; what is in the pipe has to
    /// go out first.
    fn close_behind_the_last_byte(&mut self) {
        let is_out = match &self.way {
            Way::Ring(_) | Way::Closed => true,
            Way::Tcp(tcp) => tcp.nr_waiting() == 0,
        };
        if self.is_cut && is_out {
            self.way = Way::Closed;
        }
    }

    /// Reads a piece of a header, shows it to the framing and sends it on.
    fn header(&mut self, len: usize) -> io::Result<usize> {
        let mut buffer = [0; STREAM_HEADER_BYTES];
        let nr = sys::read(self.source.as_fd(), &mut buffer[..len])?;
        let bytes = &buffer[..nr];
        self.framing.header(bytes);
        match &mut self.way {
            Way::Ring(ring) => ring.put(bytes)?,
            Way::Tcp(tcp) => tcp.put(bytes)?,
            Way::Closed => return Err(ErrorKind::BrokenPipe.into()),
        }
        Ok(nr)
    }

    /// Sends a piece of a body on, unseen.
    fn body(&mut self, len: usize) -> io::Result<usize> {
        let source = self.source.as_fd();
        let nr = match &mut self.way {
            Way::Ring(ring) => ring.fill(source, len),
            Way::Tcp(tcp) => tcp.fill(source, len),
            Way::Closed => Err(ErrorKind::BrokenPipe.into()),
        }?;
        self.framing.body(nr as u64);
        Ok(nr)
    }
}

fn is_nothing_yet(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
pub(crate) mod tests;
