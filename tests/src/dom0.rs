//! Dom0 as the harness sees it: a place where bash scripts run.

use crate::error::{Doing, Error, Result};
use crate::tool;
use crate::wire::{self, Frame, Kind};
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Who waits for the frames of which job.
type Waiting = Arc<Mutex<HashMap<u32, Sender<Frame>>>>;

/// The longest step of waiting. A step that takes longer still is time in which this host stood still, and the machine
/// with it.
const STEP: Duration = Duration::from_secs(1);

/// By how much a step may be late on a busy host.
const LATE: Duration = Duration::from_secs(2);

/// The line to dom0's agent.
#[derive(Debug)]
pub struct Dom0 {
    stream: Mutex<UnixStream>,
    waiting: Waiting,
    next_job: Mutex<u32>,
    stood_still: Mutex<Duration>,
}

/// What a script did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code; 128 and the signal's number when one ended it.
    pub code: i32,
    /// What it wrote, standard output and standard error as they came.
    pub text: String,
}

/// A script that runs.
#[derive(Debug)]
pub struct Job<'a> {
    dom0: &'a Dom0,
    number: u32,
    frames: Receiver<Frame>,
}

impl Dom0 {
    /// Waits for the agent's first word on a fresh line.
    ///
    /// # Errors
    /// It did not come within `limit`.
    pub fn greet(stream: UnixStream, limit: Duration) -> Result<Self> {
        stream.set_nonblocking(false).doing("preparing the agent's line")?;
        stream.set_read_timeout(Some(limit)).doing("preparing the agent's line")?;
        let mut reader = stream.try_clone().doing("preparing the agent's line")?;
        let hello = Frame::read(&mut reader).doing(format!("waiting {} s for dom0", limit.as_secs()))?;
        if hello.kind != Kind::Hello {
            return Err(Error::new("waiting for dom0", format!("its agent opened with {:?}", hello.kind)));
        }
        reader.set_read_timeout(None).doing("preparing the agent's line")?;
        let waiting = Waiting::default();
        let shared = Arc::clone(&waiting);
        std::thread::spawn(move || dispatch(reader, &shared));
        Ok(Self {
            stream: Mutex::new(stream),
            waiting,
            next_job: Mutex::new(1),
            stood_still: Mutex::default(),
        })
    }

    /// How long this host has stood still in all while a script ran: a virtual machine that is frozen for a while and goes
    /// on, say. Clocks went on meanwhile, in dom0 too, and limits that are counted there may have passed.
    pub fn stood_still(&self) -> Duration {
        *self.stood_still.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What of a step's time counts against a limit.
    fn count(&self, step: Duration) -> Duration {
        let late = step.saturating_sub(STEP + LATE);
        *self.stood_still.lock().unwrap_or_else(PoisonError::into_inner) += late;
        step - late
    }

    /// Starts a bash script.
    ///
    /// # Errors
    /// The nest died.
    pub fn start(&self, script: &str, args: &[String]) -> Result<Job<'_>> {
        let number = self.take_number();
        let (sender, frames) = mpsc::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(number, sender);
        self.send(&Frame { kind: Kind::Run, job: number, payload: wire::encode_run(script, args) })?;
        Ok(Job { dom0: self, number, frames })
    }

    /// Runs a bash script to its end.
    ///
    /// # Errors
    /// It ran longer than `limit`, or the nest died. An exit code other than 0 is an outcome, not an error.
    pub fn run(&self, script: &str, limit: Duration) -> Result<Outcome> {
        let mut text = Vec::new();
        let ended = self.start(script, &[])?.finish(limit, |piece| text.extend_from_slice(piece));
        let text = String::from_utf8_lossy(&text).into_owned();
        match ended {
            Ok(code) => Ok(Outcome { code, text }),
            Err(error) => {
                let said = tool::last_lines(&text, 6);
                Err(Error::new(error, format!("in `{}`, which had said:\n{said}", script.trim())))
            }
        }
    }

