//! QMP: the device model's monitor, for two commands.
//!
//! **Takes** a command's name. **Gives** QEMU's word that it is done. **Never** waits longer than [`PATIENCE`].
//!
//! A line of JSON for each message; the server greets, wants `qmp_capabilities` first, and sends events between answers
//! (QEMU's `docs/interop/qmp-spec`). libxl uses the same socket and QEMU serves one client at a time, so the connection
//! may have to wait in QEMU's backlog for libxl to close its own.

use control::Untrusted;
use serde_json::{Value, json};
use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use xen_abi::types::Domid;

/// Longest time for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the device model did not do.
#[derive(Debug)]
pub(crate) enum QmpError {
    /// The socket.
    Io(PathBuf, io::Error),
    /// QEMU refused; its own words.
    Refused(&'static str, Untrusted<String>),
}

impl fmt::Display for QmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "the device model at {}: {error}", path.display()),
            Self::Refused(command, said) => write!(f, "the device model refused \"{command}\": {said}"),
        }
    }
}

impl std::error::Error for QmpError {}

/// A conversation with a guest's device model.
pub(crate) struct Qmp {
    path: PathBuf,
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Where libxl has a guest's device model listen.
    pub(crate) fn socket(guest: Domid) -> PathBuf {
        PathBuf::from(format!("/var/run/xen/qmp-libxl-{}", guest.raw()))
    }

    /// Connects; `None` when the guest has no device model.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn connect(path: PathBuf) -> Result<Option<Self>, QmpError> {
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(QmpError::Io(path, error)),
        };
        if let Err(error) = stream.set_read_timeout(Some(PATIENCE)) {
            return Err(QmpError::Io(path, error));
        }
        let mut qmp = Self { path, reader: BufReader::new(stream) };
        qmp.message()?; // the greeting
        qmp.execute("qmp_capabilities")?;
        Ok(Some(qmp))
    }

    /// Has the device model do something.
    ///
    /// # Errors
    /// It refuses or does not answer.
    pub(crate) fn execute(&mut self, command: &'static str) -> Result<(), QmpError> {
        let line = format!("{}\r\n", json!({ "execute": command }));
        self.reader.get_mut().write_all(line.as_bytes()).map_err(|error| self.io(error))?;
        loop {
            let answer = self.message()?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                let said = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                return Err(QmpError::Refused(command, Untrusted::new(said.to_owned())));
            }
        }
    }

    fn message(&mut self) -> Result<Value, QmpError> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err(self.io(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => serde_json::from_str(&line).map_err(|error| self.io(error.into())),
            Err(error) => Err(self.io(error)),
        }
    }

    fn io(&self, error: io::Error) -> QmpError {
        QmpError::Io(self.path.clone(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A device model that answers each line with the next of `answers`.
    fn serve(
        name: &str,
        answers: &'static [&'static str],
    ) -> (PathBuf, std::thread::JoinHandle<Vec<String>>) {
        let path = std::env::temp_dir().join(format!("qmp-{name}-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let served = std::thread::spawn(move || {
            let mut reader = BufReader::new(listener.accept().unwrap().0);
            let mut asked = Vec::new();
            reader.get_mut().write_all(b"{\"QMP\": {\"version\": {}}}\r\n").unwrap();
            for answer in answers {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                asked.push(line.trim().to_owned());
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            asked
        });
        (path, served)
    }

    #[test]
    fn events_between_command_and_answer_are_passed_over() {
        let answers = &["{\"return\": {}}\r\n", "{\"event\": \"STOP\"}\r\n{\"return\": {}}\r\n"];
        let (path, served) = serve("events", answers);
        let mut qmp = Qmp::connect(path.clone()).unwrap().unwrap();
        qmp.execute("stop").unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(served.join().unwrap(), ["{\"execute\":\"qmp_capabilities\"}", "{\"execute\":\"stop\"}"]);
    }

    #[test]
    fn a_refusal_carries_the_device_models_words() {
        let answers =
            &["{\"return\": {}}\n", "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n"];
        let (path, served) = serve("refusal", answers);
        let mut qmp = Qmp::connect(path.clone()).unwrap().unwrap();
        let error = qmp.execute("stop").unwrap_err().to_string();
        std::fs::remove_file(path).unwrap();
        served.join().unwrap();
        assert_eq!(error, "the device model refused \"stop\": no");
    }

    #[test]
    fn a_guest_without_a_device_model_has_no_socket() {
        assert!(Qmp::connect(PathBuf::from("/nonexistent/qmp")).unwrap().is_none());
    }
}
