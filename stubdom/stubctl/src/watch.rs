//! `stubctl watch`: a daemon that takes frames out of use when they have had enough corrected errors.
//!
//! **Takes** reports of errors from a spool directory, a file that grows, or a command's output. **Gives** a log line for
//! every decision. **Never** deals with two frames at once, never loses a report (one is deleted only after the state file
//! holds it), and never ends for a report that cannot be read.
//!
//! A report is a line `ADDRESS [COUNT]`: the physical address in hexadecimal with 0x, and how many errors are new (1 when
//! it is missing). `#` starts a comment.

mod ledger;

use crate::cli::{OfflineArguments, WatchArguments};
use crate::error::Error;
use crate::host::{Host, say};
use crate::offline::Offliner;
use crate::program;
use crate::verdict::{Kind, Verdict};
use ledger::{Fate, Ledger, Report};
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use xen_abi::types::Mfn;

/// Most bytes taken from a growing file at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// For timeout(1): a command is told to end after a minute, and made to 5 seconds later.
const COMMAND_PATIENCE: [&str; 3] = ["--kill-after=5", "--", "60"];

/// Watches until a signal comes, or once.
pub(crate) fn run(host: &Host, arguments: &WatchArguments) -> Result<(), Error> {
    let mut watch = Watch { host, arguments, ledger: load(&arguments.state)? };
    say(&format!("watching, {} corrected errors of a page take it out of use", arguments.threshold));
    loop {
        let spent = watch.collect()?;
        watch.store()?;
        spent.iter().for_each(|file| remove(file));
        watch.act()?;
        if arguments.once {
            return Ok(());
        }
        host.interrupt.wait(&[], arguments.interval())?;
    }
}

struct Watch<'a> {
    host: &'a Host,
    arguments: &'a WatchArguments,
    ledger: Ledger,
}

impl Watch<'_> {
    /// Takes what is new from all sources; gives the spool files that are used up.
    fn collect(&mut self) -> Result<Vec<PathBuf>, Error> {
        let mut spent = Vec::new();
        if let Some(directory) = &self.arguments.spool {
            for file in spooled(directory)? {
                let name = file.to_string_lossy().into_owned();
                let text = match fs::read(&file) {
                    Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                    Err(error) => {
                        log::warn!("{name}: {error}: left where it is");
                        continue;
                    }
                };
                // A file that was taken in before a crash must not count twice.
                if self.ledger.take_file(&name) {
                    self.take(&text, &name);
                }
                spent.push(file);
            }
            self.ledger.forget_files(|name| Path::new(name).exists());
        }
        if let Some(file) = &self.arguments.file {
            match grown(file, &mut self.ledger.offset) {
                Ok(text) => self.take(&text, &file.to_string_lossy()),
                Err(error) => log::warn!("{}: {error}", file.display()),
            }
        }
        if let Some(command) = &self.arguments.command {
            let output = Command::new(program::system("timeout"))
                .args(COMMAND_PATIENCE)
                .arg(program::system("sh"))
                .args(["-c", command])
                .output()?;
            if !output.status.success() {
                log::warn!(
                    "`{command}` ended with {} (124: too slow): its output is not used",
                    output.status
                );
            } else {
                self.take(&String::from_utf8_lossy(&output.stdout), command);
            }
        }
        Ok(spent)
    }

    fn take(&mut self, text: &str, source: &str) {
        for line in text.lines() {
            match Report::parse(line) {
                Ok(None) => {}
                Ok(Some(report)) => {
                    let errors = self.ledger.take(report);
                    say(&format!(
                        "{}: {} errors of {}, {source}",
                        report.mfn, errors, self.arguments.threshold
                    ));
                }
                Err(expected) => log::warn!("{source}: expected {expected}, got {line:?}: passed over"),
            }
        }
    }

    /// Deals with every frame that is due, one after another.
    ///
    /// # Errors
    /// Somebody wants an end: the frame being dealt with is dealt with again after the next start.
    fn act(&mut self) -> Result<(), Error> {
        while let Some(mfn) = self.ledger.due(self.arguments.threshold, now_s()) {
            self.ledger.settle(mfn, Fate::Trying);
            self.store()?;
            let fate = self.offline(mfn)?;
            self.ledger.settle(mfn, fate);
            self.store()?;
        }
        Ok(())
    }

    fn offline(&self, mfn: Mfn) -> Result<Fate, Error> {
        say(&format!("{mfn}: taking it out of use"));
        let later = Fate::Waiting { until_s: now_s().saturating_add(self.arguments.retry_s) };
        let mut fate = later;
        let tell = |verdict: Verdict| {
            say(&verdict.to_string());
            fate = match verdict.kind {
                Kind::Done => Fate::Offline,
                _ if verdict.is_transient() => later,
                Kind::Held | Kind::Lost => Fate::Held,
                Kind::Refused | Kind::Failed(_) => Fate::Refused,
            };
        };
        let offliner = Offliner::new(self.host, OfflineArguments::of(mfn));
        match offliner.and_then(|mut offliner| offliner.offline_all(&[mfn], tell)) {
            Err(error) if error.is_stop() => return Err(error),
            Err(error) => say(&format!("{mfn}: not done: {error}")),
            Ok(()) => {}
        }
        if let Fate::Waiting { .. } = fate {
            say(&format!(
                "{mfn}: tried again in {} s, or when it has failed as often again",
                self.arguments.retry_s
            ));
        }
        Ok(fate)
    }

    /// Writes the state so that a crash leaves the old one or the new one.
    fn store(&self) -> Result<(), Error> {
        let path = &self.arguments.state;
        let fresh = path.with_extension("new");
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&fresh, self.ledger.json().to_string())?;
        fs::File::open(&fresh)?.sync_all()?;
        fs::rename(fresh, path)?;
        Ok(())
    }
}

