//! The configuration: which guests have a stub, what kind, and who restores them when there is none.
//!
//! **Takes** the text of `default.conf` and `NAME.conf`, which is TOML. **Gives** a [`Conf`], or nothing when neither file
//! is there. **Never** guesses: an unknown key or a bad value is an error that names file and line.
//!
//! `NAME.conf` stands over `default.conf`, which stands over the built-in values. A guest's name comes with its stream, so
//! `NAME.conf` cannot loosen what `default.conf` refuses: of two values of `fallback` the stricter one holds, and
//! `otherwise` is for `default.conf` only.

use control::Transport;
use control::send::{Limits, Timeout};
use migration::plan::LEAST_MIB;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

/// Where the files are.
pub(crate) const DIRECTORY: &str = "/etc/xen/stubdom";

/// The file for guests without one of their own, without `.conf`.
const DEFAULT: &str = "default";

/// The name of an incoming guest until the source has let go of it (`xl migrate-receive`).
const INCOMING_SUFFIX: &str = "--incoming";

/// How a guest's stub is made and watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conf {
    /// The file that says that the guest has no stub (`enabled = false`); `None`: it has one.
    pub(crate) disabled_in: Option<PathBuf>,
    /// The xl config of the stub (`config`).
    pub(crate) config: PathBuf,
    /// The least memory of the stub in MiB (`memory`); the guest's size may ask for more.
    pub(crate) memory_mib: Option<u32>,
    /// What carries the stream to the stub (`transport`).
    pub(crate) transport: Transport,
    /// The bridge between relay and stubs (`bridge`), for transport `tcp`.
    pub(crate) bridge: String,
    /// How the guest is sent.
    pub(crate) send: SendConf,
    /// How long a stub may take from `xl create` to its first answer (`start_timeout_s`).
    pub(crate) start_timeout: Duration,
    /// How long a stub may owe an answer or take no bytes (`stall_timeout_s`).
    pub(crate) stall_timeout: Duration,
    /// Who restores a guest whose stub is not to be had (`fallback`).
    pub(crate) fallback: Recourse,
    /// Who restores what no stub serves: PV guests, checkpointed streams, guests with `enabled = false` (`otherwise`).
    pub(crate) otherwise: Recourse,
}

/// Who restores a guest in the place of a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Recourse {
    /// The packaged helper, in dom0.
    Packaged,
    /// Nobody: the restore fails.
    Refuse,
}

impl Default for Conf {
    fn default() -> Self {
        Self {
            disabled_in: None,
            config: Path::new(DIRECTORY).join("stubdom.cfg"),
            memory_mib: None,
            // The relay and the stub share a host: shared pages spare both ends a network stack, and xl its scripts.
            transport: Transport::Ring,
            bridge: "xenstub0".to_owned(),
            send: SendConf::default(),
            start_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(60),
            // A guest restored without a stub is better than none: behind a saved file there may be no source any more.
            fallback: Recourse::Packaged,
            otherwise: Recourse::Packaged,
        }
    }
}

/// What a file says; what it does not name stays as it was.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    enabled: Option<bool>,
    #[serde(default, deserialize_with = "absolute")]
    config: Option<PathBuf>,
    #[serde(default, deserialize_with = "mebibytes")]
    memory: Option<u32>,
    transport: Option<Carrier>,
    #[serde(default, deserialize_with = "interface")]
    bridge: Option<String>,
    send: Option<bool>,
    #[serde(default, deserialize_with = "passes")]
    send_passes: Option<u32>,
    #[serde(default, deserialize_with = "downtime")]
    send_downtime_ms: Option<u32>,
    #[serde(default, deserialize_with = "rate")]
    send_mib_s: Option<u32>,
    #[serde(default, deserialize_with = "seconds")]
    send_finish_after_s: Option<Duration>,
    #[serde(default, deserialize_with = "seconds")]
    send_abort_after_s: Option<Duration>,
    #[serde(default, deserialize_with = "seconds")]
    start_timeout_s: Option<Duration>,
    #[serde(default, deserialize_with = "seconds")]
    stall_timeout_s: Option<Duration>,
    fallback: Option<Recourse>,
    otherwise: Option<Spanned<Recourse>>,
}

/// [`Transport`] as the configuration spells it.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Carrier {
    Ring,
    Tcp,
}

/// How a guest is saved, or migrated away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SendConf {
    /// Whether its stub does it (`send`); the packaged helper otherwise.
    pub(crate) enabled: bool,
    /// When a running guest is suspended (`send_passes`, `send_downtime_ms`, `send_mib_s`, `send_finish_after_s`,
    /// `send_abort_after_s`).
    pub(crate) limits: Limits,
}

