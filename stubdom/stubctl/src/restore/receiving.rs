//! The loop of a receive: the relay moves what is ready, the conversation takes what has come, and every decision stands
//! between two waits.
//!
//! **Takes** an open channel and a relay. **Gives** what the stub restored. **Never** waits for a stub that does not
//! take the stream, whatever it says, and never passes a turn without a look at the interrupts and at the time.

use crate::control_channel::{ControlChannel, ControlError, HEARTBEAT, MESSAGES_PER_TURN, Next};
use crate::error::Error;
use crate::ffi::sys::Polled;
use crate::interrupt::Interrupt;
use crate::libxl::Libxl;
use crate::relay::{Relay, RelayError};
use crate::report::{Account, Outcome};
use control::{FromStub, Phase, Progress, ToStub, Untrusted};
use std::time::{Duration, Instant};

/// How long a stub may take nothing before it says what is wrong with a stream that broke off: it may have as much before
/// it as the way to it holds.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How many requests of the stub's count as its moving on: a stream leads to three.
const NR_REQUESTS: u32 = 8;

/// Dom0's part in a receive.
pub(super) trait Serve {
    /// Serves one message.
    fn step(&mut self, message: FromStub<'_>) -> Step;
    /// Why dom0 refused the stub something, if it has.
    fn refusal(&self) -> Option<&str>;
    /// Processor time that the stub has had.
    fn stub_cpu_ns(&self) -> Option<u64>;
    /// What has to be done again and again while the stub is at work.
    ///
    /// # Errors
    /// The receive cannot go on.
    fn look_after_the_stub(&self) -> Result<(), Error>;
}

/// What a message of the stub's leads to.
pub(super) enum Step {
    Nothing,
    Answer(i32),
    Progress(Progress),
    Restored(Outcome),
    Broken(Error),
}

/// Whose receive it is.
pub(super) struct Guest<'a> {
    /// Its name.
    pub(super) name: &'a Untrusted<String>,
    /// The most pages that it may own.
    pub(super) max_pages: u64,
    /// Who waits for it.
    pub(super) libxl: Libxl,
}

/// What came of a turn of the conversation.
enum Said {
    /// All that the stub had to say.
    All,
    /// As much as a turn takes: there may be more.
    More,
    /// The target is complete.
    Restored(Box<Outcome>),
}

/// When the stub last moved on. Only what is done counts, since a stub can say anything: bytes of the stream that it took,
/// a request that dom0 has served, a source that has nothing to take.
struct Movement {
    at: Instant,
    /// Bytes of the stream that the stub had taken then.
    delivered: u64,
    /// Requests that still count.
    nr_requests: u32,
}

impl Movement {
    fn new(now: Instant) -> Self {
        Self { at: now, delivered: 0, nr_requests: NR_REQUESTS }
    }

    /// The stub has taken so much of the stream, and owes something or not.
    fn delivered(&mut self, now: Instant, delivered: u64, owes: bool) {
        if !owes || delivered > self.delivered {
            (self.at, self.delivered) = (now, delivered);
        }
    }

    /// Dom0 has served a request: its own time is not the stub's.
    fn served(&mut self, now: Instant) {
        if self.nr_requests > 0 {
            self.nr_requests -= 1;
            self.at = now;
        }
    }
}

/// A receive under way.
pub(super) struct Receiving<'a, S> {
    interrupt: &'a Interrupt,
    guest: Guest<'a>,
    dom0: S,
    channel: ControlChannel<'a>,
    relay: Relay,
    account: &'a mut Account,
    /// What ended the relay, if anything has: the stub is about to say why.
    broken: Option<RelayError>,
    /// When the stub was last looked at.
    looked: Instant,
    movement: Movement,
    /// The last progress that libxl heard of.
    percent: u64,
}

impl<'a, S: Serve> Receiving<'a, S> {
    pub(super) fn new(
        interrupt: &'a Interrupt,
        guest: Guest<'a>,
        dom0: S,
        channel: ControlChannel<'a>,
        relay: Relay,
        account: &'a mut Account,
    ) -> Self {
        let (broken, looked, movement, percent) = (None, Instant::now(), Movement::new(Instant::now()), 0);
        Self { interrupt, guest, dom0, channel, relay, account, broken, looked, movement, percent }
    }