/// Seconds since 1970, by a clock that goes on while the host is off.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The state of the last run; a file that is no state is an error, not a fresh start.
fn load(path: &Path) -> Result<Ledger, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ledger::parse(&text).ok_or_else(|| {
            let text =
                format!("{}: expected what an earlier watch has written; move it away", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text).into()
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ledger::default()),
        Err(error) => Err(error.into()),
    }
}

/// What a file has gained since it was read last; one that has become shorter is read anew.
fn grown(path: &Path, offset: &mut u64) -> io::Result<String> {
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    if file.metadata()?.len() < *offset {
        *offset = 0;
    }
    file.seek(SeekFrom::Start(*offset))?;
    let mut bytes = Vec::new();
    file.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
    // A line without its end is still being written.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    *offset += whole as u64;
    bytes.truncate(whole);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The reports in a spool directory, in the order of their names; a leading dot is for those still being written.
fn spooled(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_whole = !entry.file_name().to_string_lossy().starts_with('.');
        if is_whole && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn remove(file: &Path) {
    if let Err(error) = fs::remove_file(file) {
        log::warn!("{}: {error}", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("stubctl-watch-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_growing_file_gives_whole_lines_once() {
        let directory = directory("grown");
        let file = directory.join("errors");
        let mut offset = 0;
        assert_eq!(grown(&file, &mut offset).unwrap(), "");
        fs::write(&file, "0x1000\n0x20").unwrap();
        assert_eq!(grown(&file, &mut offset).unwrap(), "0x1000\n");
        fs::write(&file, "0x1000\n0x2000 4\n").unwrap();
        assert_eq!(grown(&file, &mut offset).unwrap(), "0x2000 4\n");
        assert_eq!(grown(&file, &mut offset).unwrap(), "");
        fs::write(&file, "0x3000\n").unwrap();
        assert_eq!(grown(&file, &mut offset).unwrap(), "0x3000\n", "a file that was begun anew");
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn files_still_being_written_are_not_in_the_spool() {
        let directory = directory("spooled");
        for name in ["b", ".c", "a"] {
            fs::write(directory.join(name), "0x1000\n").unwrap();
        }
        let names: Vec<_> = spooled(&directory).unwrap();
        assert_eq!(names, [directory.join("a"), directory.join("b")]);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_state_that_cannot_be_read_is_no_fresh_start() {
        let directory = directory("state");
        let file = directory.join("watch.json");
        assert_eq!(load(&file).unwrap(), Ledger::default());
        fs::write(&file, "half a sta").unwrap();
        assert!(load(&file).unwrap_err().to_string().contains("move it away"));
        fs::remove_dir_all(directory).unwrap();
    }
}
