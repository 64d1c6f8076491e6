//! Runs in dom0, in front of `xl migrate-receive`: passes a migration's stream on, and at one place of it stops and runs
//! a command.

use clap::Parser;
use e2e::gate::{self, Place};
use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// Passes a migration's stream from standard input to standard output.
#[derive(Parser)]
struct Arguments {
    /// Where to stop.
    #[arg(long, requires = "run")]
    at: Option<Place>,
    /// What to run there; the stream goes on when it has ended, whatever its exit code.
    #[arg(long)]
    run: Option<String>,
    /// How long the receiver may take to come to the same place first, in milliseconds.
    #[arg(long, default_value_t = 700)]
    settle_ms: u64,
    /// Tell when each place is reached.
    #[arg(long)]
    tell: bool,
    /// A file that gets a copy of the device model's state.
    #[arg(long)]
    keep_emulator: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut from = BufReader::with_capacity(1 << 16, io::stdin());
    let mut to = BufWriter::with_capacity(1 << 16, io::stdout());
    let reached = |place| {
        if arguments.tell {
            eprintln!("nest-gate: at {place:?}");
        }
        if arguments.at == Some(place) {
            act(&arguments);
        }
    };
    let kept = arguments.keep_emulator.as_ref().map_or(Ok(None), |path| File::create(path).map(Some));
    let passed = kept.and_then(|kept| match kept {
        Some(mut file) => gate::pass(&mut from, &mut to, &mut file, reached),
        None => gate::pass(&mut from, &mut to, &mut io::sink(), reached),
    });
    match passed {
        Ok(passed) => {
            eprintln!("nest-gate: {} passes, {} records of pages", passed.nr_passes, passed.nr_records);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("nest-gate: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for the receiver and runs the command, which must not see the stream.
fn act(arguments: &Arguments) {
    std::thread::sleep(Duration::from_millis(arguments.settle_ms));
    let Some(script) = &arguments.run else { return };
    let shell = Command::new("bash").args(["-c", script]).stdin(Stdio::null()).stdout(io::stderr()).status();
    eprintln!(
        "nest-gate: `{script}`: {}",
        shell.map_or_else(|error| error.to_string(), |code| code.to_string())
    );
}
