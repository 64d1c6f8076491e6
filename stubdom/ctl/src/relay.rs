//! From libxl's descriptor to the stub's TCP port, without looking at more than record headers.
//!
//! **Takes** the descriptor that libxl handed over, and a connection. **Gives** bytes, in order, up to and including
//! the END record. **Never** reads one byte more, since libxl reads on behind it; never changes the descriptor's
//! flags, since libxl shares them.
//!
//! A pipe stands between the two: header bytes are read and written into it, bodies are spliced into it, and
//! whatever is in it is spliced to the socket. So the bodies do not pass through this process's memory.

use crate::ffi::sys;
use crate::framing::{Framing, Place, STREAM_HEADER_BYTES, Want};
use std::fmt;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Write};
use std::net::{Ipv6Addr, SocketAddrV6, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How much the pipe may hold: the most that Linux gives without privilege.
const PIPE_BYTES: i32 = 1 << 20;

/// A write of so many bytes to a pipe with room succeeds whole (`PIPE_BUF`).
const COPY_BYTES: usize = 4096;

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
                write!(f, "cannot connect to the stub at [{address}]:{}: {kind}", control::STREAM_PORT)
            }
            Self::Ended(place) => {
                write!(f, "the stream ends at {place}, expected it to go on to an END record")
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
        write!(f, "offset {:#x}", self.offset)?;
        match self.kind {
            Some(kind) => write!(f, ", in the record of type {kind:#x} at {:#x}", self.start)?,
            None if self.start == 0 && self.offset < STREAM_HEADER_BYTES as u64 => {
                write!(f, ", in the stream header")?;
            }
            None => write!(f, ", in the record header at {:#x}", self.start)?,
        }
        write!(f, " ({} bytes of it missing)", self.missing)
    }
}

/// A running relay.
pub(crate) struct Relay {
    source: OwnedFd,
    sink: TcpStream,
    pipe_in: PipeWriter,
    pipe_out: PipeReader,
    framing: Framing,
    /// Bytes in the pipe.
    nr_piped: usize,
    /// Whether the source can be spliced; most can, a terminal cannot.
    can_splice: bool,
}

/// Connects to the stub and opens the connection with its token.
///
/// # Errors
/// [`RelayError::Connect`].
pub(crate) fn connect(
    address: Ipv6Addr,
    scope: u32,
    token: &[u8; control::TOKEN_BYTES],
    timeout: Duration,
) -> Result<TcpStream, RelayError> {
    let error = |error: io::Error| RelayError::Connect { address, kind: error.kind() };
    let socket_address = SocketAddrV6::new(address, control::STREAM_PORT, 0, scope);
    let mut sink = TcpStream::connect_timeout(&socket_address.into(), timeout).map_err(error)?;
    sink.set_nodelay(true).map_err(error)?;
    sink.write_all(token).map_err(error)?;
    sink.set_nonblocking(true).map_err(error)?;
    Ok(sink)
}

impl Relay {
    /// Stands between the two, with nothing moved yet.
    ///
    /// # Errors
    /// No pipe to be had.
    pub(crate) fn new(source: OwnedFd, sink: TcpStream) -> io::Result<Self> {
        let (pipe_out, pipe_in) = io::pipe()?;
        sys::set_nonblocking(pipe_in.as_fd())?;
        sys::grow_pipe(pipe_in.as_fd(), PIPE_BYTES);
        Ok(Self { source, sink, pipe_in, pipe_out, framing: Framing::new(), nr_piped: 0, can_splice: true })
    }

    /// The descriptor to wait on for [`Relay::fill`]; `None` when END has been read or the pipe has no room.
    pub(crate) fn source(&self) -> Option<BorrowedFd<'_>> {
        (self.framing.want() != Want::Nothing && self.has_room()).then(|| self.source.as_fd())
    }

    /// The descriptor to wait on for [`Relay::drain`]; `None` when nothing waits for the stub.
    pub(crate) fn sink(&self) -> Option<BorrowedFd<'_>> {
        (self.nr_piped > 0).then(|| self.sink.as_fd())
    }

    /// Whether all up to and including END went to the stub's connection.
    pub(crate) fn is_done(&self) -> bool {
        self.framing.want() == Want::Nothing && self.nr_piped == 0
    }

    /// Where the reading is.
    pub(crate) fn place(&self) -> Place {
        self.framing.place()
    }

    /// Takes from the source what there is; call it when [`Relay::source`] is readable.
    ///
    /// # Errors
    /// The stream ended too early or cannot be read.
    pub(crate) fn fill(&mut self) -> Result<(), RelayError> {
        let place = self.framing.place();
        let moved = match self.framing.want() {
            Want::Header(len) => self.copy(len),
            Want::Body(len) if self.can_splice => self.splice(bounded(len, PIPE_BYTES as usize)),
            Want::Body(len) => self.copy(bounded(len, COPY_BYTES)),
            Want::Nothing => return Ok(()),
        };
        match moved {
            Ok(0) => Err(RelayError::Ended(place)),
            Ok(nr) => {
                self.nr_piped += nr;
                Ok(())
            }
            Err(error) if is_nothing_yet(&error) => Ok(()),
            Err(error) => Err(RelayError::Source { place, kind: error.kind() }),
        }
    }

    /// Gives the stub what the pipe holds, as far as it takes it; says how many bytes.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) fn drain(&mut self) -> Result<usize, RelayError> {
        match sys::splice(self.pipe_out.as_fd(), self.sink.as_fd(), self.nr_piped) {
            Ok(nr) => {
                self.nr_piped -= nr.min(self.nr_piped);
                Ok(nr)
            }
            Err(error) if is_nothing_yet(&error) => Ok(0),
            Err(error) => Err(RelayError::Sink { place: self.framing.place(), kind: error.kind() }),
        }
    }

    fn splice(&mut self, len: usize) -> io::Result<usize> {
        match sys::splice(self.source.as_fd(), self.pipe_in.as_fd(), len) {
            Ok(nr) => {
                self.framing.body(nr as u64);
                Ok(nr)
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.can_splice = false;
                self.copy(len.min(COPY_BYTES))
            }
            Err(error) => Err(error),
        }
    }

    /// Reads at most [`COPY_BYTES`], shows them to the framing, and puts them into the pipe, which has room.
    fn copy(&mut self, len: usize) -> io::Result<usize> {
        let mut buffer = [0; COPY_BYTES];
        let nr = sys::read(self.source.as_fd(), &mut buffer[..len])?;
        match self.framing.want() {
            Want::Header(_) => self.framing.header(&buffer[..nr]),
            _ => self.framing.body(nr as u64),
        }
        self.pipe_in.write_all(&buffer[..nr])?;
        Ok(nr)
    }

    fn has_room(&self) -> bool {
        let room = sys::Polled::writable(self.pipe_in.as_fd());
        sys::poll(&[&room], Duration::ZERO).is_ok() && room.is_ready()
    }
}

fn bounded(len: u64, most: usize) -> usize {
    usize::try_from(len).unwrap_or(most).min(most)
}

fn is_nothing_yet(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;
