//! The per-guest configuration: which guests have a stub, and what kind.
//!
//! **Takes** the text of `default.conf` and `NAME.conf`. **Gives** a [`Conf`], or nothing when neither file is there.
//! **Never** guesses: an unknown key or a bad value is an error that names file and line.
//!
//! A line is `key = value`, `#` starts a comment. `NAME.conf` stands over `default.conf`, which stands over the
//! built-in values.

use control::Transport;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the files are.
pub(crate) const DIRECTORY: &str = "/etc/xen/stubdom";

/// The name of an incoming guest until the source has let go of it (`xl migrate-receive`).
const INCOMING_SUFFIX: &str = "--incoming";

/// How a guest's stub is made and watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conf {
    /// Whether the guest has a stub at all (`enabled`).
    pub(crate) enabled: bool,
    /// The xl config of the stub (`config`).
    pub(crate) config: PathBuf,
    /// Memory of the stub in MiB (`memory`); `None`: as the xl config says.
    pub(crate) memory_mib: Option<u32>,
    /// What carries the stream to the stub (`transport`).
    pub(crate) transport: Transport,
    /// The bridge between relay and stubs (`bridge`), for transport `tcp`.
    pub(crate) bridge: String,
    /// How long a stub may take from `xl create` to its first answer (`start_timeout_s`).
    pub(crate) start_timeout: Duration,
    /// How long a stub may owe an answer or take no bytes (`stall_timeout_s`).
    pub(crate) stall_timeout: Duration,
}

impl Default for Conf {
    fn default() -> Self {
        Self {
            enabled: true,
            config: Path::new(DIRECTORY).join("stubdom.cfg"),
            memory_mib: None,
            // The relay and the stub share a host: shared pages spare both ends a network stack, and xl its scripts.
            transport: Transport::Ring,
            bridge: "xenstub0".to_owned(),
            start_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(60),
        }
    }
}

/// What is wrong with a configuration file.
#[derive(Debug)]
pub(crate) enum ConfError {
    /// The file is there and cannot be read.
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A line that is not configuration.
    BadLine {
        /// Which file.
        file: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// What is wrong with one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No `=` in it.
    NoEquals(String),
    /// A key that does not exist.
    UnknownKey(String),
    /// A value that its key does not take.
    BadValue {
        /// The key.
        key: &'static str,
        /// The value found.
        got: String,
        /// What would have been right.
        expected: &'static str,
    },
}

const KEYS: &str = "enabled, config, memory, transport, bridge, start_timeout_s, stall_timeout_s";

impl fmt::Display for ConfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, error } => write!(f, "{}: cannot read: {error}", file.display()),
            Self::BadLine { file, line, fault } => write!(f, "{}:{line}: {fault}", file.display()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEquals(got) => write!(f, "expected \"key = value\", got \"{got}\""),
            Self::UnknownKey(key) => write!(f, "unknown key \"{key}\", expected one of {KEYS}"),
            Self::BadValue { key, got, expected } => write!(f, "{key}: expected {expected}, got \"{got}\""),
        }
    }
}

impl std::error::Error for ConfError {}

impl Conf {
    /// Looks a guest up by its xenstore name; `None` when there is neither `NAME.conf` nor `default.conf`.
    ///
    /// # Errors
    /// A file that is there and is not right.
    pub(crate) fn find(directory: &Path, guest: &str) -> Result<Option<Self>, ConfError> {
        let names = ["default", settled_name(guest)];
        let mut found = None;
        for name in names.into_iter().filter(|name| is_file_name(name)) {
            let file = directory.join(format!("{name}.conf"));
            if let Some(text) = read_if_there(&file)? {
                found.get_or_insert_with(Self::default).apply(&file, &text)?;
            }
        }
        Ok(found)
    }

    /// Sets what the lines of `text` say.
    fn apply(&mut self, file: &Path, text: &str) -> Result<(), ConfError> {
        for (index, line) in text.lines().enumerate() {
            self.apply_line(line).map_err(|fault| ConfError::BadLine {
                file: file.to_owned(),
                line: index + 1,
                fault,
            })?;
        }
        Ok(())
    }

    fn apply_line(&mut self, line: &str) -> Result<(), Fault> {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            return Ok(());
        }
        let (key, value) = line.split_once('=').ok_or_else(|| Fault::NoEquals(line.to_owned()))?;
        let value = value.trim().trim_matches('"');
        match key.trim() {
            "enabled" => self.enabled = truth("enabled", value)?,
            "config" => self.config = absolute("config", value)?,
            "memory" => self.memory_mib = Some(number("memory", value, 4, 1024, "MiB from 4 to 1024")?),
            "transport" => self.transport = transport("transport", value)?,
            "bridge" => self.bridge = interface("bridge", value)?,
            "start_timeout_s" => self.start_timeout = seconds("start_timeout_s", value)?,
            "stall_timeout_s" => self.stall_timeout = seconds("stall_timeout_s", value)?,
            unknown => return Err(Fault::UnknownKey(unknown.to_owned())),
        }
        Ok(())
    }
}