impl Default for SendConf {
    /// As many passes as libxenguest makes, and no more than it needs (`xg_sr_save.c`).
    fn default() -> Self {
        let limits = Limits { max_passes: 5, downtime_ms: 20, most_bytes_a_second: None, timeout: None };
        Self { enabled: true, limits }
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
        fault: String,
    },
}

impl fmt::Display for ConfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, error } => write!(f, "{}: cannot read: {error}", file.display()),
            Self::BadLine { file, line, fault } => write!(f, "{}:{line}: {fault}", file.display()),
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
        let guest = settled_name(guest);
        let own = Some(guest).filter(|name| is_file_name(name) && *name != DEFAULT);
        let mut found = None;
        for name in [DEFAULT].into_iter().chain(own) {
            let file = directory.join(format!("{name}.conf"));
            if let Some(text) = read_if_there(&file)? {
                found.get_or_insert_with(Self::default).read(&file, &text)?;
            }
        }
        Ok(found)
    }

    /// Sets what the text of a file says.
    pub(crate) fn read(&mut self, file: &Path, text: &str) -> Result<(), ConfError> {
        let is_default = file.file_stem().is_some_and(|name| name == DEFAULT);
        let settings = Settings::parse(text, is_default).map_err(|(line, fault)| ConfError::BadLine {
            file: file.to_owned(),
            line,
            fault,
        })?;
        self.apply(file, settings);
        Ok(())
    }

    fn apply(&mut self, file: &Path, settings: Settings) {
        match settings.enabled {
            Some(true) => self.disabled_in = None,
            Some(false) => self.disabled_in = Some(file.to_owned()),
            None => {}
        }
        self.memory_mib = settings.memory.or(self.memory_mib);
        self.fallback = settings.fallback.map_or(self.fallback, |own| own.max(self.fallback));
        set(&mut self.config, settings.config);
        set(&mut self.bridge, settings.bridge);
        set(&mut self.start_timeout, settings.start_timeout_s);
        set(&mut self.stall_timeout, settings.stall_timeout_s);
        set(&mut self.otherwise, settings.otherwise.map(Spanned::into_inner));
        set(
            &mut self.transport,
            settings.transport.map(|carrier| match carrier {
                Carrier::Ring => Transport::Ring,
                Carrier::Tcp => Transport::Tcp,
            }),
        );
        set(&mut self.send.enabled, settings.send);
        let limits = &mut self.send.limits;
        set(&mut limits.max_passes, settings.send_passes);
        set(&mut limits.downtime_ms, settings.send_downtime_ms.map(Into::into));
        limits.most_bytes_a_second =
            settings.send_mib_s.map(|mib| u64::from(mib) << 20).or(limits.most_bytes_a_second);
        let finish = settings.send_finish_after_s.map(|limit| Timeout::FinishAfter(limit.as_secs()));
        let abort = settings.send_abort_after_s.map(|limit| Timeout::AbortAfter(limit.as_secs()));
        limits.timeout = abort.or(finish).or(limits.timeout);
    }

    /// The same with at least so much memory for the stub; where that is no more than every stub has, as the files say.
    pub(crate) fn with_memory(&self, least_mib: u64) -> Self {
        let least = u32::try_from(least_mib).unwrap_or(u32::MAX);
        let least = Some(least).filter(|_| least_mib > LEAST_MIB || self.memory_mib.is_some());
        Self { memory_mib: self.memory_mib.max(least), ..self.clone() }
    }

    /// Whether `default.conf` says that no guest has a stub, unless its own file says so.
    pub(crate) fn is_disabled_for_all(&self) -> bool {
        let file = self.disabled_in.as_ref().and_then(|file| file.file_stem());
        file.is_some_and(|name| name == DEFAULT)
    }
}

fn set<T>(value: &mut T, new: Option<T>) {
    if let Some(new) = new {
        *value = new;
    }
}

