//! The conversation with one stub: messages over its vchan, with a deadline for every answer.
//!
//! **Takes** messages for the stub. **Gives** messages of the stub. **Never** waits longer than it was told, nor on a
//! stub that is dead, nor past an interrupt, however much the stub has to say meanwhile.

mod error;
mod limits;

pub(crate) use error::ControlError;

use crate::byte_lock::{ByteLock, Kind};
use crate::ffi::sys::Polled;
use crate::ffi::vchan::{Nonsense, Vchan};
use crate::host::Host;
use crate::interrupt::Interrupt;
use crate::wait::{Expired, Wait};
use control::{Deframer, FromStub, LogLevel, MAX_MESSAGE_BYTES, ToStub, Untrusted};
use error::End;
use limits::{Lines, Messages};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};
use xen_abi::types::Domid;

/// How often a silent stub is looked at.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);

/// How long a stub may take to make room for a message.
const ROOM: Duration = Duration::from_secs(10);

/// How many messages are taken before the deadline, the interrupt and the stub's life are looked at again.
pub(crate) const MESSAGES_PER_TURN: usize = 64;

/// The bytes of a conversation, both ways, without waiting.
pub(crate) trait Line {
    /// Readable when the other end signalled; then call [`Line::acknowledge`].
    fn fd(&self) -> BorrowedFd<'_>;
    /// Takes the pending signal away.
    fn acknowledge(&self);
    /// Whether the other end is still there.
    fn is_open(&self) -> bool;
    /// Copies what is there into `out`; 0 when there is nothing.
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Nonsense>;
    /// Sends as much of `bytes` as fits; 0 when there is no room.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Nonsense>;
}

/// A stub's vchan, which has one client.
struct Client {
    vchan: Vchan,
    _lock: ByteLock,
}

impl Line for Client {
    fn fd(&self) -> BorrowedFd<'_> {
        self.vchan.connection().fd()
    }

    fn acknowledge(&self) {
        self.vchan.connection().acknowledge();
    }

    fn is_open(&self) -> bool {
        self.vchan.connection().is_open()
    }

    fn read(&mut self, out: &mut [u8]) -> Result<usize, Nonsense> {
        self.vchan.read(out)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Nonsense> {
        self.vchan.write(bytes)
    }
}

/// Fails when the stub's domain has ended: the channel alone does not show that.
type Life<'a> = Box<dyn Fn() -> Result<(), ControlError> + 'a>;

/// An open conversation.
pub(crate) struct ControlChannel<'a> {
    line: Box<dyn Line>,
    interrupt: &'a Interrupt,
    life: Life<'a>,
    /// How long an answer may take.
    patience: Duration,
    deframer: Deframer,
    messages: Messages,
    lines: Lines,
}

/// What a message means to who waits for one.
pub(crate) enum Heard<T> {
    /// It is what was waited for.
    Answer(T),
    /// It is a piece of that, of which there is a bounded number: the time starts anew.
    Piece,
    /// It is passed over.
    Nothing,
}

/// What [`ControlChannel::next`] found.
pub(crate) enum Next<T> {
    /// No whole message is there.
    Nothing,
    /// A message for the channel itself: a line of the log.
    Own,
    /// What was made of a message.
    Taken(T),
}

impl<'a> ControlChannel<'a> {
    /// Waits for the stub to announce its channel, connects, and exchanges versions; gives the stub's target too. All that
    /// takes at most `greeting`, and each answer later at most `patience`.
    ///
    /// # Errors
    /// The stub does not answer in time, is dead, or is of another build.
    pub(crate) fn open(
        host: &'a Host,
        stub: Domid,
        greeting: Duration,
        patience: Duration,
    ) -> Result<(Self, Option<Domid>), ControlError> {
        Self::connect(host, stub, Wait::new(&host.interrupt, greeting, HEARTBEAT), patience)
    }

    /// As [`ControlChannel::open`], and tells the stub its target, unless it knows it.
    ///
    /// # Errors
    /// As those, or the stub refuses or has another target.
    pub(crate) fn open_paired(
        host: &'a Host,
        stub: Domid,
        target: Domid,
        greeting: Duration,
        patience: Duration,
    ) -> Result<Self, ControlError> {
        let wait = Wait::new(&host.interrupt, greeting, HEARTBEAT);
        let (mut channel, known) = Self::connect(host, stub, wait, patience)?;
        match known {
            Some(got) if got == target => {}
            Some(got) => return Err(ControlError::OtherTarget { expected: target, got }),
            None => {
                channel.send(&ToStub::Pair { target })?;
                channel.hear(wait, "Done for Pair", |message| match message {
                    FromStub::Done => Heard::Answer(()),
                    _ => Heard::Nothing,
                })?;
            }
        }
        Ok(channel)
    }

