//! System calls that std does not offer: poll, splice, signalfd, record locks, pipe size, connects that do not wait,
//! resource usage.
#![allow(unsafe_code, reason = "libc declares system calls as unsafe functions")]

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::mem;
use std::net::{Ipv6Addr, SocketAddrV6, TcpStream};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What [`poll`] waits for on one descriptor, and what it found.
pub(crate) struct Polled<'a> {
    fd: Option<BorrowedFd<'a>>,
    events: i16,
    /// The events that are there, after [`poll`].
    found: Cell<i16>,
}

impl<'a> Polled<'a> {
    /// Waits until there is something to read (or the far side hung up).
    pub(crate) fn readable(fd: BorrowedFd<'a>) -> Self {
        Self { fd: Some(fd), events: libc::POLLIN, found: Cell::new(0) }
    }

    /// Waits until something can be written.
    pub(crate) fn writable(fd: BorrowedFd<'a>) -> Self {
        Self { fd: Some(fd), events: libc::POLLOUT, found: Cell::new(0) }
    }

    /// Waits only for the far side to hang up.
    pub(crate) fn hang_up(fd: BorrowedFd<'a>) -> Self {
        Self { fd: Some(fd), events: 0, found: Cell::new(0) }
    }

    /// Waits for nothing.
    pub(crate) fn never() -> Self {
        Self { fd: None, events: 0, found: Cell::new(0) }
    }

    /// Takes part in the wait only while `wanted`.
    pub(crate) fn only_if(mut self, wanted: bool) -> Self {
        self.fd = self.fd.filter(|_| wanted);
        self
    }

    /// Whether the event came, or an error or hang-up that the next operation will show.
    pub(crate) fn is_ready(&self) -> bool {
        self.found.get() != 0
    }
}

/// Waits for any of the descriptors, at most `timeout`, in whole milliseconds.
pub(crate) fn poll(waits: &[&Polled<'_>], timeout: Duration) -> io::Result<()> {
    let entry = |wait: &&Polled<'_>| libc::pollfd {
        fd: wait.fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: wait.events,
        revents: 0,
    };
    let mut entries: Vec<libc::pollfd> = waits.iter().map(entry).collect();
    let nr = entries.len() as libc::nfds_t;
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `entries` has `nr` entries, each with a borrowed open descriptor or -1, which poll skips.
    let rc = unsafe { libc::poll(entries.as_mut_ptr(), nr, millis) };
    if rc < 0 {
        return interrupted_is_nothing(io::Error::last_os_error());
    }
    for (wait, entry) in waits.iter().zip(&entries) {
        wait.found.set(entry.revents);
    }
    Ok(())
}

fn interrupted_is_nothing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// Moves up to `len` bytes from one descriptor to the other, one of which is a pipe, without waiting on the pipe;
/// gives the number moved, 0 at the end of the file.
pub(crate) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    // SAFETY: both descriptors are borrowed and so open; null offsets mean each one's own position.
    let nr = unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), len, flags) };
    usize::try_from(nr).map_err(|_| io::Error::last_os_error())
}

/// Begins to connect a socket whose operations do not wait, from the first free port of `ports` at `from`: it is writable
/// when the attempt has ended, and `take_error` tells how.
pub(crate) fn begin_to_connect(
    from: Ipv6Addr,
    ports: RangeInclusive<u16>,
    to: SocketAddrV6,
) -> io::Result<TcpStream> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes numbers.
    let fd = unsafe { libc::socket(libc::AF_INET6, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket gave a new open descriptor that nobody else owns.
    let socket = unsafe { TcpStream::from_raw_fd(fd) };
    bind_to_free(&socket, from, ports, to.scope_id())?;
    let name = socket_name(*to.ip(), to.port(), to.scope_id());
    // SAFETY: the socket is open; `name` is a sockaddr_in6 of the length given that outlives the call.
    if unsafe { libc::connect(fd, (&raw const name).cast(), NAME_BYTES) } == 0 {
        return Ok(socket);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINPROGRESS) { Ok(socket) } else { Err(error) }
}

/// Connects to a socket in the file system whose operations do not wait.
///
/// # Errors
/// `EAGAIN` when the listener's backlog is full.
pub(crate) fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes numbers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket gave a new open descriptor that nobody else owns.
    let socket = unsafe { UnixStream::from_raw_fd(fd) };
    let mut sun_path = [0; 108];
    let bytes = path.as_os_str().as_bytes();
    // One is left for the final nul.
    let room = sun_path.get_mut(..bytes.len()).filter(|_| bytes.len() < 108);
    let room = room.ok_or(io::ErrorKind::InvalidFilename)?;
    room.iter_mut().zip(bytes).for_each(|(to, from)| *to = from.cast_signed());
    // PANIC: never; the family is 1.
    let sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).expect("AF_UNIX is 1");
    let name = libc::sockaddr_un { sun_family, sun_path };
    // PANIC: never; the structure has 110 bytes.
    let len = libc::socklen_t::try_from(size_of_val(&name)).expect("a socket address is short");
    // SAFETY: the socket is open; `name` is a sockaddr_un of `len` bytes that outlives the call.
    if unsafe { libc::connect(fd, (&raw const name).cast(), len) } == 0 {
        return Ok(socket);
    }
    Err(io::Error::last_os_error())
}

