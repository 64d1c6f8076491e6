//! A guest held still for an exchange, and what sees to it that it never stays so.
//!
//! **Takes** a guest. **Gives** the time in which it stands still. **Never** leaves it standing, unless it may have a hole:
//! - a [`Standstill`] that is dropped lets the guest run;
//! - a process of its own, the [`Guardian`], does so when stubctl dies, or could not do so itself;
//! - a record in xenstore lets the next stubctl do so when both have died ([`rescue`]).
//!
//! One stubctl at a time has a guest in care ([`Lock`]).
//!
//! Order: stop the device model (which ends its DMA), pause the guest; afterwards the device model goes on first. The
//! guest's first vCPU to run tells it to drop what it has mapped of the old frame, and it hears that only while it runs:
//! a stopped one has its ioreq server disabled (QEMU's `xen_hvm_change_state_handler`). So a guest with a device model that
//! somebody else has paused, or whose device model somebody else has stopped, is not touched.

mod record;
pub(crate) mod rescue;

use crate::error::Error;
use crate::host::Host;
use crate::interrupt::Interrupt;
use crate::marks::{Ended, Marks};
use crate::qmp::{Qmp, QmpError};
use crate::toolstack;
use crate::verdict::Refused;
use crate::wait::Wait;
use control::exchange::{Repair, Swapping};
pub(crate) use record::Lock;
use record::{Record, Room};
use std::fmt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use xen_abi::types::{Domid, Gfn, Mfn};

/// How long a guardian with nothing to do may take to end.
const GUARDIAN: Duration = Duration::from_secs(5);

/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(5);

/// Holds a guest's standstills, its raised `maxmem` and what its stub is doing together.
pub(crate) struct Care<'a> {
    host: &'a Host,
    guest: Domid,
    record: Record,
    /// Whether the record has to outlive this: the guest could not be put right.
    is_kept: bool,
    /// Freed before the guardian looks.
    _lock: Lock,
    guardian: Guardian,
}

impl<'a> Care<'a> {
    /// Takes a guest into care, after putting right what an earlier stubctl left.
    ///
    /// # Errors
    /// Another stubctl has it, or what was left cannot be put right.
    pub(crate) fn take(host: &'a Host, guest: Domid) -> Result<Self, Error> {
        let lock = Lock::take(host, guest)?;
        rescue::put_right(host, guest)?;
        let record = Record::new(std::process::id());
        let guardian = Guardian::start(guest, record.pid)?;
        let care = Self { host, guest, record, is_kept: false, _lock: lock, guardian };
        care.write()?;
        Ok(care)
    }

    /// Notes an exchange, which may leave pages at a scratch region or elsewhere, and lets the guest own `nr_pages` more than
    /// it may.
    pub(crate) fn begin(&mut self, scratch_region: Option<Gfn>, nr_pages: u64) -> Result<(), Error> {
        self.record.repair = Some(Repair { swapping: None, scratch_region });
        let info = if nr_pages > 0 { self.host.xen.domain_info(self.guest)? } else { None };
        self.record.room = info
            .map(|info| Room { own_kib: info.max_pages * 4, raised_kib: (info.max_pages + nr_pages) * 4 });
        self.write()?;
        if let Some(room) = self.record.room {
            self.host.xen.set_max_mem(self.guest, room.raised_kib)?;
        }
        Ok(())
    }

    /// Ends the mark of the frame, if it has one; gives what became of it.
    pub(crate) fn end_mark(&mut self, marks: &Marks<'_>) -> Result<Option<Ended>, Error> {
        let Some(mfn) = self.record.mark else { return Ok(None) };
        let ended = marks.end(mfn, self.guest)?;
        self.record.mark = None;
        self.write().map(|()| Some(ended))
    }

    /// The exchange is over: takes mark and room back.
    pub(crate) fn end(&mut self, marks: &Marks<'_>) -> Result<(), Error> {
        self.end_mark(marks)?;
        self.end_room()?;
        self.record.repair = None;
        self.write()
    }

    /// Has the record outlive this stubctl: there was no stub to put the guest right, and the next stubctl has to.
    pub(crate) fn keep(&mut self) {
        self.is_kept = true;
    }

    /// What a new stub has to put right now if the one at work is gone.
    pub(crate) fn repair(&self) -> Repair {
        self.record.repair.unwrap_or(Repair { swapping: None, scratch_region: None })
    }

