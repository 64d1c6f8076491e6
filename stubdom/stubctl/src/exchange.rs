//! Exchanges with one guest: its stub, what only dom0 knows of its pages, and each exchange's three steps.
//!
//! **Takes** frames of the guest. **Gives** what came of each. **Never** lets the guest run while its stub may be
//! swapping, and never holds it longer than the swap takes, unless it has a hole that nobody could fill.

mod reserved;

use crate::cli::OfflineArguments;
use crate::commands::Guest;
use crate::conf::Conf;
use crate::control_channel::{ControlChannel, ControlError};
use crate::error::Error;
use crate::host::Host;
use crate::marks::{Ended, Marks};
use crate::pair::{self, Paired, Stub};
use crate::standstill::rescue;
use crate::standstill::{Care, Stood};
use crate::toolstack;
use crate::wait::Wait;
use control::exchange::{self as wire, Exchanged, Prepared, Reason, Scope, Swapped, Swapping};
use control::{FromStub, ToStub};
use std::time::Duration;
use xen_abi::types::{Gfn, Mfn, Order};

/// A region that no guest uses: above hvmloader's tables and below the I/O APIC (`hvmloader/config.h`), and below libxc's
/// special pages, so that it is never the guest's highest.
const SCRATCH_REGION: Gfn = Gfn::new(0xfe200);

/// Room for the new superpage and for the one that waits.
const ROOM_PAGES: u64 = 1024;

/// How long a stub may owe the end of a swap before it is destroyed.
const SWAP: Duration = Duration::from_secs(30);

/// How long the users of an old frame may take to let go of it.
pub(crate) const LET_GO: Duration = Duration::from_secs(3);

/// What came of one frame.
pub(crate) enum Step {
    /// Left as it was.
    Refused {
        /// Why, by name.
        reason: &'static str,
        /// Why, in words.
        text: String,
    },
    /// It could be exchanged.
    Fit(Prepared),
    /// It is exchanged.
    Exchanged(Exchange),
    /// The swap broke off and nobody could put the guest right: it stands still until somebody can.
    Stranded(String),
}

/// An exchange that was done.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// What was decided.
    pub(crate) prepared: Prepared,
    /// What the stub did.
    pub(crate) swapped: Swapped,
    /// What the stub said at its end, or why it could not clean up.
    pub(crate) done: Result<Exchanged, String>,
    /// How long the guest stood.
    pub(crate) stood: Stood,
    /// How many old frames are the guest's still: somebody holds them and goes on using them.
    pub(crate) nr_held: u64,
    /// What became of the old frame and its mark.
    pub(crate) ended: Ended,
}

/// What the stub says in place of what was hoped for.
type Answer<T> = Result<T, (Reason, String)>;

/// What came of a swap.
enum Swap {
    /// It is done, and the guest runs.
    Done(Swapped, Stood),
    /// It is not done.
    Refused(&'static str, String),
    /// As [`Step::Stranded`].
    Stranded(String),
}

/// A guest, its stub, and the care that nothing stays behind.
pub(crate) struct Session<'a> {
    host: &'a Host,
    guest: Guest,
    conf: Conf,
    channel: ControlChannel<'a>,
    /// The stub, if it is to end with the session.
    stub: Option<Stub<'a>>,
    care: Care<'a>,
}

impl<'a> Session<'a> {
    /// Finds or starts the guest's stub.
    ///
    /// # Errors
    /// There is none to be had.
    pub(crate) fn open(host: &'a Host, guest: Guest, arguments: &OfflineArguments) -> Result<Self, Error> {
        let care = Care::take(host, guest.domid)?;
        let conf = guest.conf()?;
        let (channel, stub) = match pair::find_or_start(host, &conf, guest.name.raw(), guest.domid)? {
            Paired::Found(stub) => {
                let timeout = conf.stall_timeout;
                (ControlChannel::open_paired(host, stub, guest.domid, timeout, timeout)?, None)
            }
            Paired::Made(stub) => (stub.greet(&conf)?, Some(stub)),
        };
        let stub = stub.and_then(|stub| if arguments.keep { stub.keep_none() } else { Some(stub) });
        Ok(Self { host, guest, conf, channel, stub, care })
    }

