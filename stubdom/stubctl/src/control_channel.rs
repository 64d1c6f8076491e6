//! The conversation with one stub: messages over its vchan, with a deadline for every answer.
//!
//! **Takes** messages for the stub. **Gives** messages of the stub. **Never** waits longer than it was told, nor on a
//! stub that is dead, nor past an interrupt.

mod error;

pub(crate) use error::ControlError;

use crate::byte_lock::{ByteLock, Kind};
use crate::ffi::sys::Polled;
use crate::ffi::vchan::Vchan;
use crate::host::Host;
use crate::interrupt::Stop;
use control::{Deframer, FromStub, LogLevel, MAX_MESSAGE_BYTES, ToStub};
use error::End;
use std::time::{Duration, Instant};
use xen_abi::types::Domid;

/// How often a silent stub is looked at.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);

/// An open conversation.
pub(crate) struct ControlChannel {
    vchan: Vchan,
    deframer: Deframer,
    stub: Domid,
    /// A vchan has one client.
    _lock: ByteLock,
}

impl ControlChannel {
    /// Waits for the stub to announce its channel, connects, and exchanges versions; gives the stub's target too.
    ///
    /// # Errors
    /// The stub does not answer before `deadline`, is dead, or is of another build.
    pub(crate) fn open(
        host: &Host,
        stub: Domid,
        patience: Duration,
    ) -> Result<(Self, Option<Domid>), ControlError> {
        let deadline = Instant::now() + patience;
        let path = format!("/local/domain/{}/{}", stub.raw(), control::VCHAN_PATH);
        match wait_for_node(host, stub, &format!("{path}/event-channel"), patience) {
            // A stub withdraws its offer while it has a client: then it is that client we waited for in vain.
            Err(silent @ ControlError::Silent { .. }) => return Err(lock(stub).err().unwrap_or(silent)),
            offered => offered?,
        }
        let lock = lock(stub)?;
        let vchan = Vchan::connect(stub, &path).map_err(ControlError::Connect)?;
        let mut channel = Self { vchan, deframer: Deframer::new(), stub, _lock: lock };
        channel.send(host, &ToStub::Hello { version: control::VERSION })?;
        let left = deadline.saturating_duration_since(Instant::now());
        let (version, target) = channel.wait(host, left, "its greeting", |message| match message {
            FromStub::Hello { version, target } => Some((version, target)),
            _ => None,
        })?;
        if version == control::VERSION {
            Ok((channel, target))
        } else {
            Err(ControlError::Version { stub: version })
        }
    }

    /// Tells the stub its target, unless it knows it.
    ///
    /// # Errors
    /// It refuses or has another.
    pub(crate) fn pair(
        &mut self,
        host: &Host,
        known: Option<Domid>,
        target: Domid,
        patience: Duration,
    ) -> Result<(), ControlError> {
        match known {
            Some(got) if got == target => Ok(()),
            Some(got) => Err(ControlError::OtherTarget { expected: target, got }),
            None => {
                self.send(host, &ToStub::Pair { target })?;
                self.wait(host, patience, "Done for Pair", |message| {
                    matches!(message, FromStub::Done).then_some(())
                })
            }
        }
    }

