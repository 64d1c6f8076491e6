//! Waits that end: the one way in which stubctl waits for somebody else.
//!
//! **Takes** a deadline and the interrupts. **Gives** the next turn of a loop, or the reason why there is none.
//! **Never** lets a turn pass without a look at both, however much the other side has to say.
//!
//! A loop takes what is there, looks whether the other side still lives, and then calls [`Wait::sleep`], or [`Wait::go_on`]
//! when there is more to take at once. Both fail when the time is over or somebody wants this process to stop.

use crate::ffi::sys::Polled;
use crate::interrupt::{Interrupt, Stop};
use std::time::{Duration, Instant};

/// A point in time, and how long the wait until then is in all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    end: Instant,
    allowed: Duration,
}

impl Deadline {
    /// Ends after so long.
    pub(crate) fn after(allowed: Duration) -> Self {
        Self { end: Instant::now() + allowed, allowed }
    }

    /// What is left of the time.
    pub(crate) fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Whether the time is over.
    pub(crate) fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// How long the wait is in all.
    pub(crate) fn allowed(&self) -> Duration {
        self.allowed
    }
}

/// Why a loop has no next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// The time is over.
    Late,
    /// Somebody wants an end.
    Stop(Stop),
}

/// The turns of one loop.
#[derive(Clone, Copy)]
pub(crate) struct Wait<'a> {
    interrupt: &'a Interrupt,
    deadline: Deadline,
    /// The longest sleep, after which the loop looks again whether or not it was woken.
    every: Duration,
}

impl<'a> Wait<'a> {
    /// Waits at most `allowed` in all, and sleeps at most `every` at a time.
    pub(crate) fn new(interrupt: &'a Interrupt, allowed: Duration, every: Duration) -> Self {
        Self { interrupt, deadline: Deadline::after(allowed), every }
    }

    /// How long the wait is in all.
    pub(crate) fn allowed(&self) -> Duration {
        self.deadline.allowed()
    }

    /// Starts the time anew: the other side has moved.
    pub(crate) fn renew(&mut self) {
        self.deadline = Deadline::after(self.deadline.allowed());
    }

    /// Begins the next turn after a sleep, which one of `wakers` can end.
    ///
    /// # Errors
    /// There is no next turn.
    pub(crate) fn sleep(&self, wakers: &[&Polled<'_>]) -> Result<(), Expired> {
        self.turn(wakers, self.every)
    }

    /// Begins the next turn at once.
    ///
    /// # Errors
    /// There is no next turn.
    pub(crate) fn go_on(&self) -> Result<(), Expired> {
        self.turn(&[], Duration::ZERO)
    }

    fn turn(&self, wakers: &[&Polled<'_>], longest: Duration) -> Result<(), Expired> {
        if self.deadline.is_over() {
            return Err(Expired::Late);
        }
        // A poll counts in whole milliseconds: one more, so that the time is over when the last sleep is.
        let sleep = longest.min(self.deadline.left() + Duration::from_millis(1));
        self.interrupt.wait(wakers, sleep).map_err(Expired::Stop)
    }

    /// Looks again and again until there is something; `None`: the time is over.
    ///
    /// # Errors
    /// The look fails, or somebody wants an end.
    pub(crate) fn until<T, E: From<Stop>>(
        &self,
        mut look: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        loop {
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            match self.sleep(&[]) {
                Ok(()) => {}
                Err(Expired::Late) => return Ok(None),
                Err(Expired::Stop(stop)) => return Err(stop.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::io::{PipeWriter, Write};

    const BRIEF: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(3600);

    fn interrupt() -> (Interrupt, PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        (Interrupt::at(reader.into()), writer)
    }

    #[test]
    fn a_loop_that_always_has_more_to_do_ends_at_its_deadline() {
        let (interrupt, _writer) = interrupt();
        let wait = Wait::new(&interrupt, BRIEF, LONG);
        let end = std::iter::repeat_with(|| wait.go_on()).find_map(Result::err);
        assert_eq!(end, Some(Expired::Late));
    }

    #[test]
    fn a_loop_that_always_has_more_to_do_ends_for_an_interrupt() {
        let (interrupt, mut writer) = interrupt();
        let wait = Wait::new(&interrupt, LONG, LONG);
        assert_eq!(wait.go_on(), Ok(()));
        writer.write_all(b"!").unwrap();
        assert_eq!(wait.go_on(), Err(Expired::Stop(Stop::Signal)));
        assert_eq!(wait.sleep(&[]), Err(Expired::Stop(Stop::Signal)));
        let _undisturbed = interrupt.undisturbed();
        assert_eq!(wait.go_on(), Ok(()));
    }

    #[test]
    fn a_sleep_is_no_longer_than_the_time_that_is_left() {
        let (interrupt, _writer) = interrupt();
        let wait = Wait::new(&interrupt, BRIEF, LONG);
        assert_eq!(wait.sleep(&[]), Ok(()));
        assert_eq!(wait.sleep(&[]), Err(Expired::Late));
    }

    #[test]
    fn what_is_looked_for_is_looked_for_once_more_when_the_time_is_over() {
        let (interrupt, _writer) = interrupt();
        let mut nr_looks = 0;
        let mut look = |wanted| {
            nr_looks += 1;
            Ok::<_, Error>((nr_looks == wanted).then_some(nr_looks))
        };
        assert_eq!(Wait::new(&interrupt, Duration::ZERO, BRIEF).until(|| look(1)).unwrap(), Some(1));
        assert_eq!(Wait::new(&interrupt, LONG, Duration::ZERO).until(|| look(5)).unwrap(), Some(5));
        assert_eq!(Wait::new(&interrupt, Duration::ZERO, BRIEF).until(|| look(9)).unwrap(), None);
    }
}
