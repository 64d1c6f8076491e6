//! Who deals with which frames: the worker processes, and how long each may take.
//!
//! **Takes** lots of frames. **Gives** an answer for each frame, sooner or later. **Never** waits for a worker, and never kills
//! one: a guest that it holds paused is put right by that worker alone.
//!
//! There is one worker most of the time, so that nothing is done twice at once. One that has not answered for
//! [`Limits::patience`] keeps its lot, gets no other, and another is started for all other frames: a guest whose stub or device
//! model hangs holds up no other guest for longer. After [`Limits::deadline`] its standard input is closed, which
//! it takes as an order to stop, and its frames are tried again later.

use super::ledger::{Ending, Outcome};
use super::lot::{Answer, Lot};
use crate::ffi::sys::{self, Polled};
use control::Untrusted;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use xen_abi::types::Mfn;

/// Most workers at a time, those that have been told to stop and have not yet among them.
const MAX_WORKERS: usize = 8;

/// Most bytes that a worker may print without ending a line.
const MAX_LINE: usize = 1 << 20;

/// How long workers may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Without an answer, until others do the rest of the work.
    pub(super) patience: Duration,
    /// Without an answer, until it is told to stop.
    pub(super) deadline: Duration,
}

/// A worker process.
struct Worker {
    child: Child,
    /// Closed once it is told to stop.
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    /// What it has printed of a line that has not ended.
    started: Vec<u8>,
    /// It will print no more.
    is_silent: bool,
    /// The frames that it owes an answer for.
    owed: Vec<Mfn>,
    /// When it last answered or was given a lot.
    since: Instant,
}

/// All of them.
pub(super) struct Pool {
    make: Box<dyn Fn() -> Command>,
    limits: Limits,
    workers: Vec<Worker>,
}

impl Pool {
    /// Workers are made by the command, which reads lots and prints answers.
    pub(super) fn new(make: impl Fn() -> Command + 'static, limits: Limits) -> Self {
        Self { make: Box::new(make), limits, workers: Vec::new() }
    }

    /// Whether nobody owes an answer.
    pub(super) fn is_idle(&self) -> bool {
        self.workers.iter().all(|worker| worker.owed.is_empty())
    }

    /// Whether a lot would be begun at once.
    pub(super) fn has_room(&self) -> bool {
        let is_waited_for = |worker: &Worker| {
            worker.stdin.is_some() && !worker.owed.is_empty() && worker.since.elapsed() < self.limits.patience
        };
        let is_full = self.workers.len() >= MAX_WORKERS && !self.workers.iter().any(Worker::is_free);
        !self.workers.iter().any(is_waited_for) && !is_full
    }

    /// Whether all workers that there may be wait for guests that do not answer.
    pub(super) fn is_stuck(&self) -> bool {
        let is_late =
            |worker: &Worker| worker.stdin.is_none() || worker.since.elapsed() >= self.limits.patience;
        self.workers.len() >= MAX_WORKERS
            && self.workers.iter().all(|worker| !worker.is_free() && is_late(worker))
    }

    /// Gives a lot to a worker, which is started if there is none that is free.
    ///
    /// # Errors
    /// None could be started, or it ended at once: the lot is not begun.
    pub(super) fn begin(&mut self, lot: &Lot) -> io::Result<()> {
        if !self.workers.iter().any(Worker::is_free) {
            self.workers.push(Worker::start(&mut (self.make)())?);
        }
        let worker = self.workers.iter_mut().find(|worker| worker.is_free());
        worker.map_or(Ok(()), |worker| worker.give(lot))
    }

    /// Tells the workers that have nothing to do to end.
    pub(super) fn dismiss_free(&mut self) {
        self.workers.iter_mut().filter(|worker| worker.is_free()).for_each(|worker| worker.stdin = None);
    }

    /// What they have answered. A worker that ended, or was told to stop, answers for all that it owes.
    pub(super) fn answers(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        let deadline = self.limits.deadline;
        self.workers.retain_mut(|worker| {
            // In this order: what it printed before it ended is read.
            let has_ended = worker.has_ended();
            worker.read(&mut answers);
            if has_ended || worker.is_silent {
                worker.stdin = None;
                worker.give_up("worker-ended", "the process that dealt with it ended", &mut answers);
            } else if !worker.owed.is_empty() && worker.since.elapsed() >= deadline {
                worker.stdin = None;
                let text = format!(
                    "no answer for {} s: the process that deals with it is told to stop",
                    deadline.as_secs()
                );
                worker.give_up("no-answer", &text, &mut answers);
            }
            !has_ended
        });
        answers
    }

    /// For waiting until one of them says something.
    pub(super) fn polled(&self) -> Vec<Polled<'_>> {
        let talking = self.workers.iter().filter(|worker| !worker.is_silent);
        talking.map(|worker| Polled::readable(worker.stdout.as_fd())).collect()
    }
}

impl Worker {
    fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("a worker without pipes"));
        };
        sys::set_nonblocking(stdout.as_fd())?;
        let (started, owed) = (Vec::new(), Vec::new());
        Ok(Self { child, stdin: Some(stdin), stdout, started, is_silent: false, owed, since: Instant::now() })
    }

    fn is_free(&self) -> bool {
        self.stdin.is_some() && self.owed.is_empty()
    }

    /// A lot is shorter than a pipe is, so writing it waits for nobody.
    fn give(&mut self, lot: &Lot) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        if let Err(error) = stdin.write_all(lot.line().as_bytes()) {
            self.stdin = None;
            return Err(error);
        }
        self.owed.clone_from(&lot.mfns);
        self.since = Instant::now();
        Ok(())
    }

    /// Takes what it has printed.
    fn read(&mut self, answers: &mut Vec<Answer>) {
        let mut bytes = [0; 4096];
        while !self.is_silent {
            match self.stdout.read(&mut bytes) {
                Ok(0) => self.is_silent = true,
                Ok(nr) => self.started.extend_from_slice(&bytes[..nr]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.is_silent = true,
            }
            self.is_silent |= self.started.len() > MAX_LINE;
        }
        while let Some(end) = self.started.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.started.drain(..=end).collect();
            self.take(String::from_utf8_lossy(&line).trim_end(), answers);
        }
    }

    /// Whether the process is gone, which its output does not say: a daemon that it started may hold that open. How the process
    /// ended is reported unless it was well.
    fn has_ended(&mut self) -> bool {
        match self.child.try_wait() {
            Ok(Some(status)) => {
                if !status.success() {
                    log::warn!("a worker ended: {status}");
                }
                true
            }
            Ok(None) => false,
            Err(error) => {
                log::warn!("a worker: {error}");
                true
            }
        }
    }

    fn take(&mut self, line: &str, answers: &mut Vec<Answer>) {
        match Answer::parse(line) {
            Some(answer) if self.owed.contains(&answer.mfn) => {
                self.owed.retain(|mfn| *mfn != answer.mfn);
                self.since = Instant::now();
                answers.push(answer);
            }
            // The answer to a lot that was given up.
            Some(answer) => log::warn!("too late: {}", answer.line),
            None => log::warn!("a worker: expected an answer, got {:?}", Untrusted::new(line)),
        }
    }

    /// Answers in its place for all that it owes.
    fn give_up(&mut self, reason: &str, text: &str, answers: &mut Vec<Answer>) {
        for mfn in self.owed.drain(..) {
            let outcome = Outcome { ending: Ending::Later, reason: reason.to_owned(), owner: None };
            let line = format!("{mfn}: not done: {text}");
            answers.push(Answer { mfn, outcome, is_superpage: false, line });
        }
    }
}

#[cfg(test)]
mod tests;
