//! Where reports come from: a spool directory, a file that grows, a command, `/dev/mcelog`.
//!
//! **Takes** what is new, with a bound for each turn. **Gives** reports, added up by page. **Never** ends or waits for a source:
//! one that fails is reported once and tried again at the next turn.

use super::complaints::Complaints;
use super::ledger::Ledger;
use super::mcelog::{Device, Finding, Processor};
use super::report::Report;
use crate::cli::{MCELOG, WatchArguments};
use crate::program;
use control::Untrusted;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use xen_abi::types::Mfn;

/// Most bytes that a source gives in one turn.
const CHUNK_BYTES: u64 = 1 << 20;

/// Most files of the spool that are read in one turn.
const MAX_FILES: usize = 1024;

/// Most lines of one text that are named because they are no reports.
const MAX_NAMED: usize = 8;

/// For timeout(1): a command is told to end after a minute, and made to 5 seconds later.
const COMMAND_PATIENCE: [&str; 3] = ["--kill-after=5", "--", "60"];

/// What a turn brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Errors of each page, and the source that named it last.
    pub(super) pages: BTreeMap<Mfn, (u64, String)>,
    /// Spool files that are used up, once the ledger is stored.
    pub(super) spent: Vec<PathBuf>,
    /// There is more in the spool already.
    pub(super) has_more: bool,
}

impl News {
    fn add(&mut self, report: Report, source: &str) {
        let (errors, from) = self.pages.entry(report.mfn).or_default();
        *errors = errors.saturating_add(report.errors);
        source.clone_into(from);
    }

    /// Takes the lines of a text. Those that are no reports are named, up to a bound.
    fn read(&mut self, text: &str, source: &str) {
        let mut nr_bad = 0;
        for line in text.lines() {
            match Report::parse(line) {
                Ok(report) => report.into_iter().for_each(|report| self.add(report, source)),
                Err(expected) => {
                    nr_bad += 1;
                    if nr_bad <= MAX_NAMED {
                        let (source, line) = (Untrusted::new(source), Untrusted::new(line));
                        log::warn!("{source}: expected {expected}, got {line:?}: not counted");
                    }
                }
            }
        }
        if nr_bad > MAX_NAMED {
            log::warn!("{source}: {} more lines are not counted", nr_bad - MAX_NAMED);
        }
    }
}

/// All that the arguments name.
pub(super) struct Sources<'a> {
    arguments: &'a WatchArguments,
    processor: Processor,
    mcelog: Option<Device>,
    /// The command that runs, and what it has printed at its end.
    running: Option<JoinHandle<io::Result<String>>>,
}

impl<'a> Sources<'a> {
    pub(super) fn new(arguments: &'a WatchArguments) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self { arguments, processor: Processor::parse(&cpuinfo), mcelog: None, running: None }
    }

    /// Takes what is new.
    pub(super) fn collect(&mut self, ledger: &mut Ledger, complaints: &mut Complaints) -> News {
        let mut news = News::default();
        if let Some(directory) = &self.arguments.spool {
            noted(complaints, &directory.display().to_string(), read_spool(directory, ledger, &mut news));
        }
        if let Some(file) = &self.arguments.file {
            let name = file.display().to_string();
            if let Some(text) = noted(complaints, &name, grown(file, &mut ledger.offset)) {
                news.read(&text, &name);
            }
        }
        if let Some(command) = &self.arguments.command {
            self.run_command(command, complaints, &mut news);
        }
        self.read_mcelog(complaints, &mut news);
        news
    }