    /// Holds the guest and its device model still, for a swap of this frame that may take a superpage from the guest for a
    /// while. The frame is marked at the last moment: by `mark`, which says why not.
    ///
    /// # Errors
    /// It cannot be held. What was stopped by then goes on, or stays on record.
    pub(crate) fn hold(
        &mut self,
        swapping: Option<Swapping>,
        mfn: Mfn,
        mark: impl FnOnce() -> Result<Option<Refused>, Error>,
    ) -> Result<Hold<'_, 'a>, Error> {
        let (host, guest) = (self.host, self.guest);
        let device_model = match self.device_model()? {
            Ok(device_model) => device_model,
            Err(refusal) => return Ok(Err(Refused::new(refusal.name(), refusal.to_string()))),
        };
        self.record.stands = true;
        self.record.device_model_stopped = device_model.is_some();
        self.record.mark = Some(mfn);
        if let Some(repair) = &mut self.record.repair {
            repair.swapping = swapping;
        }
        self.write()?;
        let mut standstill =
            Standstill { care: self, device_model, stopped: Instant::now(), paused: None, is_over: false };
        if let Some(device_model) = &mut standstill.device_model {
            device_model.stop()?;
        }
        if let Some(refused) = mark()? {
            standstill.end()?;
            return Ok(Err(refused));
        }
        standstill.paused = Some(Instant::now());
        if let Err(error) = host.xen.pause(guest) {
            standstill.paused = None;
            return Err(error.into());
        }
        Ok(Ok(standstill))
    }

    /// The guest's device model, if it has one, and why the guest is not to be held. Notes whether it is paused.
    fn device_model(&mut self) -> Result<Result<Option<Qmp<'a>>, Refusal>, Error> {
        let connected = Qmp::connect(&self.host.interrupt, Qmp::socket(self.guest));
        let mut device_model = match connected {
            Err(error @ QmpError::Dead(_)) => return Ok(Err(Refusal::DeadDeviceModel(error.to_string()))),
            Err(error @ QmpError::Busy(..)) => return Ok(Err(Refusal::BusyDeviceModel(error.to_string()))),
            connected => connected?,
        };
        let state = device_model.as_mut().map(Qmp::state).transpose()?;
        let info = self.host.xen.domain_info(self.guest)?;
        self.record.was_paused = info.as_ref().is_some_and(|info| info.paused);
        if info.is_some_and(|info| info.shutdown) {
            return Ok(Err(Refusal::BeingSaved));
        }
        let is_stopped = state.as_ref().is_some_and(|state| self.record.was_paused || state != "running");
        if is_stopped && toolstack::is_saving(self.guest) {
            return Ok(Err(Refusal::BeingSaved));
        }
        Ok(match state {
            Some(_) if self.record.was_paused => Err(Refusal::Paused(self.guest)),
            Some(state) if state != "running" => Err(Refusal::Stopped(self.guest)),
            _ => Ok(device_model),
        })
    }

    fn end_room(&mut self) -> Result<(), Error> {
        if let Some(room) = self.record.room {
            room.take_back(self.host, self.guest)?;
            self.record.room = None;
        }
        Ok(())
    }

    fn write(&self) -> Result<(), Error> {
        self.record.write(self.host, self.guest)
    }
}

impl Drop for Care<'_> {
    fn drop(&mut self) {
        let unmarked = match self.record.mark {
            Some(_) => Marks::new(self.host, false).and_then(|marks| self.end_mark(&marks)).map(drop),
            None => Ok(()),
        };
        let cleared = if self.is_kept {
            // It would only fail as we have.
            self.guardian.dismiss();
            // A guest that stands may need its room to be whole again.
            if self.record.stands { Ok(()) } else { self.end_room() }.and_then(|()| self.write())
        } else if self.record.is_owed() {
            // What we could not do now the guardian tries until it is done.
            self.guardian.outlive();
            self.end_room().and_then(|()| self.write())
        } else {
            // A mark that stays is for the guardian to take back.
            self.end_room().and(unmarked).and_then(|()| Record::remove(self.host, self.guest))
        };
        if let Err(error) = cleared {
            log::warn!("{error}");
        }
    }
}

/// What came of [`Care::hold`].
pub(crate) type Hold<'c, 'a> = Result<Standstill<'c, 'a>, Refused>;

/// Why a guest is not held still. All but a dead device model may go away by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Somebody saves it, or has begun to.
    BeingSaved,
    /// Somebody has paused it, and its device model would never let go of an old frame.
    Paused(Domid),
    /// Somebody has stopped its device model, or an error of its disk has.
    Stopped(Domid),
    /// Its device model does not talk to us; how that looks.
    BusyDeviceModel(String),
    /// Its device model is gone; how that looks.
    DeadDeviceModel(String),
}

impl Refusal {
    /// The name in reports.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::BeingSaved => "being-saved",
            Self::Paused(_) => "paused",
            Self::Stopped(_) => "device-model-stopped",
            Self::BusyDeviceModel(_) => "device-model-busy",
            Self::DeadDeviceModel(_) => "device-model-dead",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeingSaved => f.write_str(
                "the guest is being saved or migrated: a new frame would be missing from the stream; try again afterwards",
            ),
            Self::Paused(guest) => write!(
                f,
                "the guest is paused, and its device model lets go of an old frame only when the guest runs: unpause it (xl \
                 unpause {}), or try again when it runs",
                guest.raw()
            ),
            Self::Stopped(guest) => write!(
                f,
                "the guest's device model was stopped by somebody else or by an error of a disk, and lets go of an old frame \
                 only when it runs: see xl qemu-monitor-command {} \"info status\", and try again when it runs",
                guest.raw()
            ),
            Self::BusyDeviceModel(text) | Self::DeadDeviceModel(text) => f.write_str(text),
        }
    }
}