    fn connect(
        host: &'a Host,
        stub: Domid,
        wait: Wait<'a>,
        patience: Duration,
    ) -> Result<(Self, Option<Domid>), ControlError> {
        let path = format!("/local/domain/{}/{}", stub.raw(), control::VCHAN_PATH);
        match wait_for_node(host, stub, &format!("{path}/event-channel"), wait) {
            // A stub withdraws its offer while it has a client: then it is that client we waited for in vain.
            Err(silent @ ControlError::Silent { .. }) => return Err(lock(stub).err().unwrap_or(silent)),
            offered => offered?,
        }
        let lock = lock(stub)?;
        let vchan = Vchan::connect(&host.store, stub, &path).map_err(ControlError::Connect)?;
        let line = Box::new(Client { vchan, _lock: lock });
        let mut channel =
            Self::over(line, &host.interrupt, Box::new(move || check_alive(host, stub)), patience);
        channel.send(&ToStub::Hello { version: control::VERSION })?;
        let (version, target) = channel.hear(wait, "its greeting", |message| match message {
            FromStub::Hello { version, target } => Heard::Answer((version, target)),
            _ => Heard::Nothing,
        })?;
        if version == control::VERSION {
            Ok((channel, target))
        } else {
            Err(ControlError::Version { stub: version })
        }
    }

    fn over(line: Box<dyn Line>, interrupt: &'a Interrupt, life: Life<'a>, patience: Duration) -> Self {
        let now = Instant::now();
        let (messages, lines) = (Messages::new(now), Lines::new(now));
        Self { line, interrupt, life, patience, deframer: Deframer::new(), messages, lines }
    }