    /// The device, for waiting until there are records.
    pub(super) fn mcelog(&self) -> Option<BorrowedFd<'_>> {
        self.mcelog.as_ref().map(Device::as_fd)
    }

    /// Takes what the command has printed since it was started, and starts it again; with `--once`, waits for it.
    fn run_command(&mut self, command: &str, complaints: &mut Complaints, news: &mut News) {
        let running = self.running.take();
        let running = running.unwrap_or_else(|| {
            let command = command.to_owned();
            std::thread::spawn(move || output(&command))
        });
        if !running.is_finished() && !self.arguments.once {
            self.running = Some(running);
            return;
        }
        let output = running.join().unwrap_or_else(|_| Err(io::Error::other("its thread ended early")));
        if let Some(text) = noted(complaints, &format!("`{command}`"), output) {
            news.read(&text, command);
        }
    }

    fn read_mcelog(&mut self, complaints: &mut Complaints, news: &mut News) {
        let wanted = self.arguments.mcelog.as_deref();
        let path = wanted.unwrap_or(Path::new(MCELOG));
        if path == Path::new("off") || wanted.is_none() && !path.exists() {
            return;
        }
        let name = path.display().to_string();
        if self.mcelog.is_none() {
            let opened = Device::open(path).map_err(|error| match error.raw_os_error() {
                Some(libc::EBUSY) => {
                    io::Error::other("another program reads it: its errors do not come this way")
                }
                _ => error,
            });
            self.mcelog = noted(complaints, &name, opened);
        }
        let Some(device) = &mut self.mcelog else { return };
        let found = device.read(self.processor);
        if found.is_err() {
            self.mcelog = None;
        }
        for finding in noted(complaints, &name, found).unwrap_or_default() {
            match finding {
                Finding::Corrected(report) => news.add(report, &name),
                Finding::NotCounted(why) => log::warn!("{name}: {why}"),
            }
        }
    }
}

/// Reports a failure once, and that it is over.
fn noted<T>(complaints: &mut Complaints, what: &str, result: io::Result<T>) -> Option<T> {
    match result {
        Ok(value) => {
            complaints.settle(what);
            Some(value)
        }
        Err(error) => {
            complaints.add(what, &error.to_string());
            None
        }
    }
}

/// Takes the reports in the spool's files, which it makes if there is none.
fn read_spool(directory: &Path, ledger: &mut Ledger, news: &mut News) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let (files, has_more) = spooled(directory)?;
    news.has_more = has_more;
    let mut fault = Ok(());
    for file in files {
        match read_start(&file) {
            Ok(text) => {
                let name = file.to_string_lossy().into_owned();
                // A file that was taken in before a crash must not count twice.
                if ledger.take_file(&name) {
                    news.read(&text, &name);
                }
                news.spent.push(file);
            }
            Err(error) => {
                fault = Err(io::Error::other(format!("{}: {error}: left where it is", file.display())));
            }
        }
    }
    ledger.forget_files(|name| Path::new(name).exists());
    fault
}

/// The reports in a spool directory, in the order of their names, and whether there are more than a turn takes. A leading dot
/// is for those still being written.
fn spooled(directory: &Path) -> io::Result<(Vec<PathBuf>, bool)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_whole = !entry.file_name().to_string_lossy().starts_with('.');
        if is_whole && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            files.push(entry.path());
        }
        if files.len() >= MAX_FILES {
            break;
        }
    }
    files.sort();
    let is_full = files.len() >= MAX_FILES;
    Ok((files, is_full))
}

/// A file's first bytes: a report is a line, so one that has more than a turn takes is none.
fn read_start(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    open(file)?.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens a file without waiting for whoever would write to a pipe.
fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// What a file has gained since it was read last; one that has become shorter is read anew.
fn grown(path: &Path, offset: &mut u64) -> io::Result<String> {
    let mut file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let len = file.metadata()?.len();
    if len < *offset {
        *offset = 0;
    }
    file.seek(SeekFrom::Start(*offset))?;
    let mut bytes = Vec::new();
    file.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
    // A line without its end is still being written, unless it is longer than any report.
    let whole = match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(last) => last + 1,
        None if bytes.len() as u64 == CHUNK_BYTES => bytes.len(),
        None => 0,
    };
    *offset += whole as u64;
    bytes.truncate(whole);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs the command and gives what it printed.
fn output(command: &str) -> io::Result<String> {
    let mut child = Command::new(program::system("timeout"))
        .args(COMMAND_PATIENCE)
        .arg(program::system("sh"))
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut bytes = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
    }
    let status = child.wait()?;
    if !status.success() {
        let text = format!("ended with {status} (124: too slow): its output is not used");
        return Err(io::Error::other(text));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests;