impl Settings {
    /// Reads a file's text; of an error the line and the words.
    fn parse(text: &str, is_default: bool) -> Result<Self, (usize, String)> {
        let line =
            |span: Range<usize>| 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
        let settings: Self = toml::from_str(text)
            .map_err(|error| (error.span().map_or(1, line), one_line(error.message())))?;
        match &settings.otherwise {
            Some(otherwise) if !is_default => {
                let fault =
                    "otherwise: only default.conf may have it, because a guest's name comes with its stream";
                Err((line(otherwise.span()), fault.to_owned()))
            }
            _ => Ok(settings),
        }
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The guest's name without the mark of an unfinished migration.
pub(crate) fn settled_name(guest: &str) -> &str {
    guest.strip_suffix(INCOMING_SUFFIX).unwrap_or(guest)
}

/// Whether a guest's name may name a file: it came with the stream, so it must not leave the directory.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

/// A name that is too long for a file has no file.
fn read_if_there(file: &Path) -> Result<Option<String>, ConfError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENAMETOOLONG)) => Ok(None),
        Err(error) => Err(ConfError::Unreadable { file: file.to_owned(), error }),
    }
}

fn within<'de, D: Deserializer<'de>>(
    value: D,
    range: std::ops::RangeInclusive<u32>,
    expected: &str,
) -> Result<u32, D::Error> {
    let got = i64::deserialize(value)?;
    let value = u32::try_from(got).ok().filter(|value| range.contains(value));
    value.ok_or_else(|| D::Error::custom(format_args!("expected {expected}, got {got}")))
}

fn mebibytes<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u32>, D::Error> {
    within(value, 4..=1024, "MiB from 4 to 1024").map(Some)
}

fn passes<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u32>, D::Error> {
    within(value, 1..=1000, "passes from 1 to 1000").map(Some)
}

fn downtime<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u32>, D::Error> {
    within(value, 0..=60_000, "milliseconds from 0 to 60000").map(Some)
}

fn rate<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u32>, D::Error> {
    within(value, 1..=1 << 20, "MiB a second from 1 to 1048576").map(Some)
}

fn seconds<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    let seconds = within(value, 1..=3600, "seconds from 1 to 3600")?;
    Ok(Some(Duration::from_secs(seconds.into())))
}

fn absolute<'de, D: Deserializer<'de>>(value: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(value)?;
    if path.is_absolute() {
        return Ok(Some(path));
    }
    Err(D::Error::custom(format_args!("expected an absolute path, got {path:?}")))
}

