//! The way to a stub over TCP.
//!
//! A pipe stands between the source and the socket: header bytes are written into it, bodies are spliced into it, and
//! whatever is in it is spliced to the socket.

use super::RelayError;
use crate::ffi::sys::{self, Polled};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::net::{Ipv6Addr, SocketAddrV6, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

/// How much the pipe may hold: the most that Linux gives without privilege.
const PIPE_BYTES: i32 = 1 << 20;

/// A write of so many bytes to a pipe with room succeeds whole (`PIPE_BUF`).
const COPY_BYTES: usize = 4096;

/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(50);

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
    /// Connects to the stub and opens the connection with its token. The stub serves one connection at a time and turns
    /// strangers away: a refusal is tried again until `timeout` is over.
    ///
    /// # Errors
    /// [`RelayError::Connect`].
    pub(crate) fn connect(
        address: Ipv6Addr,
        scope: u32,
        token: &[u8; control::TOKEN_BYTES],
        timeout: Duration,
    ) -> Result<Self, RelayError> {
        let error = |error: io::Error| RelayError::Connect { address, kind: error.kind() };
        let socket_address = SocketAddrV6::new(address, control::STREAM_PORT, 0, scope);
        let attempt = |left| TcpStream::connect_timeout(&socket_address.into(), left);
        let mut socket = until_accepted(timeout, attempt).map_err(error)?;
        socket.set_nodelay(true).map_err(error)?;
        socket.write_all(token).map_err(error)?;
        Self::over(socket).map_err(error)
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

/// Tries again after a refusal. Each attempt is given what remains of `timeout`; the last refusal is the result.
fn until_accepted<T>(timeout: Duration, mut attempt: impl FnMut(Duration) -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + timeout;
    let mut left = timeout;
    loop {
        match attempt(left) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                thread::sleep(AGAIN.min(left));
                left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(error);
                }
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_to_connect_has_what_the_ones_before_have_left() {
        let timeout = AGAIN * 3;
        let mut given = Vec::new();
        let refused: io::Result<()> = until_accepted(timeout, |left| {
            given.push(left);
            Err(io::ErrorKind::ConnectionRefused.into())
        });
        assert_eq!(refused.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionRefused));
        assert_eq!(given.first(), Some(&timeout));
        assert!(given.windows(2).all(|pair| pair[1] < pair[0] && !pair[1].is_zero()), "{given:?}");
    }

    #[test]
    fn only_a_refusal_is_tried_again() {
        let mut nr_attempts = 0;
        let outcome = until_accepted(AGAIN, |_| {
            nr_attempts += 1;
            Err::<(), _>(io::ErrorKind::TimedOut.into())
        });
        assert_eq!((outcome.map_err(|error| error.kind()), nr_attempts), (Err(io::ErrorKind::TimedOut), 1));
    }
}
