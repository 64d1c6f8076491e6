//! The way to a stub over TCP.
//!
//! A pipe stands between the source and the socket: header bytes are written into it, bodies are spliced into it, and
//! whatever is in it is spliced to the socket.

use super::RelayError;
use crate::control_channel::HEARTBEAT;
use crate::ffi::sys::{self, Polled};
use control::{Proof, TOKEN_BYTES, WrongToken};
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{Ipv6Addr, SocketAddrV6, TcpStream};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How much the pipe may hold: the most that Linux gives without privilege.
const PIPE_BYTES: i32 = 1 << 20;

/// A write of so many bytes to a pipe with room succeeds whole (`PIPE_BUF`).
const COPY_BYTES: usize = 4096;

/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(50);

/// The two ends of a connection, and how each proves itself to the other.
pub(crate) struct Door {
    /// Where the stub listens.
    pub(crate) stub: SocketAddrV6,
    /// From where dom0 connects.
    pub(crate) relay: Ipv6Addr,
    /// From which ports.
    pub(crate) relay_ports: RangeInclusive<u16>,
    /// What the stub says first.
    pub(crate) greeting: [u8; TOKEN_BYTES],
    /// What the relay says then.
    pub(crate) token: [u8; TOKEN_BYTES],
}

/// A pipe and a connection.
pub(crate) struct Tcp {
    socket: TcpStream,
    pipe_in: PipeWriter,
    pipe_out: PipeReader,
    /// Bytes in the pipe.
    nr_piped: usize,
    /// Whether the source can be spliced; most can, a terminal cannot.
    can_splice: bool,
}

impl Tcp {
    /// Connects to the stub, has it prove itself, and opens the connection with its token. The stub serves one connection at
    /// a time and turns strangers away: a refusal is tried again until `timeout` is over. `wait` waits for a descriptor, at
    /// most so long.
    ///
    /// # Errors
    /// [`RelayError::Connect`], [`RelayError::Impostor`], or what `wait` ends with.
    pub(crate) fn connect<E: From<RelayError>>(
        door: &Door,
        timeout: Duration,
        mut wait: impl FnMut(&Polled<'_>, Duration) -> Result<(), E>,
    ) -> Result<Self, E> {
        let error = |error: io::Error| RelayError::Connect { address: *door.stub.ip(), kind: error.kind() };
        let mut socket = until_greeted(door, timeout, &mut wait)?;
        let opened = socket.set_nodelay(true).and_then(|()| socket.write_all(&door.token));
        Ok(opened.and_then(|()| Self::over(socket)).map_err(error)?)
    }

    /// Takes an open connection.
    ///
    /// # Errors
    /// No pipe to be had.
    pub(super) fn over(socket: TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (pipe_out, pipe_in) = io::pipe()?;
        sys::set_nonblocking(pipe_in.as_fd())?;
        sys::grow_pipe(pipe_in.as_fd(), PIPE_BYTES);
        Ok(Self { socket, pipe_in, pipe_out, nr_piped: 0, can_splice: true })
    }

    pub(super) fn has_room(&self) -> bool {
        let room = Polled::writable(self.pipe_in.as_fd());
        sys::poll(&[&room], Duration::ZERO).is_ok() && room.is_ready()
    }

    pub(super) fn writable(&self) -> Polled<'_> {
        Polled::writable(self.socket.as_fd()).only_if(self.nr_piped > 0)
    }

    pub(super) fn nr_waiting(&self) -> usize {
        self.nr_piped
    }