/// Lets standard error go: whoever reads it need not wait for this process to end.
pub(crate) fn let_standard_error_go() -> io::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    // SAFETY: both descriptors are open, and nothing in this program owns descriptor 2.
    let rc = unsafe { libc::dup2(null.as_raw_fd(), libc::STDERR_FILENO) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Binds a socket to the first port that nobody has.
fn bind_to_free(
    socket: &TcpStream,
    from: Ipv6Addr,
    ports: RangeInclusive<u16>,
    scope: u32,
) -> io::Result<()> {
    let mut result = Err(io::ErrorKind::AddrInUse.into());
    for port in ports {
        let name = socket_name(from, port, scope);
        // SAFETY: the socket is open; `name` is a sockaddr_in6 of the length given that outlives the call.
        let rc = unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), NAME_BYTES) };
        result = if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        if !result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
            break;
        }
    }
    result
}

/// The length of what [`socket_name`] gives.
#[expect(clippy::cast_possible_truncation, reason = "a socket address has 28 bytes")]
const NAME_BYTES: libc::socklen_t = size_of::<libc::sockaddr_in6>() as libc::socklen_t;

fn socket_name(address: Ipv6Addr, port: u16, scope: u32) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        // PANIC: never; the family is 10.
        sin6_family: libc::sa_family_t::try_from(libc::AF_INET6).expect("AF_INET6 is 10"),
        sin6_port: port.to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: address.octets() },
        sin6_scope_id: scope,
    }
}

/// Reads once from a descriptor that this process does not own.
pub(crate) fn read(fd: BorrowedFd<'_>, out: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the descriptor is borrowed and so open; `out` has the length given.
    let nr = unsafe { libc::read(fd.as_raw_fd(), out.as_mut_ptr().cast(), out.len()) };
    usize::try_from(nr).map_err(|_| io::Error::last_os_error())
}

/// Takes over a descriptor that was handed to this process by number and keeps it from its children.
///
/// # Errors
/// `EBADF` when no such descriptor is open.
pub(crate) fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD changes a flag of the descriptor, or fails with EBADF when it is not open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as fcntl has just shown, and was given to this process for its own use.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Leaves a descriptor open, under its number, for the program that this process becomes.
pub(crate) fn bequeath(fd: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is owned and so open; the call clears its flag.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Not closed: the next program has it by number.
    let _ = fd.into_raw_fd();
    Ok(())
}

/// Makes another descriptor of the open file behind one that was handed to this process by number, and keeps it from its
/// children.
///
/// # Errors
/// `EBADF` when no such descriptor is open.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC makes a new descriptor, or fails with EBADF when the old one is not open.
    let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if new < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fcntl gave a new open descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Standard input, for waiting on it.
pub(crate) fn standard_input() -> BorrowedFd<'static> {
    // SAFETY: std opens descriptor 0 at start if it is not open, and nothing in this program closes it.
    unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) }
}

/// Asks for a pipe of `bytes`; the kernel may give less, which only costs speed.
pub(crate) fn grow_pipe(pipe: BorrowedFd<'_>, bytes: i32) {
    // SAFETY: the descriptor is borrowed and so open; the call takes a number.
    unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
}

/// Makes reads and writes return at once. Only for descriptors of our own: the flag is shared with whoever else has
/// the same open file.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed and so open; the call takes a number.
    let rc = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The process that holds a record lock on `file`, anywhere in it, if any does.
pub(crate) fn lock_holder(file: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut lock = write_lock(0, 0);
    // SAFETY: the descriptor is borrowed and so open; `lock` is a flock that outlives the call.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid))
}