    /// Serves the stub until the target is complete.
    ///
    /// # Errors
    /// The stream or the stub failed, the stub did not move on for `stall_timeout`, or somebody wants an end.
    pub(super) fn run(mut self, stall_timeout: Duration) -> Result<Outcome, Error> {
        loop {
            let has_more = match self.converse()? {
                Said::Restored(outcome) => return Ok(*outcome),
                Said::More => true,
                Said::All => false,
            };
            let (fill, drain) = self.wait(has_more)?;
            let drained = if drain { self.relay.drain() } else { Ok(()) };
            let filled = if fill && drained.is_ok() { self.relay.fill() } else { Ok(()) };
            if let Err(error) = drained.and(filled) {
                self.break_off(error);
            }
            self.check_stall(stall_timeout)?;
        }
    }

    /// The relay broke. The stub has a while to say why, since it often knows more: a fault may stand in what it has not
    /// read yet. It is served meanwhile as before.
    fn break_off(&mut self, error: RelayError) {
        log::debug!("waiting for the stub's last words: {error}");
        self.broken.get_or_insert(error);
        self.movement.at = Instant::now();
    }

    /// Waits for the stream, the stub or an interrupt; tells whether the relay can fill and drain.
    fn wait(&mut self, has_more: bool) -> Result<(bool, bool), Error> {
        let readable = self.relay.source().map_or(Polled::never(), Polled::readable);
        let writable = self.relay.sink();
        let signalled = self.channel.readable();
        // Only a look, as long as there is more to take, or the stub is to be told of bytes: there may be more of them.
        let patience = if has_more || self.relay.is_untold() { Duration::ZERO } else { HEARTBEAT };
        self.interrupt.wait(&[&signalled, &readable, &writable], patience)?;
        let (fill, drain) = (readable.is_ready(), writable.is_ready());
        if signalled.is_ready() {
            self.channel.acknowledge();
        }
        if !fill {
            self.relay.flush();
        }
        if self.looked.elapsed() >= HEARTBEAT {
            self.looked = Instant::now();
            self.channel.check_alive()?;
            self.dom0.look_after_the_stub()?;
        }
        Ok((fill, drain))
    }

    /// Takes the messages that have come, as many as a turn takes.
    fn converse(&mut self) -> Result<Said, Error> {
        for _ in 0..MESSAGES_PER_TURN {
            let dom0 = &mut self.dom0;
            let next = self.channel.next(&mut |message| dom0.step(message));
            match next.map_err(|error| self.with_refusal(error))? {
                Next::Nothing => return Ok(Said::All),
                Next::Own | Next::Taken(Step::Nothing) => {}
                Next::Taken(Step::Answer(result)) => {
                    self.channel.send(&ToStub::Answer { result })?;
                    self.movement.served(Instant::now());
                }
                Next::Taken(Step::Progress(progress)) => self.show(progress),
                Next::Taken(Step::Restored(outcome)) => {
                    return Ok(Said::Restored(Box::new(self.complete(outcome)?)));
                }
                Next::Taken(Step::Broken(error)) => return Err(error),
            }
        }
        Ok(Said::More)
    }

    /// A stub that claims to be done before it had END is not believed: libxl would read on inside the stream.
    fn complete(&mut self, outcome: Outcome) -> Result<Outcome, Error> {
        match self.broken {
            None if self.relay.is_done() => Ok(outcome),
            broken => Err(broken.unwrap_or(RelayError::Early(self.relay.place())).into()),
        }
    }

    fn show(&mut self, progress: Progress) {
        let dom0 = &self.dom0;
        if let Some(lap) = self.account.enter(progress, || dom0.stub_cpu_ns()) {
            log::info!("{}: {} ({lap})", self.guest.name, progress.phase.as_str());
        }
        let total = self.guest.max_pages.max(1);
        let percent = progress.nr_pages.min(total) * 100 / total;
        // libxl prints a line for each: ten are enough.
        if progress.phase == Phase::Memory && percent >= self.percent + 10 {
            self.percent = percent;
            // A libxl that is gone shows as a hang-up.
            let _ = self.guest.libxl.progress("Memory", progress.nr_pages.min(total), total);
        }
    }