    fn take_number(&self) -> u32 {
        let mut next = self.next_job.lock().unwrap_or_else(PoisonError::into_inner);
        *next += 1;
        *next
    }

    fn send(&self, frame: &Frame) -> Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&mut *stream).doing("speaking to dom0's agent")
    }
}

impl Job<'_> {
    /// Takes the output as it comes, until the script ends; gives its exit code.
    ///
    /// # Errors
    /// It ran longer than `limit` (then it is killed with all its processes), or the nest died. Time in which this host
    /// stood still does not count.
    pub fn finish(self, limit: Duration, mut output: impl FnMut(&[u8])) -> Result<i32> {
        let mut left = limit;
        while !left.is_zero() {
            let began = Instant::now();
            let came = self.frames.recv_timeout(left.min(STEP));
            left = left.saturating_sub(self.dom0.count(began.elapsed()));
            match came {
                Ok(frame) if frame.kind == Kind::Exit => return exit_code(&frame.payload),
                Ok(frame) => output(&frame.payload),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::new("running a script in dom0", "the nest died before it ended"));
                }
            }
        }
        self.dom0.send(&Frame { kind: Kind::Kill, job: self.number, payload: Vec::new() })?;
        Err(Error::new("running a script in dom0", format!("no end after {limit:?}")))
    }
}

/// Hands each frame to the one who waits for its job; when the line ends, so do all who wait.
fn dispatch(mut reader: UnixStream, waiting: &Waiting) {
    while let Ok(frame) = Frame::read(&mut reader) {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let job = frame.job;
        let last = frame.kind == Kind::Exit;
        let gone = waiting.get(&job).is_some_and(|sender| sender.send(frame).is_err());
        if last || gone {
            waiting.remove(&job);
        }
    }
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn exit_code(payload: &[u8]) -> Result<i32> {
    String::from_utf8_lossy(payload).parse().doing("reading a script's exit code")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Dom0, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        Frame { kind: Kind::Hello, job: 0, payload: vec![] }.write(&mut theirs).unwrap();
        (Dom0::greet(ours, Duration::from_secs(1)).unwrap(), theirs)
    }

    #[test]
    fn a_script_gives_its_output_and_its_exit_code() {
        let (dom0, mut agent) = pair();
        let answering = std::thread::spawn(move || {
            let run = Frame::read(&mut agent).unwrap();
            for (kind, text) in [(Kind::Output, "one\n"), (Kind::Output, "two\n"), (Kind::Exit, "3")] {
                Frame { kind, job: run.job, payload: text.into() }.write(&mut agent).unwrap();
            }
            agent
        });
        let outcome = dom0.run("irrelevant", Duration::from_secs(5)).unwrap();
        assert_eq!(outcome, Outcome { code: 3, text: "one\ntwo\n".into() });
        drop(answering.join());
    }

    #[test]
    fn a_missing_verdict_is_an_error() {
        let (dom0, agent) = pair();
        let job = dom0.start("irrelevant", &[]).unwrap();
        drop(agent);
        assert!(
            job.finish(Duration::from_secs(5), |_| ()).unwrap_err().to_string().contains("the nest died")
        );
    }

    #[test]
    fn time_in_which_the_host_stood_still_does_not_count() {
        let (dom0, _agent) = pair();
        assert_eq!(dom0.count(STEP + LATE), STEP + LATE);
        assert_eq!(dom0.stood_still(), Duration::ZERO);
        assert_eq!(dom0.count(Duration::from_secs(60)), STEP + LATE);
        assert_eq!(dom0.stood_still(), Duration::from_secs(60) - STEP - LATE);
    }

    #[test]
    fn a_script_that_does_not_end_is_killed() {
        let (dom0, mut agent) = pair();
        let error = dom0.run("irrelevant", Duration::from_millis(20)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no end") && text.contains("`irrelevant`"), "{text}");
        let run = Frame::read(&mut agent).unwrap();
        let kill = Frame::read(&mut agent).unwrap();
        assert_eq!((kill.kind, kill.job), (Kind::Kill, run.job));
    }
}
