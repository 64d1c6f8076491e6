//! The harness's hand in dom0: runs scripts that come over a virtio serial port, several at a time.

use e2e::wire::{self, Frame, Kind};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long output may trickle in after a script's end: something it left in the background may hold the pipe.
const TRICKLE: Duration = Duration::from_secs(1);

type Port = Arc<Mutex<File>>;

fn main() -> io::Result<()> {
    let mut reader = File::options().read(true).write(true).open(find_port()?)?;
    let port: Port = Arc::new(Mutex::new(reader.try_clone()?));
    let mut groups = HashMap::new();
    send(&port, Kind::Hello, 0, Vec::new())?;
    loop {
        let frame = Frame::read(&mut reader)?;
        match frame.kind {
            Kind::Run => match start(&port, frame.job, &frame.payload) {
                Ok(group) => drop(groups.insert(frame.job, group)),
                Err(error) => refuse(&port, frame.job, &error)?,
            },
            Kind::Kill => groups.get(&frame.job).copied().into_iter().for_each(kill_group),
            kind => eprintln!("nest-agent: {kind:?} is not for me"),
        }
    }
}

/// The serial port of the right name.
fn find_port() -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let path = entry?.path();
        let name = fs::read_to_string(path.join("name")).unwrap_or_default();
        if let (wire::PORT_NAME, Some(file)) = (name.trim(), path.file_name()) {
            return Ok(PathBuf::from("/dev").join(file));
        }
    }
    Err(io::Error::other("no virtio serial port of the nest"))
}

/// Starts a script in a process group of its own; gives the group.
fn start(port: &Port, job: u32, payload: &[u8]) -> io::Result<u32> {
    let (args, script) = wire::decode_run(payload);
    let path = format!("/run/nest-job-{job}");
    fs::write(&path, script)?;
    let (output, input) = io::pipe()?;
    let mut bash = Command::new("/bin/bash");
    bash.arg(path).args(args).stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input).process_group(0);
    let child = bash.spawn()?;
    drop(bash); // its copies of the pipe's end, or the pipe would never end
    let group = child.id();
    let port = Arc::clone(port);
    std::thread::spawn(move || follow(&port, job, child, output));
    Ok(group)
}

/// Passes a script's output on and reports its end.
fn follow(port: &Port, job: u32, mut child: Child, output: io::PipeReader) {
    let (done, ended) = mpsc::channel();
    let copy = Arc::clone(port);
    std::thread::spawn(move || {
        pass_on(&copy, job, output);
        let _ = done.send(()); // nobody waits any more after TRICKLE
    });
    let code = child.wait().map_or(127, exit_code);
    let _ = ended.recv_timeout(TRICKLE);
    report(send(port, Kind::Exit, job, code.to_string().into_bytes()));
}

fn pass_on(port: &Port, job: u32, mut output: io::PipeReader) {
    let mut buffer = [0; 16384];
    while let Ok(len @ 1..) = output.read(&mut buffer) {
        report(send(port, Kind::Output, job, buffer[..len].to_vec()));
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn kill_group(group: u32) {
    report(Command::new("kill").args(["-KILL", "--", &format!("-{group}")]).status().map(drop));
}

fn refuse(port: &Port, job: u32, error: &io::Error) -> io::Result<()> {
    send(port, Kind::Output, job, format!("nest-agent: {error}\n").into_bytes())?;
    send(port, Kind::Exit, job, b"127".to_vec())
}

fn send(port: &Port, kind: Kind, job: u32, payload: Vec<u8>) -> io::Result<()> {
    let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
    Frame { kind, job, payload }.write(&mut *port)
}

fn report(result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("nest-agent: {error}");
    }
}
