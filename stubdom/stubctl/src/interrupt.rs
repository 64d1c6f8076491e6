//! Reasons to stop early: SIGTERM (libxl's abort), SIGINT, a libxl that is gone.
//!
//! **Takes** the process's signals and standard input. **Gives** descriptors to wait on, and a verdict. **Never**
//! does work in a signal handler: the signals are read from a descriptor, so that clean-up is ordinary code.

use crate::ffi::sys::{self, Polled};
use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Why to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// SIGTERM or SIGINT came.
    Signal,
    /// The program that started the save helper has closed its end.
    ParentGone,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal => write!(f, "aborted by a signal"),
            Self::ParentGone => {
                write!(f, "the toolstack that asked for this is gone")
            }
        }
    }
}

/// Watches for them.
pub(crate) struct Interrupt {
    /// `None`: nobody can interrupt.
    signals: Option<OwnedFd>,
    /// libxl's pipe, in a save helper.
    parent: Option<BorrowedFd<'static>>,
    /// How many [`Undisturbed`] there are.
    nr_undisturbed: Cell<u32>,
}

/// While this lives no wait ends for an interrupt, which stays for later: a guest is being put right.
pub(crate) struct Undisturbed<'a>(&'a Cell<u32>);

impl Drop for Undisturbed<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Interrupt {
    /// For a command of an operator.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { signals: Some(sys::termination_fd()?), ..Self::deaf() })
    }

    /// For a save helper, whose standard input is libxl's pipe.
    pub(crate) fn of_helper() -> io::Result<Self> {
        // Standard input stays open as long as the process.
        Ok(Self { parent: Some(crate::ffi::sys::standard_input()), ..Self::new()? })
    }

    /// For what is brought to its end whoever wants to stop: only its deadline ends a wait.
    pub(crate) fn deaf() -> Self {
        Self { signals: None, parent: None, nr_undisturbed: Cell::new(0) }
    }

    /// For a test: what is written to the far end of the pipe stands for a signal.
    #[cfg(test)]
    pub(crate) fn at(signals: OwnedFd) -> Self {
        Self { signals: Some(signals), ..Self::deaf() }
    }

    /// Keeps waits from ending early as long as the value lives.
    pub(crate) fn undisturbed(&self) -> Undisturbed<'_> {
        self.nr_undisturbed.set(self.nr_undisturbed.get() + 1);
        Undisturbed(&self.nr_undisturbed)
    }

    /// Waits for one of the descriptors, for an interrupt, or for the time to pass.
    ///
    /// # Errors
    /// The reason to stop, if there is one.
    pub(crate) fn wait(&self, others: &[&Polled<'_>], timeout: Duration) -> Result<(), Stop> {
        let is_listening = self.nr_undisturbed.get() == 0;
        let signals = self.signals.as_ref().map_or(Polled::never(), |fd| Polled::readable(fd.as_fd()));
        let parent = self.parent.map_or(Polled::never(), Polled::hang_up);
        let (signals, parent) = (signals.only_if(is_listening), parent.only_if(is_listening));
        let all: Vec<&Polled<'_>> = others.iter().copied().chain([&signals, &parent]).collect();
        if let Err(error) = sys::poll(&all, timeout) {
            // Only a lack of kernel memory does this; the callers' deadlines still hold.
            log::debug!("poll: {error}");
        }
        if signals.is_ready() {
            return Err(Stop::Signal);
        }
        if parent.is_ready() { Err(Stop::ParentGone) } else { Ok(()) }
    }
}