    /// Sends one message, waiting for room as long as the stub is alive.
    ///
    /// # Errors
    /// The stub does not read.
    pub(crate) fn send(&mut self, message: &ToStub) -> Result<(), ControlError> {
        let mut buffer = [0; MAX_MESSAGE_BYTES + 2];
        let mut bytes = control::encode(message, &mut buffer)?;
        let wait = Wait::new(self.interrupt, ROOM, HEARTBEAT);
        self.messages.command();
        loop {
            let nr = self.line.write(bytes)?;
            bytes = bytes.get(nr..).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(());
            }
            self.turn(wait, "it to read a message", nr > 0)?;
        }
    }

    /// Waits for the message that `pick` wants; log lines are logged, `Failed` is an error, others are passed over.
    ///
    /// # Errors
    /// It does not come.
    pub(crate) fn wait<T>(
        &mut self,
        expected: &'static str,
        pick: impl FnMut(FromStub<'_>) -> Option<T>,
    ) -> Result<T, ControlError> {
        self.wait_within(self.patience, expected, pick)
    }

    /// As [`ControlChannel::wait`], at most so long.
    ///
    /// # Errors
    /// It does not come.
    pub(crate) fn wait_within<T>(
        &mut self,
        patience: Duration,
        expected: &'static str,
        mut pick: impl FnMut(FromStub<'_>) -> Option<T>,
    ) -> Result<T, ControlError> {
        let wait = Wait::new(self.interrupt, patience, HEARTBEAT);
        self.hear(wait, expected, |message| pick(message).map_or(Heard::Nothing, Heard::Answer))
    }

    /// Waits for an answer in pieces, for each of which there is as much time as for an answer.
    ///
    /// # Errors
    /// It does not come, or not on.
    pub(crate) fn wait_for_pieces<T>(
        &mut self,
        expected: &'static str,
        pick: impl FnMut(FromStub<'_>) -> Heard<T>,
    ) -> Result<T, ControlError> {
        self.hear(Wait::new(self.interrupt, self.patience, HEARTBEAT), expected, pick)
    }

    fn hear<T>(
        &mut self,
        mut wait: Wait<'_>,
        expected: &'static str,
        mut pick: impl FnMut(FromStub<'_>) -> Heard<T>,
    ) -> Result<T, ControlError> {
        loop {
            let mut has_more = true;
            for _ in 0..MESSAGES_PER_TURN {
                match self.next(&mut pick)? {
                    Next::Taken(Heard::Answer(answer)) => return Ok(answer),
                    Next::Taken(Heard::Piece) => wait.renew(),
                    Next::Taken(Heard::Nothing) | Next::Own => {}
                    Next::Nothing => {
                        has_more = false;
                        break;
                    }
                }
            }
            self.turn(wait, expected, has_more)?;
        }
    }

    /// Takes the next message, if one is there, and gives what `take` makes of it; log lines and `Failed` are dealt
    /// with here.
    ///
    /// # Errors
    /// The stub failed, closed the channel, sent no message, or sends too many.
    pub(crate) fn next<T>(
        &mut self,
        take: &mut impl FnMut(FromStub<'_>) -> T,
    ) -> Result<Next<T>, ControlError> {
        self.receive()?;
        let taken = match self.deframer.message()? {
            None if self.line.is_open() => return Ok(Next::Nothing),
            None => return Err(ControlError::Closed),
            Some(_) if !self.messages.allow(Instant::now()) => return Err(ControlError::Flood),
            Some(FromStub::Failed { text }) => return Err(ControlError::Failed(text.to_string())),
            Some(FromStub::Log { level, text }) => {
                show(&mut self.lines, log_level(level), text);
                Next::Own
            }
            Some(message) => Next::Taken(take(message)),
        };
        self.deframer.consume();
        Ok(taken)
    }

    /// What to wait on for [`ControlChannel::next`].
    pub(crate) fn readable(&self) -> Polled<'_> {
        Polled::readable(self.line.fd())
    }

    /// Takes the signal away that made [`ControlChannel::readable`] ready.
    pub(crate) fn acknowledge(&self) {
        self.line.acknowledge();
    }

    /// Fails when the stub's domain has ended: the channel alone does not show that.
    pub(crate) fn check_alive(&self) -> Result<(), ControlError> {
        (self.life)()
    }

    /// Moves what the line holds into the deframer.
    fn receive(&mut self) -> Result<(), Nonsense> {
        loop {
            let nr = self.line.read(self.deframer.spare())?;
            if nr == 0 {
                return Ok(());
            }
            self.deframer.advance(nr);
        }
    }

    /// Begins the next turn of a wait for the stub: at once when there is more to do, else when the stub signals.
    fn turn(&self, wait: Wait<'_>, expected: &'static str, has_more: bool) -> Result<(), ControlError> {
        self.check_alive()?;
        let signalled = self.readable();
        let next = if has_more { wait.go_on() } else { wait.sleep(&[&signalled]) };
        if signalled.is_ready() {
            self.line.acknowledge();
        }
        next.map_err(|expired| not_heard(expired, expected, wait))
    }
}

impl Drop for ControlChannel<'_> {
    fn drop(&mut self) {
        let nr_suppressed = self.lines.nr_suppressed();
        if nr_suppressed > 0 {
            log::warn!("stub: {nr_suppressed} lines were suppressed");
        }
    }
}

/// Shows a line of a stub's, unless it has shown too many.
fn show(lines: &mut Lines, level: log::Level, text: Untrusted<&str>) {
    match lines.take(Instant::now()) {
        limits::Line::Suppressed => return,
        limits::Line::Shown { nr_suppressed: 0 } | limits::Line::Last => {}
        limits::Line::Shown { nr_suppressed } => log::warn!("stub: {nr_suppressed} lines were suppressed"),
    }
    log::log!(level, "stub: {text}");
}

fn not_heard(expired: Expired, expected: &'static str, wait: Wait<'_>) -> ControlError {
    match expired {
        Expired::Late => ControlError::Silent { expected, waited: wait.allowed() },
        Expired::Stop(stop) => stop.into(),
    }
}

/// Takes the lock of this stub's channel.
fn lock(stub: Domid) -> Result<ByteLock, ControlError> {
    ByteLock::take_now(Kind::Channel, stub.raw())?.ok_or(ControlError::Busy(stub))
}

/// Fails when the domain is gone, dying or shut down.
fn check_alive(host: &Host, stub: Domid) -> Result<(), ControlError> {
    match End::of(host.xen.domain_info(stub)?.as_ref()) {
        None => Ok(()),
        Some(end) => Err(ControlError::Dead { stub, end }),
    }
}

/// Waits until a node of the stub exists.
fn wait_for_node(host: &Host, stub: Domid, path: &str, wait: Wait<'_>) -> Result<(), ControlError> {
    const EXPECTED: &str = "it to offer its control channel";
    let watch = host.store.watch(path)?;
    while host.store.read(path)?.is_none() {
        check_alive(host, stub)?;
        let woken = wait.sleep(&[&Polled::readable(watch.fd())]);
        woken.map_err(|expired| not_heard(expired, EXPECTED, wait))?;
        watch.drain();
    }
    Ok(())
}

fn log_level(level: LogLevel) -> log::Level {
    match level {
        LogLevel::Error => log::Level::Error,
        LogLevel::Warn => log::Level::Warn,
        LogLevel::Info => log::Level::Info,
        LogLevel::Debug => log::Level::Debug,
    }
}

#[cfg(test)]
pub(crate) mod tests;
