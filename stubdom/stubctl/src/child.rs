//! A program that stubctl runs, and what it says on standard error.
//!
//! **Takes** a command. **Gives** how it ended, and its words as far as they came. **Never** waits: a program's words are
//! taken while it runs, so that it never waits for us, and whoever else has its standard error open is not waited for.

use crate::ffi::sys;
use control::Untrusted;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};

/// As much of its words as is kept.
const MAX_WORDS_BYTES: usize = 8 << 10;

/// A program that was started.
pub(crate) struct Running {
    child: Child,
    words: Vec<u8>,
}

impl Running {
    /// Starts a program without input or output, which a signal can end.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        // libxl's pipes to this process are no business of the daemon that an xl leaves behind.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = sys::unblock_termination(command).spawn()?;
        if let Some(stderr) = &child.stderr {
            sys::set_nonblocking(stderr.as_fd())?;
        }
        Ok(Self { child, words: Vec::new() })
    }

    /// How it ended, if it has; takes what it has said until now.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        // First: what it says at its end is there when it has ended.
        let status = self.child.try_wait()?;
        self.listen();
        Ok(status)
    }

    /// What it has said.
    pub(crate) fn words(&self) -> Untrusted<String> {
        Untrusted::new(String::from_utf8_lossy(&self.words).into_owned())
    }

    /// Ends it.
    pub(crate) fn kill(mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Takes what has come, a pipe's worth at most: a program that talks without end is not listened to without end.
    fn listen(&mut self) {
        const NR_READS: usize = 16;
        let Some(stderr) = &mut self.child.stderr else { return };
        let mut bytes = [0; 4096];
        for _ in 0..NR_READS {
            // What cannot be read is missing from a message, no more.
            let nr = stderr.read(&mut bytes).unwrap_or(0);
            if nr == 0 {
                return;
            }
            let room = MAX_WORDS_BYTES.saturating_sub(self.words.len());
            self.words.extend_from_slice(bytes.get(..nr.min(room)).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::interrupt::Interrupt;
    use crate::wait::Wait;
    use std::time::Duration;

    fn run(script: &str, allowed: Duration) -> (Option<ExitStatus>, Running) {
        let mut running = Running::start(Command::new("sh").args(["-c", script])).unwrap();
        let nobody = Interrupt::deaf();
        let wait = Wait::new(&nobody, allowed, Duration::from_millis(5));
        let status = wait.until(|| Ok::<_, Error>(running.ended()?)).unwrap();
        (status, running)
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn who_inherits_a_programs_standard_error_is_not_waited_for() {
        let (status, running) = run("sleep 3600 & echo $! >&2; echo no such domain >&2; exit 3", LONG);
        let words = running.words();
        let words = words.raw();
        let sleeper = words.lines().next().unwrap();
        Command::new("kill").arg(sleeper).status().unwrap();
        assert_eq!(status.unwrap().code(), Some(3));
        assert!(words.ends_with("no such domain\n"), "{words}");
    }

    #[test]
    fn a_program_that_says_more_than_a_pipe_holds_ends_all_the_same() {
        let (status, running) = run("head -c 300000 /dev/zero | tr '\\0' x >&2", LONG);
        assert!(status.unwrap().success());
        assert_eq!(running.words().raw().len(), MAX_WORDS_BYTES);
    }

    #[test]
    fn a_program_that_does_not_end_is_given_up() {
        let (status, running) = run("exec sleep 3600", Duration::from_millis(50));
        assert!(status.is_none());
        running.kill();
    }
}
