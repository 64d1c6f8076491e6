//! Runs in dom0: asks the witness in a guest, over the guest's console, and waits for its answer.
//!
//! `ask-witness GUEST ready|ticking|verify|freeze|thaw|rate PAGES [--timeout SECONDS]` prints the answer. It ends with 0
//! when all is right, 1 when the witness found a wrong byte, 2 when no answer came in time.

use clap::Parser;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Asks the witness in a guest and prints its answer.
#[derive(Parser)]
struct Arguments {
    /// The guest's name.
    guest: String,
    /// ready, ticking, verify, freeze, thaw or rate.
    question: String,
    /// Pages a second, for rate.
    pages: Option<u64>,
    /// Longest time to wait, in seconds.
    #[arg(long, default_value_t = 280)]
    timeout: u64,
}

fn main() -> ExitCode {
    match ask(&Arguments::parse()) {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::from(u8::from(answer.contains("WRONG")))
        }
        Err(error) => {
            eprintln!("ask-witness: {error}");
            ExitCode::from(2)
        }
    }
}

fn ask(arguments: &Arguments) -> io::Result<String> {
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
    let mut log = Log::of(&arguments.guest, arguments.question == "ready");
    let wanted = match arguments.question.as_str() {
        "ready" => "witness: ready".to_owned(),
        "ticking" => "witness: tick".to_owned(),
        question => type_question(arguments, question)?,
    };
    log.wait_for(&wanted, deadline)
}

/// Types a command on the guest's console; gives the mark that its answer bears.
fn type_question(arguments: &Arguments, question: &str) -> io::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let tag = format!("{}", now.as_micros());
    let pages = arguments.pages.map(|pages| format!("{pages} ")).unwrap_or_default();
    let mut console = File::options().write(true).open(console_of(&arguments.guest)?)?;
    console.write_all(format!("{question} {pages}{tag}\n").as_bytes())?;
    Ok(format!("tag={tag}"))
}

/// The terminal on which xenconsoled serves the guest.
fn console_of(guest: &str) -> io::Result<PathBuf> {
    let id = output(Command::new("xl").args(["domid", guest]))?;
    let path = output(Command::new("xenstore-read").arg(format!("/local/domain/{id}/console/tty")))?;
    Ok(PathBuf::from(path))
}

fn output(command: &mut Command) -> io::Result<String> {
    let done = command.output()?;
    let text = String::from_utf8_lossy(if done.status.success() { &done.stdout } else { &done.stderr });
    let text = text.trim().to_owned();
    if done.status.success() { Ok(text) } else { Err(io::Error::other(text)) }
}

/// The guest's console log, which xenconsoled writes; a guest that comes by migration begins under another name.
struct Log {
    guest: String,
    /// Bytes of either log seen when the question was asked: an answer stands behind them.
    seen: [u64; 2],
}

impl Log {
    fn of(guest: &str, from_its_start: bool) -> Self {
        let mut log = Self { guest: guest.to_owned(), seen: [0; 2] };
        if !from_its_start {
            log.seen = log.paths().map(|path| fs::metadata(path).map_or(0, |data| data.len()));
        }
        log
    }

    fn paths(&self) -> [PathBuf; 2] {
        ["", "--incoming"].map(|end| PathBuf::from(format!("/var/log/xen/guest-{}{end}.log", self.guest)))
    }

    /// Waits for a whole line of the witness that holds `wanted`; lines about wrong pages before it count as part of it.
    fn wait_for(&mut self, wanted: &str, deadline: Instant) -> io::Result<String> {
        loop {
            for (path, seen) in self.paths().iter().zip(self.seen) {
                let text = read_from(path, seen).unwrap_or_default(); // not there yet
                if let Some(answer) = find(&text, wanted) {
                    return Ok(answer);
                }
            }
            if Instant::now() > deadline {
                let trouble = format!("no line with {wanted:?} on the console of {}", self.guest);
                return Err(io::Error::other(trouble));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn read_from(path: &PathBuf, offset: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last line that is the answer, with the findings that stand before it.
fn find(text: &str, wanted: &str) -> Option<String> {
    let whole = &text[..text.rfind('\n')?];
    let lines: Vec<&str> = whole.lines().filter_map(|line| Some(&line[line.find("witness: ")?..])).collect();
    let end = lines.iter().rposition(|line| line.contains(wanted))?;
    let findings = lines[..end].iter().rev().take_while(|line| line.starts_with("witness: WRONG"));
    let mut answer: Vec<&str> = findings.copied().collect();
    answer.reverse();
    answer.push(lines[end].trim_end());
    Some(answer.join("\n"))
}