    /// Exchanges one frame, or looks whether it could be. The session is over when it does not come back.
    ///
    /// # Errors
    /// The stub or dom0 failed. What that left is put right; where it could not be, the next session of the guest does it
    /// before all else.
    pub(crate) fn exchange(
        mut self,
        mfn: Mfn,
        marks: &Marks<'_>,
        arguments: &OfflineArguments,
    ) -> Result<(Option<Self>, Step), Error> {
        let owned = self.nr_owned()?;
        let whole = !arguments.check && !arguments.split;
        let scratch_region = if whole { Some(self.scratch_region()?) } else { None };
        self.care.begin(scratch_region, if whole { ROOM_PAGES } else { 0 })?;
        match self.steps(mfn, scratch_region, marks, arguments) {
            Ok(step @ Step::Stranded(_)) => Ok((None, step)),
            Ok(Step::Exchanged(exchange)) if exchange.done.is_err() => {
                let ended = self.close(marks).unwrap_or_default();
                Ok((None, Step::Exchanged(Exchange { ended, ..exchange })))
            }
            Ok(step) => Ok(match self.care.end(marks) {
                Ok(()) => {
                    let nr_held = if let Step::Exchanged(exchange) = &step { exchange.nr_held } else { 0 };
                    if let Some(text) = other_count(owned, self.nr_owned()?, nr_held) {
                        log::warn!("{}: {text}", self.guest.name);
                    }
                    (Some(self), step)
                }
                Err(error) => {
                    log::warn!("{}: tried once more: {error}", self.guest.name);
                    (None, step)
                }
            }),
            Err(error) => {
                self.close(marks);
                Err(error)
            }
        }
    }

    /// Pages that the guest owns.
    fn nr_owned(&self) -> Result<u64, Error> {
        Ok(self.host.xen.domain_info(self.guest.domid)?.map_or(0, |info| info.tot_pages))
    }

    /// Ends the session after an exchange that broke off: the stub ends it, or another in its place, whoever wants us to
    /// stop meanwhile. Gives what became of the mark.
    fn close(self, marks: &Marks<'_>) -> Option<Ended> {
        let Self { host, guest, conf, channel, stub, mut care } = self;
        let _undisturbed = host.interrupt.undisturbed();
        drop(channel);
        let mut ended = None;
        let closed = rescue::is_over(host, guest.domid).and_then(|is_over| {
            if is_over {
                rescue::repair_once_more(host, guest.domid, &conf, care.repair())?;
            } else {
                succeed(stub, rescue::rescue(host, &guest, &conf, care.repair())?);
            }
            ended = care.end_mark(marks)?;
            care.end(marks)
        });
        if let Err(error) = closed {
            log::warn!("{}: memory of an exchange may wait in it until the next: {error}", guest.name);
            care.keep();
        }
        ended
    }

    fn steps(
        &mut self,
        mfn: Mfn,
        scratch_region: Option<Gfn>,
        marks: &Marks<'_>,
        arguments: &OfflineArguments,
    ) -> Result<Step, Error> {
        for reserved in reserved::of(self.host, self.guest.domid)? {
            self.channel.send(&ToStub::Reserve(reserved))?;
        }
        let order = wire::Exchange {
            mfn,
            scratch_region,
            only_check: arguments.check,
            panic_at: arguments.debug_stub_panic,
        };
        self.channel.send(&ToStub::Exchange(order))?;
        let prepared = match self.prepared()? {
            Ok(prepared) if arguments.check => return Ok(Step::Fit(prepared)),
            Ok(prepared) => prepared,
            Err((reason, text)) => return Ok(refused((reason.as_str(), text))),
        };
        debug_abort(arguments, 1);
        let (swapped, stood) = match self.swap(mfn, &prepared, scratch_region, marks, arguments)? {
            Swap::Done(swapped, stood) => (Ok(swapped), stood),
            Swap::Refused(reason, text) => (Err((reason, text)), Stood::default()),
            Swap::Stranded(text) => return Ok(Step::Stranded(text)),
        };
        debug_abort(arguments, 4);
        let finished = self.channel.send(&ToStub::Finish).and_then(|()| self.finished())?;
        let swapped = match swapped {
            Ok(swapped) => swapped,
            Err(refusal) => return Ok(refused(refusal)),
        };
        // From here on it would be untrue that the guest is as it was.
        let done = match finished {
            Ok(Some(done)) => Ok(done),
            Ok(None) => Err("the stub lost track of its exchange".to_owned()),
            Err((_, text)) => Err(text),
        };
        let nr_held = done.as_ref().map_or(0, |done| {
            self.still_held(done.nr_held).unwrap_or_else(|error| {
                log::warn!("whether the old frames are held still: {error}");
                done.nr_held
            })
        });
        // Of an exchange that is not done the frame is let go of later, by whoever ends it.
        let ended = if done.is_ok() { self.care.end_mark(marks)? } else { None }.unwrap_or_default();
        Ok(Step::Exchanged(Exchange { prepared, swapped, done, stood, nr_held, ended }))
    }

