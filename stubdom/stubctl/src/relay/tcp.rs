//! The way to a stub over TCP.
//!
//! A pipe stands between the source and the socket: header bytes are written into it, bodies are spliced into it, and
//! whatever is in it is spliced to the socket.

use super::RelayError;
use crate::control_channel::HEARTBEAT;
use crate::ffi::sys::{self, Polled};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::net::{SocketAddrV6, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
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
    /// strangers away: a refusal is tried again until `timeout` is over. `wait` waits for a descriptor, at most so long.
    ///
    /// # Errors
    /// [`RelayError::Connect`], or what `wait` ends with.
    pub(crate) fn connect<E: From<RelayError>>(
        address: SocketAddrV6,
        token: &[u8; control::TOKEN_BYTES],
        timeout: Duration,
        mut wait: impl FnMut(&Polled<'_>, Duration) -> Result<(), E>,
    ) -> Result<Self, E> {
        let error = |error: io::Error| RelayError::Connect { address: *address.ip(), kind: error.kind() };
        let mut socket = until_accepted(address, timeout, &mut wait)?.map_err(error)?;
        let opened = socket.set_nodelay(true).and_then(|()| socket.write_all(token));
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

/// Tries again after a refusal, as long as `timeout` is not over; the last refusal is the result then.
fn until_accepted<E>(
    address: SocketAddrV6,
    timeout: Duration,
    wait: &mut impl FnMut(&Polled<'_>, Duration) -> Result<(), E>,
) -> Result<io::Result<TcpStream>, E> {
    let deadline = Instant::now() + timeout;
    loop {
        let result = attempt(address, deadline, wait)?;
        let is_refused = result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if !is_refused || Instant::now() >= deadline {
            return Ok(result);
        }
        wait(&Polled::never(), AGAIN)?;
    }
}

/// Tries once.
fn attempt<E>(
    address: SocketAddrV6,
    deadline: Instant,
    wait: &mut impl FnMut(&Polled<'_>, Duration) -> Result<(), E>,
) -> Result<io::Result<TcpStream>, E> {
    let socket = match sys::begin_to_connect(address) {
        Ok(socket) => socket,
        Err(error) => return Ok(Err(error)),
    };
    loop {
        let ended = Polled::writable(socket.as_fd());
        wait(&ended, deadline.saturating_duration_since(Instant::now()).min(HEARTBEAT))?;
        if ended.is_ready() {
            let result = socket.take_error().and_then(|error| error.map_or(Ok(()), Err));
            return Ok(result.map(|()| socket));
        }
        if Instant::now() >= deadline {
            return Ok(Err(io::ErrorKind::TimedOut.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::interrupt::Stop;
    use std::io::Read;
    use std::net::{SocketAddr, TcpListener};

    fn listener() -> (TcpListener, SocketAddrV6) {
        let listener = TcpListener::bind(("::1", 0)).unwrap();
        let SocketAddr::V6(address) = listener.local_addr().unwrap() else { unreachable!("bound to ::1") };
        (listener, address)
    }

    fn wait(polled: &Polled<'_>, patience: Duration) -> Result<(), Error> {
        Ok(sys::poll(&[polled], patience)?)
    }

    #[test]
    fn a_connection_opens_with_the_token() {
        let (listener, address) = listener();
        let tcp = Tcp::connect(address, &[7; control::TOKEN_BYTES], HEARTBEAT, wait).unwrap();
        drop(tcp);
        let mut arrived = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut arrived).unwrap();
        assert_eq!(arrived, [7; control::TOKEN_BYTES]);
    }

    #[test]
    fn a_refusal_is_tried_again_until_the_time_is_over() {
        let (gone, address) = listener();
        drop(gone);
        let mut nr_waits = 0;
        let result = Tcp::connect(address, &[7; control::TOKEN_BYTES], AGAIN * 3, |polled, patience| {
            nr_waits += 1;
            wait(polled, patience)
        });
        let refused = RelayError::Connect { address: *address.ip(), kind: io::ErrorKind::ConnectionRefused };
        assert!(matches!(result, Err(Error::Relay(error)) if error == refused));
        assert!(nr_waits >= 2, "{nr_waits}");
    }

    #[test]
    fn an_interrupt_ends_an_attempt_and_the_pause_after_a_refusal() {
        let (gone, address) = listener();
        drop(gone);
        let (listener, listening) = self::listener();
        for (address, nr_before) in [(listening, 0), (address, 0), (address, 1)] {
            let mut left = nr_before;
            let began = Instant::now();
            let result =
                Tcp::connect(address, &[7; control::TOKEN_BYTES], HEARTBEAT * 1000, |polled, patience| {
                    if left == 0 {
                        return Err(Error::Stop(Stop::ParentGone));
                    }
                    left -= 1;
                    wait(polled, patience)
                });
            assert!(matches!(result, Err(Error::Stop(Stop::ParentGone))), "{nr_before} waits before");
            assert!(began.elapsed() < HEARTBEAT * 100);
        }
        drop(listener);
    }
}
