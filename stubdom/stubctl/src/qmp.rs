//! QMP: the device model's monitor, for four commands.
//!
//! **Takes** a command's name. **Gives** QEMU's answer to that very command. **Never** waits longer than [`PATIENCE`] for
//! it, whatever else QEMU sends, nor past an interrupt, and never takes a line of more than [`MAX_LINE_BYTES`].
//!
//! A line of JSON for each message; the server greets, wants `qmp_capabilities` first, and sends events between answers
//! (QEMU's `docs/interop/qmp-spec`). An answer carries the `id` of its command: the late answer to one that was not waited
//! for to the end is not that of the next. libxl uses the same socket and QEMU serves one client at a time, so the connection
//! may have to wait for libxl to close its own.

use crate::ffi::sys::{self, Polled};
use crate::interrupt::{Interrupt, Stop};
use crate::wait::{Expired, Wait};
use control::Untrusted;
use serde_json::{Value, json};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use xen_abi::types::Domid;

/// Longest time for the connection, and for each answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often to look whether there is room in QEMU's backlog.
const LOOK: Duration = Duration::from_millis(50);

/// Longest line. The greeting has some 200 bytes, an event some hundred.
const MAX_LINE_BYTES: usize = 64 << 10;

/// What the device model did not do.
#[derive(Debug)]
pub(crate) enum QmpError {
    /// The socket.
    Io(PathBuf, io::Error),
    /// Nobody serves the socket any more: the device model is dead.
    Dead(PathBuf),
    /// No greeting in time.
    Busy(PathBuf, Duration),
    /// No answer to this command in time.
    Silent(&'static str, Duration),
    /// A line without end.
    TooLong(PathBuf),
    /// QEMU refused; its own words.
    Refused(&'static str, Untrusted<String>),
    /// It was told to go on, and is paused all the same.
    Paused,
    /// It was stopped for an exchange, and was not seen to go on.
    Stopped(Domid, Box<QmpError>),
    /// Not the device model's fault.
    Stop(Stop),
}

impl fmt::Display for QmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "the device model at {}: {error}", path.display()),
            Self::Dead(path) => {
                write!(
                    f,
                    "the device model is dead: nobody serves {} any more: restart the guest",
                    path.display()
                )
            }
            Self::Busy(path, waited) => {
                write!(
                    f,
                    "the device model did not greet at {} within {} s: it hangs, or another client holds its monitor; try \
                     again",
                    path.display(),
                    waited.as_secs()
                )
            }
            Self::Silent(command, waited) => {
                write!(f, "the device model did not answer \"{command}\" within {} s", waited.as_secs())
            }
            Self::TooLong(path) => {
                write!(
                    f,
                    "the device model at {} sent a line of more than {MAX_LINE_BYTES} bytes",
                    path.display()
                )
            }
            Self::Refused(command, said) => write!(f, "the device model refused \"{command}\": {said}"),
            Self::Paused => write!(f, "the device model was told to go on and is paused"),
            Self::Stopped(guest, error) => {
                write!(
                    f,
                    "{error}; it was stopped for an exchange and was not seen to go on, so that the disks and the console of \
                     {guest} may wait: stubctl tries again until it runs, or do: xl qemu-monitor-command {} cont",
                    guest.raw()
                )
            }
            Self::Stop(stop) => stop.fmt(f),
        }
    }
}

impl std::error::Error for QmpError {}

/// A conversation with a guest's device model.
pub(crate) struct Qmp<'a> {
    path: PathBuf,
    stream: UnixStream,
    interrupt: &'a Interrupt,
    patience: Duration,
    /// What came and was not looked at: the start of a line.
    unread: Vec<u8>,
    /// The number of the last command.
    id: u64,
}

impl<'a> Qmp<'a> {
    /// Where libxl has a guest's device model listen.
    pub(crate) fn socket(guest: Domid) -> PathBuf {
        PathBuf::from(format!("/var/run/xen/qmp-libxl-{}", guest.raw()))
    }

    /// Connects; `None` when the guest has no device model.
    ///
    /// # Errors
    /// It is dead or does not greet.
    pub(crate) fn connect(interrupt: &'a Interrupt, path: PathBuf) -> Result<Option<Self>, QmpError> {
        Self::connect_within(interrupt, path, PATIENCE)
    }

    fn connect_within(
        interrupt: &'a Interrupt,
        path: PathBuf,
        patience: Duration,
    ) -> Result<Option<Self>, QmpError> {
        let wait = Wait::new(interrupt, patience, LOOK);
        let opened = wait.until(|| match sys::connect_unix(&path) {
            Ok(stream) => Ok(Some(Some(stream))),
            Err(error) => match error.kind() {
                ErrorKind::NotFound => Ok(Some(None)),
                ErrorKind::ConnectionRefused => Err(QmpError::Dead(path.clone())),
                // The backlog is full.
                ErrorKind::WouldBlock => Ok(None),
                _ => Err(QmpError::Io(path.clone(), error)),
            },
        })?;
        let Some(opened) = opened else { return Err(QmpError::Busy(path, patience)) };
        let Some(stream) = opened else { return Ok(None) };
        let mut qmp = Self { path, stream, interrupt, patience, unread: Vec::new(), id: 0 };
        qmp.message(wait, "its greeting").map_err(|error| match error {
            QmpError::Silent(..) => QmpError::Busy(qmp.path.clone(), patience),
            error => error,
        })?;
        qmp.execute("qmp_capabilities")?;
        Ok(Some(qmp))
    }