    /// Puts bytes of a header into the pipe, which has room.
    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pipe_in.write_all(bytes)?;
        self.nr_piped += bytes.len();
        Ok(())
    }

    /// Moves at most `len` bytes from the source into the pipe.
    pub(super) fn fill(&mut self, source: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        let nr = if self.can_splice { self.splice(source, len)? } else { self.copy(source, len)? };
        self.nr_piped += nr;
        Ok(nr)
    }

    /// Moves what the pipe holds to the socket, as far as it takes it.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        let nr = sys::splice(self.pipe_out.as_fd(), self.socket.as_fd(), self.nr_piped)?;
        self.nr_piped -= nr.min(self.nr_piped);
        Ok(())
    }

    fn splice(&mut self, source: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        match sys::splice(source, self.pipe_in.as_fd(), len.min(PIPE_BYTES as usize)) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.can_splice = false;
                self.copy(source, len)
            }
            moved => moved,
        }
    }

    fn copy(&mut self, source: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        let mut buffer = [0; COPY_BYTES];
        let nr = sys::read(source, &mut buffer[..len.min(COPY_BYTES)])?;
        self.pipe_in.write_all(&buffer[..nr])?;
        Ok(nr)
    }
}

/// Why an attempt came to nothing.
enum Failure<E> {
    /// The wait for it ended.
    Wait(E),
    /// The connection.
    Connection(io::Error),
    /// Who answers does not know the greeting.
    Impostor,
}

impl<E> From<io::Error> for Failure<E> {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

/// Whether the next attempt may go better: nobody has been sent anything.
fn is_passing(error: &io::Error) -> bool {
    use ErrorKind::{AddrInUse, ConnectionRefused, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | UnexpectedEof | AddrInUse)
}

/// Tries again after a refusal, as long as `timeout` is not over; the last refusal is the result then.
fn until_greeted<E: From<RelayError>>(
    door: &Door,
    timeout: Duration,
    wait: &mut impl FnMut(&Polled<'_>, Duration) -> Result<(), E>,
) -> Result<TcpStream, E> {
    let deadline = Instant::now() + timeout;
    let address = *door.stub.ip();
    loop {
        match attempt(door, deadline, wait) {
            Ok(socket) => return Ok(socket),
            Err(Failure::Wait(error)) => return Err(error),
            Err(Failure::Impostor) => return Err(RelayError::Impostor { address }.into()),
            Err(Failure::Connection(error)) if is_passing(&error) && Instant::now() < deadline => {
                wait(&Polled::never(), AGAIN)?;
            }
            Err(Failure::Connection(error)) => {
                return Err(RelayError::Connect { address, kind: error.kind() }.into());
            }
        }
    }
}

/// Tries once.
fn attempt<E>(
    door: &Door,
    deadline: Instant,
    wait: &mut impl FnMut(&Polled<'_>, Duration) -> Result<(), E>,
) -> Result<TcpStream, Failure<E>> {
    let mut socket = sys::begin_to_connect(door.relay, door.relay_ports.clone(), door.stub)?;
    until_ready(&Polled::writable(socket.as_fd()), deadline, wait)?;
    socket.take_error()?.map_or(Ok(()), Err)?;
    let mut proof = Proof::new(door.greeting);
    let mut bytes = [0; TOKEN_BYTES];
    while !proof.is_proven() {
        until_ready(&Polled::readable(socket.as_fd()), deadline, wait)?;
        // No byte more than the greeting is looked at: the stub has nothing else to say.
        match socket.read(&mut bytes) {
            Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            Ok(nr) => drop(proof.take(&bytes[..nr]).map_err(|WrongToken| Failure::Impostor)?),
            Err(error) if super::is_nothing_yet(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(socket)
}

fn until_ready<E>(
    polled: &Polled<'_>,
    deadline: Instant,
    wait: &mut impl FnMut(&Polled<'_>, Duration) -> Result<(), E>,
) -> Result<(), Failure<E>> {
    loop {
        let patience = deadline.saturating_duration_since(Instant::now()).min(HEARTBEAT);
        wait(polled, patience).map_err(Failure::Wait)?;
        if polled.is_ready() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(io::Error::from(ErrorKind::TimedOut).into());
        }
    }
}

#[cfg(test)]
mod tests;