/// How long a guest stood still.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stood {
    /// Its vCPUs.
    pub(crate) guest: Duration,
    /// From before its device model was stopped until after that went on; `None` without one.
    pub(crate) device_model: Option<Duration>,
}

/// The time in which a guest stands still; it ends with the value.
pub(crate) struct Standstill<'c, 'a> {
    care: &'c mut Care<'a>,
    device_model: Option<Qmp<'a>>,
    /// Before the device model was stopped.
    stopped: Instant,
    /// When the guest was paused, if it is.
    paused: Option<Instant>,
    /// Whether it has been decided how the guest goes on, or that it does not: nothing is left to do when this is dropped.
    is_over: bool,
}

impl Standstill<'_, '_> {
    /// Lets the guest run; gives how long it stood.
    ///
    /// # Errors
    /// It or its device model cannot be made to run: that stays on record, and is tried again by the guardian and by
    /// the next stubctl.
    pub(crate) fn end(mut self) -> Result<Stood, Error> {
        self.release()
    }

    /// Leaves the guest standing for good: it has lost memory and must not run on.
    ///
    /// # Errors
    /// The record still says that somebody is to let it run.
    pub(crate) fn leave(mut self) -> Result<(), Error> {
        self.is_over = true;
        let record = &mut self.care.record;
        (record.stands, record.device_model_stopped, record.repair) = (false, false, None);
        self.care.write()
    }

    /// Leaves the guest standing until somebody has put it right: it may have a hole.
    pub(crate) fn leave_to_be_repaired(mut self) {
        self.is_over = true;
        self.care.keep();
    }

    /// What a new stub has to put right if the one at work is gone.
    pub(crate) fn repair(&self) -> Repair {
        self.care.repair()
    }

    fn release(&mut self) -> Result<Stood, Error> {
        self.is_over = true;
        let Care { host, guest, record, .. } = &mut *self.care;
        let _undisturbed = host.interrupt.undisturbed();
        // Before the guest writes: from then on the copy that waits is old, and nobody may put it back.
        if let Some(repair) = &mut record.repair
            && repair.swapping.take().is_some()
        {
            record.write(host, *guest)?;
        }
        let mut stood = Stood::default();
        let mut goes_on = Ok(());
        if let Some(mut device_model) = self.device_model.take() {
            goes_on = record.device_model_goes_on(*guest, || device_model.go_on());
            stood.device_model = Some(self.stopped.elapsed());
        }
        // The guest runs all the same: its vCPUs need no device model to keep time.
        if let Some(paused) = self.paused.take() {
            host.xen.unpause(*guest)?;
            stood.guest = paused.elapsed();
        }
        record.stands = false;
        record.write(host, *guest)?;
        goes_on?;
        Ok(stood)
    }
}

impl Drop for Standstill<'_, '_> {
    fn drop(&mut self) {
        if !self.is_over
            && let Err(error) = self.release()
        {
            log::error!("{error}");
        }
    }
}

/// A process that puts a guest right when stubctl dies: its standard input ends then.
struct Guardian {
    child: Child,
    /// Whether it has something to do when this process lets go of the guest.
    outlives: bool,
}

impl Guardian {
    fn start(guest: Domid, parent: u32) -> Result<Self, Error> {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("/proc/self/exe");
        command.args(["guard", &guest.raw().to_string(), &parent.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        // A Ctrl-C is for stubctl alone.
        command.process_group(0);
        Ok(Self { child: command.spawn()?, outlives: false })
    }

    /// Ends it; it does nothing any more.
    fn dismiss(&mut self) {
        // It fails only when it has ended.
        let _ = self.child.kill();
    }

    /// Leaves it what this process could not do.
    fn outlive(&mut self) {
        self.outlives = true;
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // With nothing to do it ends at once; a zombie that is left is init's when this process ends.
        let nobody = Interrupt::deaf();
        let wait = Wait::new(&nobody, if self.outlives { Duration::ZERO } else { GUARDIAN }, LOOK);
        let ended = wait.until(|| Ok::<_, Error>(self.child.try_wait()?));
        if let Err(error) = ended {
            log::debug!("the guardian: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_own_name_and_says_what_to_do() {
        let guest = Domid::new(7);
        assert_eq!(Refusal::Paused(guest).name(), "paused");
        assert!(Refusal::Paused(guest).to_string().contains("xl unpause 7"));
        assert!(Refusal::Stopped(guest).to_string().contains("xl qemu-monitor-command 7"));
    }
}