    /// How many old frames the guest still owns once their last users have let go of them, or after [`LET_GO`]: a device
    /// model hears of it only when the guest runs.
    fn still_held(&mut self, mut nr_held: u64) -> Result<u64, Error> {
        let Self { host, channel, .. } = self;
        let look = Wait::new(&host.interrupt, LET_GO, Duration::from_millis(20)).until(|| {
            if nr_held > 0 {
                channel.send(&ToStub::CountHeld)?;
                nr_held = channel.wait("Held", |message| match message {
                    FromStub::Held { nr_frames } => Some(nr_frames),
                    _ => None,
                })?;
            }
            Ok((nr_held == 0).then_some(()))
        });
        look.map(|_: Option<()>| nr_held)
    }

    /// Holds the guest still for the swap, and no longer.
    fn swap(
        &mut self,
        mfn: Mfn,
        prepared: &Prepared,
        scratch_region: Option<Gfn>,
        marks: &Marks<'_>,
        arguments: &OfflineArguments,
    ) -> Result<Swap, Error> {
        let waiting = scratch_region.filter(|_| prepared.scope == Scope::Superpage);
        let swapping = waiting.map(|waiting| Swapping { gfn: prepared.gfn, mfn, waiting });
        let (host, guest) = (self.host, self.guest.domid);
        // As late as the guest's vCPUs still run: a helper that starts now has to reach Xen before it can miss anything, and
        // no guest that runs can free what is marked.
        let mark = || match toolstack::refusal(host, guest)? {
            Some(refused) => Ok(Some(refused)),
            None => marks.mark_of_guest(mfn, guest).inspect(|_| debug_abort(arguments, 5)),
        };
        let standstill = match self.care.hold(swapping, mfn, mark)? {
            Ok(standstill) => standstill,
            Err(refused) => return Ok(Swap::Refused(refused.reason, refused.text)),
        };
        debug_abort(arguments, 2);
        let sent = self.channel.send(&ToStub::Swap);
        debug_abort(arguments, 3);
        let swapped = sent
            .and_then(|()| self.channel.wait("Swapped", swap_answer))
            .or_else(|error| see_swap_end(self.host, &mut self.channel, &self.guest, error));
        let error = match swapped {
            Ok(Ok(swapped)) => return Ok(Swap::Done(swapped, standstill.end()?)),
            Ok(Err((reason, text))) => {
                if reason == Reason::Lost {
                    standstill.leave()?;
                } else {
                    standstill.end()?;
                    self.care.end_mark(marks)?;
                }
                return Ok(Swap::Refused(reason.as_str(), text));
            }
            Err(error) => error,
        };
        // The stub is gone, and the guest may have a hole where its superpage was: it stands until that is put right.
        match rescue::rescue(self.host, &self.guest, &self.conf, standstill.repair()) {
            Ok(new) => self.stub = succeed(self.stub.take(), new),
            Err(rescue) if swapping.is_some() => {
                standstill.leave_to_be_repaired();
                let text = format!("the swap broke off ({error}) and no other stub could end it ({rescue})");
                return Ok(Swap::Stranded(text));
            }
            // Of a page alone nothing is ever gone.
            Err(rescue) => log::warn!("{rescue}"),
        }
        standstill.end()?;
        if swapping.is_none() {
            return Err(error.into());
        }
        let text = "the stub died during the swap; another has put the guest right: try again";
        Err(ControlError::Failed(text.to_owned()).into())
    }