/// Takes the lock on one byte of `file`, which is that of the open file, not of the process: it is there until this file is
/// closed, whatever becomes of others that are the same on disk.
///
/// # Errors
/// `EAGAIN` when another open file has it.
pub(crate) fn lock_byte(file: BorrowedFd<'_>, offset: u16) -> io::Result<()> {
    let lock = write_lock(offset.into(), 1);
    // SAFETY: the descriptor is borrowed and so open; `lock` is a flock that outlives the call.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A write lock from `start`; a length of 0 means to the end.
fn write_lock(start: libc::off_t, len: libc::off_t) -> libc::flock {
    // PANIC: never; the lock types are 0, 1 and 2.
    let l_type = libc::c_short::try_from(libc::F_WRLCK).expect("F_WRLCK is 1");
    libc::flock { l_type, l_whence: 0, l_start: start, l_len: len, l_pid: 0 }
}

/// How long a record of `/dev/mcelog` is, in bytes, and how many it holds (`MCE_GET_RECORD_LEN`, `MCE_GET_LOG_LEN`).
pub(crate) fn mcelog_lengths(device: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
    /// `_IOR('M', nr, int)`
    const fn request(nr: libc::c_ulong) -> libc::c_ulong {
        2 << 30 | 4 << 16 | 0x4d << 8 | nr
    }
    let length = |request| {
        let mut length: libc::c_int = 0;
        // SAFETY: the descriptor is borrowed and so open; the request writes one int, which `length` is.
        let rc = unsafe { libc::ioctl(device.as_raw_fd(), request, &raw mut length) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(usize::try_from(length).unwrap_or(0)) }
    };
    Ok((length(request(1))?, length(request(2))?))
}

/// Processor time that this process has had, without its children's.
pub(crate) fn own_cpu() -> Duration {
    // SAFETY: rusage is a C structure of integers, for which all zeroes is a value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: `usage` is a rusage that outlives the call; it fails only for another first argument.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let duration = |time: libc::timeval| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

/// Has the process end when whoever reads its output is gone, as is usual; Rust would panic. Only for what may end anywhere.
pub(crate) fn end_with_reader() {
    // SAFETY: the default disposition of a signal runs no code of this process.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// SIGTERM and SIGINT.
fn termination_set() -> libc::sigset_t {
    // SAFETY: sigset_t is a C structure of integers, for which all zeroes is a value; sigemptyset sets it anyway.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is a sigset_t that outlives the call.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: `set` is an initialised sigset_t and the signal number is valid.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// Lets a program that is to be started have SIGTERM and SIGINT again: it inherits what [`termination_fd`] blocks here, and
/// hands it on to the daemons that it leaves behind, which nobody could end by a signal then.
pub(crate) fn unblock_termination(command: &mut Command) -> &mut Command {
    let set = termination_set();
    let unblock = move || {
        // SAFETY: `set` is initialised; the old mask is not asked for.
        match unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec `unblock` makes one call, which signal-safety(7) lists; it neither allocates nor takes
    // a lock, and `set` is its own copy.
    unsafe { command.pre_exec(unblock) }
}

/// Turns SIGTERM and SIGINT into a descriptor that is readable once one of them came.
pub(crate) fn termination_fd() -> io::Result<OwnedFd> {
    let set = termination_set();
    // SAFETY: `set` is initialised; the old mask is not asked for.
    let rc = unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: -1 asks for a new descriptor; `set` is initialised.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd gave a new open descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;

    const FILE: &str = "STUBCTL_TEST_LOCK";

    /// Run again by the test below as another process: ends well when byte 7 is locked and byte 8 is not.
    #[test]
    fn as_another_process() {
        let Ok(path) = std::env::var(FILE) else { return };
        let file = File::options().write(true).open(path).unwrap();
        assert!(lock_byte(file.as_fd(), 7).is_err());
        lock_byte(file.as_fd(), 8).unwrap();
        assert!(lock_holder(file.as_fd()).unwrap().is_some());
    }

    /// Leaves a listener room for one client that it has not accepted.
    pub(crate) fn shorten_backlog(listener: BorrowedFd<'_>) {
        // SAFETY: the descriptor is borrowed and so open; the call takes a number.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    }

    #[test]
    fn a_program_that_is_started_can_be_ended_by_a_signal() {
        let _blocked = termination_fd().unwrap();
        let script = ["-c", "kill -TERM $$; exit 7"];
        assert_eq!(
            Command::new("sh").args(script).status().unwrap().code(),
            Some(7),
            "std hands the mask on"
        );
        let ended = unblock_termination(Command::new("sh").args(script)).status().unwrap();
        assert_eq!(ended.signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn a_locked_byte_is_refused_to_another_process_and_its_neighbour_is_not() {
        let path = std::env::temp_dir().join(format!("stubctl-lock-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        lock_byte(file.as_fd(), 7).unwrap();
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "ffi::sys::tests::as_another_process"]).env(FILE, &path);
        let output = again.output().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    }
}