    /// Sends one message, waiting for room as long as the stub is alive.
    ///
    /// # Errors
    /// The stub does not read.
    pub(crate) fn send(&mut self, host: &Host, message: &ToStub) -> Result<(), ControlError> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let mut buffer = [0; MAX_MESSAGE_BYTES + 2];
        let mut bytes = control::encode(message, &mut buffer)?;
        let start = Instant::now();
        while !bytes.is_empty() {
            let nr = self.vchan.write(bytes);
            bytes = bytes.get(nr..).unwrap_or_default();
            if nr == 0 {
                self.check_alive(host)?;
                self.check_patience(start, PATIENCE, "it to read a message")?;
                self.doze(host)?;
            }
        }
        Ok(())
    }

    /// Waits for the message that `pick` wants; log lines are logged, `Failed` is an error, others are passed over.
    ///
    /// # Errors
    /// It does not come.
    pub(crate) fn wait<T>(
        &mut self,
        host: &Host,
        patience: Duration,
        expected: &'static str,
        mut pick: impl FnMut(FromStub<'_>) -> Option<T>,
    ) -> Result<T, ControlError> {
        let start = Instant::now();
        loop {
            while let Some(found) = self.next(&mut pick)? {
                if let Some(found) = found {
                    return Ok(found);
                }
            }
            self.check_alive(host)?;
            self.check_patience(start, patience, expected)?;
            self.doze(host)?;
        }
    }

    /// Takes the next message, if one is there, and gives what `take` makes of it; log lines and `Failed` are dealt
    /// with here.
    ///
    /// # Errors
    /// The stub failed, closed the channel, or sent no message.
    pub(crate) fn next<T>(
        &mut self,
        take: &mut impl FnMut(FromStub<'_>) -> Option<T>,
    ) -> Result<Option<Option<T>>, ControlError> {
        self.receive();
        let taken = match self.deframer.message()? {
            None if self.vchan.is_open() => return Ok(None),
            None => return Err(ControlError::Closed),
            Some(FromStub::Failed { text }) => return Err(ControlError::Failed(text.to_string())),
            Some(FromStub::Log { level, text }) => {
                log::log!(log_level(level), "stub: {text}");
                None
            }
            Some(message) => take(message),
        };
        self.deframer.consume();
        Ok(Some(taken))
    }

    /// What to wait on for [`ControlChannel::next`].
    pub(crate) fn readable(&self) -> Polled<'_> {
        Polled::readable(self.vchan.fd())
    }

    /// Takes the signal away that made [`ControlChannel::readable`] ready.
    pub(crate) fn acknowledge(&self) {
        self.vchan.acknowledge();
    }

    /// Fails when the stub's domain has ended: the channel alone does not show that.
    pub(crate) fn check_alive(&self, host: &Host) -> Result<(), ControlError> {
        check_alive(host, self.stub)
    }

    /// Moves what the vchan holds into the deframer.
    fn receive(&mut self) {
        loop {
            let nr = self.vchan.read(self.deframer.spare());
            if nr == 0 {
                break;
            }
            self.deframer.advance(nr);
        }
    }

    /// Waits for the stub to signal, at most a heartbeat.
    fn doze(&self, host: &Host) -> Result<(), Stop> {
        let signalled = self.readable();
        host.interrupt.wait(&[&signalled], HEARTBEAT)?;
        if signalled.is_ready() {
            self.vchan.acknowledge();
        }
        Ok(())
    }

    fn check_patience(
        &self,
        start: Instant,
        patience: Duration,
        expected: &'static str,
    ) -> Result<(), ControlError> {
        if start.elapsed() < patience {
            return Ok(());
        }
        Err(ControlError::Silent { expected, waited: patience })
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
fn wait_for_node(host: &Host, stub: Domid, path: &str, patience: Duration) -> Result<(), ControlError> {
    let start = Instant::now();
    host.store.watch(path)?;
    let found = loop {
        if host.store.read(path)?.is_some() {
            break Ok(());
        }
        check_alive(host, stub)?;
        if start.elapsed() >= patience {
            break Err(ControlError::Silent {
                expected: "it to offer its control channel",
                waited: patience,
            });
        }
        let left = patience.saturating_sub(start.elapsed()).min(HEARTBEAT);
        host.interrupt.wait(&[&Polled::readable(host.store.fd())], left)?;
        host.store.drain_watches();
    };
    host.store.unwatch(path)?;
    found
}

fn log_level(level: LogLevel) -> log::Level {
    match level {
        LogLevel::Error => log::Level::Error,
        LogLevel::Warn => log::Level::Warn,
        LogLevel::Info => log::Level::Info,
        LogLevel::Debug => log::Level::Debug,
    }
}