/// Linux's rule for interface names, tightened: it becomes part of paths and of an xl config line.
fn interface<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(value)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=15).contains(&name.len()) && !name.starts_with('.') && name.chars().all(plain) {
        return Ok(Some(name));
    }
    Err(D::Error::custom(format_args!("expected an interface name, got {name:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> (usize, String) {
        Settings::parse(text, true).err().unwrap()
    }

    /// What `find` makes of these files for a guest.
    fn found(name: &str, files: &[(&str, &str)], guest: &str) -> Result<Option<Conf>, ConfError> {
        let directory = std::env::temp_dir().join(format!("stubctl-conf-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        for (file, text) in files {
            std::fs::write(directory.join(file), text).unwrap();
        }
        let found = Conf::find(&directory, guest);
        std::fs::remove_dir_all(&directory).unwrap();
        found
    }

    #[test]
    fn a_file_sets_what_it_names_and_leaves_the_rest() {
        let text = "# one stub for all\n\nenabled = true\nmemory=32 # MiB\nbridge = \"br-stub\"\nstall_timeout_s = 5\n\
                    transport = \"tcp\"\nfallback = \"refuse\"\n";
        let expected = Conf {
            memory_mib: Some(32),
            transport: Transport::Tcp,
            bridge: "br-stub".to_owned(),
            stall_timeout: Duration::from_secs(5),
            fallback: Recourse::Refuse,
            ..Conf::default()
        };
        assert_eq!(found("all", &[("default.conf", text)], "db").unwrap(), Some(expected));
        assert_eq!(found("none", &[("other.conf", text)], "db").unwrap(), None);
    }

    #[test]
    fn the_shipped_file_is_right_and_changes_nothing() {
        let text = include_str!("../../../xen-config/default.conf");
        assert_eq!(found("shipped", &[("default.conf", text)], "db").unwrap(), Some(Conf::default()));
    }

    #[test]
    fn the_limits_of_a_send_are_read() {
        let mut conf = Conf::default();
        let text =
            "send = false\nsend_passes = 7\nsend_downtime_ms = 0\nsend_mib_s = 3\nsend_abort_after_s = 9\n";
        conf.read(Path::new("default.conf"), text).unwrap();
        let limits = Limits {
            max_passes: 7,
            downtime_ms: 0,
            most_bytes_a_second: Some(3 << 20),
            timeout: Some(Timeout::AbortAfter(9)),
        };
        let expected = SendConf { enabled: false, limits };
        assert_eq!(conf.send, expected);
        assert!(fault("send_passes = 0").1.contains("expected passes from 1 to 1000, got 0"));
    }

    #[test]
    fn an_error_names_file_and_line() {
        let error = found("line", &[("db.conf", "enabled=true\ncolour = \"blue\"\n")], "db").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/db.conf:2: unknown field `colour`, expected one of `enabled`,"), "{text}");
        assert_eq!(fault("memory = 4\n\nmemory = 5\n").0, 3, "a key twice");
    }

    #[test]
    fn bad_values_say_what_was_expected_and_where() {
        assert_eq!(fault("nonsense").0, 1);
        let (line, text) = fault("\nenabled = \"maybe\"");
        assert!(line == 2 && text.contains("expected a boolean"), "{line}: {text}");
        let (line, text) = fault("\ntransport = \"udp\"");
        assert!(line == 2 && text.contains("expected `ring` or `tcp`"), "{line}: {text}");
        for (bad, expected) in [
            ("memory = 2", "expected MiB from 4 to 1024, got 2"),
            ("stall_timeout_s = -1", "expected seconds from 1 to 3600, got -1"),
            ("config = \"stubdom.cfg\"", "expected an absolute path, got \"stubdom.cfg\""),
            ("bridge = \"\"", "expected an interface name, got \"\""),
            ("bridge = \"a/b\"", "expected an interface name, got \"a/b\""),
            ("bridge = \"x'y\"", "expected an interface name, got \"x'y\""),
            ("bridge = \"sixteen-letters-\"", "expected an interface name, got \"sixteen-letters-\""),
            ("bridge = \"..\"", "expected an interface name, got \"..\""),
        ] {
            assert_eq!(fault(&format!("# a comment\n{bad}\n")), (2, expected.to_owned()));
        }
    }

    #[test]
    fn the_guests_file_stands_over_the_default() {
        let files = [("default.conf", "enabled = false\nmemory = 24\n"), ("db.conf", "enabled = true\n")];
        let conf = |guest| found("over", &files, guest).unwrap().unwrap();
        let (db, other, outside) = (conf("db--incoming"), conf("other"), conf("../../db"));
        assert_eq!((db.disabled_in, db.memory_mib), (None, Some(24)));
        assert!(other.is_disabled_for_all() && other.memory_mib == Some(24));
        assert!(outside.is_disabled_for_all());
        let exempt = found("exempt", &[("default.conf", ""), ("db.conf", "enabled = false")], "db");
        let exempt = exempt.unwrap().unwrap();
        assert!(exempt.disabled_in.is_some() && !exempt.is_disabled_for_all());
    }

    #[test]
    fn a_guests_file_cannot_loosen_what_the_default_refuses() {
        let files = [("default.conf", "fallback = \"refuse\""), ("db.conf", "fallback = \"packaged\"")];
        assert_eq!(found("loosen", &files, "db").unwrap().unwrap().fallback, Recourse::Refuse);
        let files = [("default.conf", "fallback = \"packaged\""), ("db.conf", "fallback = \"refuse\"")];
        assert_eq!(found("tighten", &files, "db").unwrap().unwrap().fallback, Recourse::Refuse);
        let files = [("default.conf", ""), ("db.conf", "\notherwise = \"packaged\"")];
        let error = found("otherwise", &files, "db").unwrap_err().to_string();
        assert!(error.contains("/db.conf:2: otherwise: only default.conf"), "{error}");
    }

    #[test]
    fn a_large_guests_stub_has_more_memory_whatever_the_files_say() {
        let with = |memory_mib, least| Conf { memory_mib, ..Conf::default() }.with_memory(least).memory_mib;
        assert_eq!(with(None, 16), None, "as the stub's own config says");
        assert_eq!([with(None, 33), with(Some(8), 33), with(Some(64), 33)], [Some(33), Some(33), Some(64)]);
        assert_eq!([with(Some(8), 16), with(Some(64), 16)], [Some(16), Some(64)]);
    }

    #[test]
    fn odd_names_have_the_default() {
        let files = [("default.conf", "memory = 24\notherwise = \"refuse\"")];
        for name in
            ["default", "x".repeat(251).as_str(), "x".repeat(2000).as_str(), "", ".", "..", "My VM (1) é%s"]
        {
            let conf = found("odd", &files, name).unwrap().unwrap();
            assert_eq!((conf.memory_mib, conf.otherwise), (Some(24), Recourse::Refuse), "{name}");
        }
    }
}