/// The guest's name without the mark of an unfinished migration.
pub(crate) fn settled_name(guest: &str) -> &str {
    guest.strip_suffix(INCOMING_SUFFIX).unwrap_or(guest)
}

/// Whether a guest's name may name a file: it came with the stream, so it must not leave the directory.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

fn read_if_there(file: &Path) -> Result<Option<String>, ConfError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ConfError::Unreadable { file: file.to_owned(), error }),
    }
}

fn truth(key: &'static str, got: &str) -> Result<bool, Fault> {
    match got {
        "yes" | "true" | "1" => Ok(true),
        "no" | "false" | "0" => Ok(false),
        _ => Err(Fault::BadValue { key, got: got.to_owned(), expected: "yes or no" }),
    }
}

fn transport(key: &'static str, got: &str) -> Result<Transport, Fault> {
    match got {
        "ring" => Ok(Transport::Ring),
        "tcp" => Ok(Transport::Tcp),
        _ => Err(Fault::BadValue { key, got: got.to_owned(), expected: "ring or tcp" }),
    }
}

fn number(key: &'static str, got: &str, low: u32, high: u32, expected: &'static str) -> Result<u32, Fault> {
    let value = got.parse().ok().filter(|value| (low..=high).contains(value));
    value.ok_or_else(|| Fault::BadValue { key, got: got.to_owned(), expected })
}

fn seconds(key: &'static str, got: &str) -> Result<Duration, Fault> {
    let seconds = number(key, got, 1, 3600, "seconds from 1 to 3600")?;
    Ok(Duration::from_secs(seconds.into()))
}

fn absolute(key: &'static str, got: &str) -> Result<PathBuf, Fault> {
    let path = Path::new(got);
    let fault = || Fault::BadValue { key, got: got.to_owned(), expected: "an absolute path" };
    path.is_absolute().then(|| path.to_owned()).ok_or_else(fault)
}

/// Linux's rule for interface names, tightened: it becomes part of paths and of an xl config line.
fn interface(key: &'static str, got: &str) -> Result<String, Fault> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let right = (1..=15).contains(&got.len()) && !got.starts_with('.') && got.chars().all(plain);
    let fault = || Fault::BadValue { key, got: got.to_owned(), expected: "an interface name" };
    right.then(|| got.to_owned()).ok_or_else(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(line: &str) -> Fault {
        Conf::default().apply_line(line).unwrap_err()
    }

    #[test]
    fn a_file_sets_what_it_names_and_leaves_the_rest() {
        let mut conf = Conf::default();
        let text = "# one stub for all\n\nenabled = yes\nmemory=32 # MiB\nbridge = \"br-stub\"\nstall_timeout_s = 5\ntransport = tcp\n";
        conf.apply(Path::new("default.conf"), text).unwrap();
        let expected = Conf {
            memory_mib: Some(32),
            transport: Transport::Tcp,
            bridge: "br-stub".to_owned(),
            stall_timeout: Duration::from_secs(5),
            ..Conf::default()
        };
        assert_eq!(conf, expected);
    }

    #[test]
    fn an_error_names_file_and_line() {
        let error =
            Conf::default().apply(Path::new("/x/db.conf"), "enabled=yes\ncolour = blue\n").unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("/x/db.conf:2: unknown key \"colour\", expected one of enabled,"), "{text}");
    }

    #[test]
    fn bad_values_say_what_was_expected() {
        assert_eq!(fault("nonsense"), Fault::NoEquals("nonsense".to_owned()));
        assert_eq!(fault("enabled = maybe").to_string(), "enabled: expected yes or no, got \"maybe\"");
        assert_eq!(fault("transport = udp").to_string(), "transport: expected ring or tcp, got \"udp\"");
        assert_eq!(fault("memory = 2").to_string(), "memory: expected MiB from 4 to 1024, got \"2\"");
        assert_eq!(
            fault("config = stubdom.cfg").to_string(),
            "config: expected an absolute path, got \"stubdom.cfg\""
        );
        for bad in ["bridge = ", "bridge = a/b", "bridge = x'y", "bridge = sixteen-letters-", "bridge = .."] {
            assert!(matches!(fault(bad), Fault::BadValue { key: "bridge", .. }), "{bad}");
        }
    }

    #[test]
    fn the_guests_file_stands_over_the_default() {
        let directory = std::env::temp_dir().join(format!("stubctl-conf-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        assert!(Conf::find(&directory, "db").unwrap().is_none());
        std::fs::write(directory.join("default.conf"), "enabled = no\nmemory = 24\n").unwrap();
        std::fs::write(directory.join("db.conf"), "enabled = yes\n").unwrap();
        let db = Conf::find(&directory, "db--incoming").unwrap().unwrap();
        let other = Conf::find(&directory, "other").unwrap().unwrap();
        let outside = Conf::find(&directory, "../../db").unwrap().unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!((db.enabled, db.memory_mib), (true, Some(24)));
        assert_eq!((other.enabled, other.memory_mib), (false, Some(24)));
        assert!(!outside.enabled);
    }
}