    /// Adds dom0's own reason when the stub failed because dom0 refused it something.
    fn with_refusal(&self, error: ControlError) -> Error {
        match (error, self.dom0.refusal()) {
            (ControlError::Failed(text), Some(refusal)) => {
                ControlError::Failed(format!("{text}: {refusal}")).into()
            }
            (error, _) => error.into(),
        }
    }

    /// The stub owes something while bytes wait for it or END has gone out; a slow source is not its fault.
    fn check_stall(&mut self, stall_timeout: Duration) -> Result<(), Error> {
        let nr_waiting = self.relay.nr_waiting();
        // The token waits like a byte of the stream and is none.
        let delivered = self.relay.place().offset.saturating_sub(nr_waiting as u64);
        let owes = nr_waiting > 0 || self.relay.is_done() || self.broken.is_some();
        self.movement.delivered(Instant::now(), delivered, owes);
        let waited = self.broken.map_or(stall_timeout, |_| LAST_WORDS);
        if self.movement.at.elapsed() < waited {
            return Ok(());
        }
        if let Some(error) = self.broken {
            return Err(error.into());
        }
        let expected =
            if self.relay.is_done() { "Restored after END" } else { "it to take more of the stream" };
        Err(ControlError::Silent { expected, waited }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_channel::tests as stubs;
    use crate::interrupt::Stop;
    use crate::relay::tests::untaken;
    use std::io::Write;

    const BRIEF: Duration = Duration::from_millis(50);

    /// A dom0 that serves every request.
    struct Willing;

    impl Serve for Willing {
        fn step(&mut self, message: FromStub<'_>) -> Step {
            match message {
                FromStub::Progress(progress) => Step::Progress(progress),
                _ => Step::Nothing,
            }
        }

        fn refusal(&self) -> Option<&str> {
            None
        }

        fn stub_cpu_ns(&self) -> Option<u64> {
            Some(0)
        }

        fn look_after_the_stub(&self) -> Result<(), Error> {
            Ok(())
        }
    }

    fn receive(interrupt: &Interrupt, message: &FromStub<'_>, stall_timeout: Duration) -> Error {
        let name = Untrusted::new("db".to_owned());
        let mut account = Account::start(&name);
        let guest = Guest { name: &name, max_pages: 0, libxl: Libxl::new(0) };
        let channel = stubs::flood(interrupt, message, stubs::lives(), BRIEF);
        let receiving = Receiving::new(interrupt, guest, Willing, channel, untaken(), &mut account);
        receiving.run(stall_timeout).map(|_| "restored").unwrap_err()
    }

    #[test]
    fn a_stub_that_talks_without_end_and_takes_nothing_stalls() {
        let (interrupt, _writer) = stubs::interrupt();
        let progress = Progress { phase: Phase::Memory, nr_bytes: u64::MAX, nr_pages: 0, pass: 1 };
        for message in [FromStub::Progress(progress), FromStub::Listening, stubs::CHATTER] {
            let error = receive(&interrupt, &message, BRIEF);
            assert!(matches!(error, Error::Control(ControlError::Silent { .. })), "{error}");
        }
    }

    #[test]
    fn an_abort_of_libxls_is_heard_while_the_stub_talks_without_end() {
        let (interrupt, mut writer) = stubs::interrupt();
        writer.write_all(b"!").unwrap();
        let error = receive(&interrupt, &stubs::CHATTER, Duration::from_secs(3600));
        assert!(matches!(error, Error::Stop(Stop::Signal)), "{error}");
    }

    #[test]
    fn requests_without_end_are_no_movement() {
        let start = Instant::now();
        let mut movement = Movement::new(start);
        let second = |nr| start + Duration::from_secs(nr);
        (1..100).for_each(|nr| movement.served(second(nr)));
        assert_eq!(movement.at, second(NR_REQUESTS.into()));
    }

    #[test]
    fn bytes_count_once_as_movement_and_a_stub_that_owes_nothing_always_moves() {
        let start = Instant::now();
        let mut movement = Movement::new(start);
        let second = |nr| start + Duration::from_secs(nr);
        movement.delivered(second(1), 10, true);
        movement.delivered(second(2), 10, true);
        // The index is the stub's to write.
        movement.delivered(second(3), 5, true);
        movement.delivered(second(4), 10, true);
        assert_eq!(movement.at, second(1));
        movement.delivered(second(5), 10, false);
        assert_eq!(movement.at, second(5));
    }
}
