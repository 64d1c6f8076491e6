//! Runs in dom0: a go-between on a device model's monitor that is slow with one command, as storage that hangs makes it.
//!
//! `nest-monitor SOCKET COMMAND SECONDS` takes the socket's place and passes everything on. The first COMMAND it keeps for
//! SECONDS, and passes it on only if its client is still there: QEMU drops what it has queued for a client that goes.

use clap::Parser;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// Stands between a device model's monitor and its clients.
#[derive(Parser)]
struct Arguments {
    /// The monitor's socket.
    socket: PathBuf,
    /// The command to be slow with.
    command: String,
    /// How slow.
    seconds: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nest-monitor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let real = arguments.socket.with_extension("real");
    fs::rename(&arguments.socket, &real)?;
    let listener = UnixListener::bind(&arguments.socket)?;
    println!("ready");
    let mut slow_with = Some(format!("\"{}\"", arguments.command));
    for client in listener.incoming() {
        // One client at a time, as QEMU does it.
        if let Err(error) = serve(client?, &real, &mut slow_with, Duration::from_secs(arguments.seconds)) {
            eprintln!("nest-monitor: {error}");
        }
    }
    Ok(())
}

/// Passes on what both say until the client goes.
fn serve(client: UnixStream, real: &Path, slow_with: &mut Option<String>, pause: Duration) -> io::Result<()> {
    let mut monitor = UnixStream::connect(real)?;
    let (mut from, mut to) = (monitor.try_clone()?, client.try_clone()?);
    let answers = thread::spawn(move || io::copy(&mut from, &mut to));
    let mut lines = BufReader::new(client.try_clone()?);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        if slow_with.take_if(|command| line.contains(command.as_str())).is_some() {
            println!("slow");
            thread::sleep(pause);
            if is_gone(&client)? {
                println!("dropped");
                break;
            }
        }
        monitor.write_all(line.as_bytes())?;
        line.clear();
    }
    monitor.shutdown(std::net::Shutdown::Both)?;
    // What it could not deliver is nobody's loss.
    let _ = answers.join();
    Ok(())
}

/// Whether the client has closed its end, which has said nothing more.
fn is_gone(mut client: &UnixStream) -> io::Result<bool> {
    client.set_nonblocking(true)?;
    let read = client.read(&mut [0]);
    client.set_nonblocking(false)?;
    Ok(matches!(read, Ok(0)))
}