    /// QEMU's word for the state of the guest: `running`, `paused` after a `stop`, and others for others who stopped it.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn state(&mut self) -> Result<String, QmpError> {
        let status = self.execute("query-status")?;
        Ok(status.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// Stops the guest's devices.
    ///
    /// # Errors
    /// It refuses or does not answer: then it may stop later.
    pub(crate) fn stop(&mut self) -> Result<(), QmpError> {
        self.execute("stop").map(drop)
    }

    /// Has devices that `stop` has stopped go on, and sees that they do. A state that no `stop` leads to is somebody
    /// else's, and stays.
    ///
    /// # Errors
    /// It refuses, does not answer, or stays as it is.
    pub(crate) fn go_on(&mut self) -> Result<(), QmpError> {
        self.execute("cont")?;
        self.see_it_run()
    }

    /// As [`Qmp::go_on`], where nobody knows any more whether the `stop` was done.
    ///
    /// # Errors
    /// As those.
    pub(crate) fn go_on_if_stopped(&mut self) -> Result<(), QmpError> {
        match self.see_it_run() {
            Err(QmpError::Paused) => self.go_on(),
            seen => seen,
        }
    }

    fn see_it_run(&mut self) -> Result<(), QmpError> {
        if self.state()? == "paused" { Err(QmpError::Paused) } else { Ok(()) }
    }

    /// Has it stop reporting what it writes to the guest's memory: a send has ended.
    ///
    /// # Errors
    /// It refuses or does not answer.
    pub(crate) fn end_dirty_log(&mut self) -> Result<(), QmpError> {
        self.execute_with("xen-set-global-dirty-log", &json!({ "enable": false })).map(drop)
    }

    /// Has the device model do something, and gives what it returns.
    fn execute(&mut self, command: &'static str) -> Result<Value, QmpError> {
        self.execute_with(command, &json!({}))
    }

    fn execute_with(&mut self, command: &'static str, arguments: &Value) -> Result<Value, QmpError> {
        let wait = Wait::new(self.interrupt, self.patience, self.patience);
        self.id += 1;
        let line = format!("{}\r\n", json!({ "execute": command, "arguments": arguments, "id": self.id }));
        self.write(wait, command, line.as_bytes())?;
        loop {
            let mut answer = self.message(wait, command)?;
            if answer.get("id").and_then(Value::as_u64) == Some(self.id) {
                if let Some(error) = answer.get("error") {
                    let said = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                    return Err(QmpError::Refused(command, Untrusted::new(said.to_owned())));
                }
                return Ok(answer.get_mut("return").map_or(Value::Null, Value::take));
            }
            // An event, or an answer that nobody waits for any more: the next is waited for no longer.
        }
    }

    fn write(&mut self, wait: Wait<'_>, command: &'static str, mut bytes: &[u8]) -> Result<(), QmpError> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(nr) => bytes = bytes.get(nr..).unwrap_or_default(),
                Err(error) if is_nothing_yet(&error) => {}
                Err(error) => return Err(self.io(error)),
            }
            let writable = Polled::writable(self.stream.as_fd());
            wait.sleep(&[&writable]).map_err(|expired| self.expired(expired, command))?;
        }
        Ok(())
    }

    /// Takes the next line.
    fn message(&mut self, wait: Wait<'_>, command: &'static str) -> Result<Value, QmpError> {
        let mut nr_searched = 0;
        loop {
            let rest = self.unread.get(nr_searched..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=nr_searched + end).collect();
                return serde_json::from_slice(&line).map_err(|error| self.io(error.into()));
            }
            nr_searched = self.unread.len();
            if nr_searched > MAX_LINE_BYTES {
                return Err(QmpError::TooLong(self.path.clone()));
            }
            self.read()?;
            let readable = Polled::readable(self.stream.as_fd());
            let has_more = self.unread.len() > nr_searched;
            let next = if has_more { wait.go_on() } else { wait.sleep(&[&readable]) };
            next.map_err(|expired| self.expired(expired, command))?;
        }
    }

    /// Takes what has come, if anything has.
    fn read(&mut self) -> Result<(), QmpError> {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(self.io(ErrorKind::UnexpectedEof.into())),
            Ok(nr) => {
                self.unread.extend_from_slice(bytes.get(..nr).unwrap_or_default());
                Ok(())
            }
            Err(error) if is_nothing_yet(&error) => Ok(()),
            Err(error) => Err(self.io(error)),
        }
    }

    fn expired(&self, expired: Expired, command: &'static str) -> QmpError {
        match expired {
            Expired::Late => QmpError::Silent(command, self.patience),
            Expired::Stop(stop) => QmpError::Stop(stop),
        }
    }

    fn io(&self, error: io::Error) -> QmpError {
        QmpError::Io(self.path.clone(), error)
    }
}

impl From<Stop> for QmpError {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

fn is_nothing_yet(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;