    fn prepared(&mut self) -> Result<Answer<Prepared>, ControlError> {
        self.channel.wait("Prepared", |message| match message {
            FromStub::Prepared(prepared) => Some(Ok(prepared)),
            other => not_exchanged(other),
        })
    }

    fn finished(&mut self) -> Result<Answer<Option<Exchanged>>, ControlError> {
        self.channel.wait("Exchanged", |message| match message {
            FromStub::Exchanged(exchanged) => Some(Ok(Some(exchanged))),
            FromStub::Done => Some(Ok(None)),
            other => not_exchanged(other),
        })
    }

    fn scratch_region(&self) -> Result<Gfn, Error> {
        let end = self.host.xen.end_gfn(self.guest.domid)?;
        let past = Gfn::new(end.raw().next_multiple_of(Order::PAGE_2M.nr_frames()));
        Ok(if end > SCRATCH_REGION { SCRATCH_REGION } else { past })
    }
}

/// What to say when an exchange did not leave the guest as many pages as it had, but for old frames that somebody holds.
fn other_count(before: u64, after: u64, nr_held: u64) -> Option<String> {
    (after != before.saturating_add(nr_held)).then(|| {
        format!(
            "it owned {before} pages before the exchange, and owns {after} now, of which {nr_held} are old frames that \
             somebody holds: its balloon has moved meanwhile, or pages of the exchange are left in it"
        )
    })
}

/// Has a new stub take the place of one that is gone, if that was the session's own; else it stays as that would have.
fn succeed<'a>(old: Option<Stub<'a>>, new: Stub<'a>) -> Option<Stub<'a>> {
    match old {
        Some(old) => {
            old.keep(); // dead and buried: nothing to destroy
            Some(new)
        }
        None => new.keep_none(),
    }
}

fn refused((reason, text): (&'static str, String)) -> Step {
    Step::Refused { reason, text }
}

fn not_exchanged<T>(message: FromStub<'_>) -> Option<Answer<T>> {
    match message {
        FromStub::NotExchanged { reason, text } => Some(Err((reason, text.to_string()))),
        _ => None,
    }
}

/// Takes what the stub says at the end of a swap.
fn swap_answer(message: FromStub<'_>) -> Option<Answer<Swapped>> {
    match message {
        FromStub::Swapped(swapped) => Some(Ok(swapped)),
        other => not_exchanged(other),
    }
}

/// Waits for the end of a swap whatever else happens: until then the guest must not run. A stub that does not end it is
/// destroyed: after an error there is none.
fn see_swap_end(
    host: &Host,
    channel: &mut ControlChannel<'_>,
    guest: &Guest,
    error: ControlError,
) -> Result<Answer<Swapped>, ControlError> {
    let _undisturbed = host.interrupt.undisturbed();
    if let Ok(answer) = channel.wait_within(SWAP, "the end of its swap", swap_answer) {
        return Ok(answer);
    }
    if let Ok(Some(stub)) = pair::find(host, guest.domid) {
        log::error!("the stub {stub} does not end its swap: destroying it");
        pair::destroy(host, stub, guest.domid);
    }
    Err(error)
}

/// A test of what a dying stubctl leaves behind.
fn debug_abort(arguments: &OfflineArguments, step: u8) {
    if arguments.debug_abort == Some(step) {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_held_frames_may_make_a_guest_own_more_than_before() {
        assert_eq!(other_count(65_536, 65_536, 0), None);
        assert_eq!(other_count(65_536, 65_537, 1), None);
        assert!(other_count(65_536, 66_047, 0).unwrap().contains("and owns 66047 now"));
        assert!(other_count(65_536, 65_535, 0).is_some());
    }
}
