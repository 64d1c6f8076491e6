//! The file that keeps the ledger across restarts.
//!
//! **Takes** a ledger. **Gives** it back after a restart. **Never** ends the daemon: a file that is damaged is moved aside, and
//! one that cannot be written is tried again, each time after twice as long.

use super::ledger::Ledger;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// After a failure the next attempt comes after a second at first, after a minute at last.
const MAX_DOUBLINGS: u32 = 6;

/// What the kernel calls this run of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The file, and when it may be written.
pub(super) struct StateFile {
    path: PathBuf,
    nr_failures: u32,
    not_before: Instant,
}

impl StateFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, nr_failures: 0, not_before: Instant::now() }
    }

    /// The ledger of the last run. What cannot be read is moved aside and gives a fresh one.
    pub(super) fn load(&self) -> Ledger {
        let fault = match fs::read_to_string(&self.path) {
            Ok(text) => match Ledger::parse(&text) {
                Some(ledger) => return ledger,
                None => "expected what this version has written".to_owned(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ledger::default(),
            Err(error) => error.to_string(),
        };
        let aside = self.path.with_extension("damaged");
        let moved = match fs::rename(&self.path, &aside) {
            Ok(()) => format!("moved to {}", aside.display()),
            Err(error) => format!("it cannot be moved aside either ({error})"),
        };
        log::warn!("{}: {fault}: {moved}; all counts begin anew", self.path.display());
        Ledger::default()
    }

    /// Writes the ledger; `None` when it is too early after a failure.
    pub(super) fn store(&mut self, ledger: &Ledger) -> Option<io::Result<()>> {
        if Instant::now() < self.not_before {
            return None;
        }
        let written = replace(&self.path, ledger.json().to_string().as_bytes());
        self.nr_failures = if written.is_ok() { 0 } else { self.nr_failures.saturating_add(1) };
        if let Some(nr_doublings) = self.nr_failures.checked_sub(1) {
            self.not_before = Instant::now() + Duration::from_secs(1 << nr_doublings.min(MAX_DOUBLINGS));
        }
        Some(written)
    }
}

/// Writes a file so that a crash leaves the old one or the new one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let fresh = path.with_extension("new");
    let write = || {
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    let written = write();
    if written.is_err() {
        // What was not even created is not there to remove.
        let _ = fs::remove_file(&fresh);
    }
    written?;
    File::open(directory)?.sync_all()
}

/// Names this run of the host; empty where the kernel does not say.
pub(super) fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("stubctl-state-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_damaged_state_is_moved_aside_and_a_fresh_one_takes_its_place() {
        let directory = directory("damaged");
        let mut state = StateFile::new(directory.join("watch.json"));
        assert_eq!(state.load(), Ledger::default());
        fs::write(directory.join("watch.json"), "half a sta").unwrap();
        assert_eq!(state.load(), Ledger::default());
        assert_eq!(fs::read_to_string(directory.join("watch.damaged")).unwrap(), "half a sta");
        let mut ledger = Ledger::default();
        ledger.resume("one", |_| None);
        state.store(&ledger).unwrap().unwrap();
        assert_eq!(state.load(), ledger);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "nothing else stays");
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_state_that_cannot_be_written_is_tried_again_later() {
        let directory = directory("unwritable");
        fs::write(directory.join("file"), "").unwrap(); // no directory can be made here
        let mut state = StateFile::new(directory.join("file/watch.json"));
        assert!(state.store(&Ledger::default()).unwrap().is_err());
        assert!(state.store(&Ledger::default()).is_none(), "too early");
        fs::remove_file(directory.join("file")).unwrap();
        state.not_before = Instant::now();
        state.store(&Ledger::default()).unwrap().unwrap();
        assert_eq!(state.nr_failures, 0);
        fs::remove_dir_all(directory).unwrap();
    }
}
