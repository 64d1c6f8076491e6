//! A guest held still for an exchange, and what sees to it that it never stays so.
//!
//! **Takes** a guest. **Gives** the time in which it stands still. **Never** leaves it standing, unless it may have a hole:
//! - a [`Standstill`] that is dropped lets the guest run;
//! - a process of its own, the [`Guardian`], does so when stubctl dies;
//! - a record in xenstore lets the next stubctl do so when both have died ([`rescue`]).
//!
//! One stubctl at a time has a guest in care ([`Lock`]).
//!
//! Order: stop the device model (which ends its DMA), pause the guest; afterwards the device model goes on first. The
//! guest's first vCPU to run tells it to drop what it has mapped of the old frame, and it hears that only while it runs:
//! a stopped one has its ioreq server disabled (QEMU's `xen_hvm_change_state_handler`).

mod record;
pub(crate) mod rescue;

use crate::error::Error;
use crate::host::Host;
use crate::qmp::Qmp;
use crate::saving;
use control::exchange::{Repair, Swapping};
pub(crate) use record::Lock;
use record::Record;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use xen_abi::types::{Domid, Gfn};

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
        self.record.max_kib = info.map(|info| info.max_pages * 4);
        self.write()?;
        if let Some(kib) = self.record.max_kib {
            self.host.xen.set_max_mem(self.guest, kib + nr_pages * 4)?;
        }
        Ok(())
    }

    /// The exchange is over: takes the room back.
    pub(crate) fn end(&mut self) -> Result<(), Error> {
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

    /// Holds the guest and its device model still, for a swap that may take a superpage from the guest for a while.
    ///
    /// `None`: somebody has begun to save it, and it runs.
    pub(crate) fn hold(&mut self, swapping: Option<Swapping>) -> Result<Option<Standstill<'_, 'a>>, Error> {
        let was_paused = self.host.xen.domain_info(self.guest)?.is_some_and(|info| info.paused);
        (self.record.stands, self.record.was_paused) = (true, was_paused);
        if let Some(repair) = &mut self.record.repair {
            repair.swapping = swapping;
        }
        self.write()?;
        let mut standstill =
            Standstill { care: self, device_model: None, stopped: Instant::now(), paused: None };
        standstill.device_model = Qmp::connect(Qmp::socket(standstill.care.guest))?;
        standstill.stopped = Instant::now();
        if let Some(device_model) = &mut standstill.device_model {
            device_model.execute("stop")?;
        }
        // As late as the guest's vCPUs still run: a helper that starts now has to reach Xen before it can miss anything.
        if saving::saver_of(standstill.care.guest).is_some() {
            standstill.end()?;
            return Ok(None);
        }
        standstill.paused = Some(Instant::now());
        if let Err(error) = standstill.care.host.xen.pause(standstill.care.guest) {
            standstill.paused = None;
            return Err(error.into());
        }
        Ok(Some(standstill))
    }

    fn end_room(&mut self) -> Result<(), Error> {
        if let Some(kib) = self.record.max_kib {
            self.host.xen.set_max_mem(self.guest, kib)?;
            self.record.max_kib = None;
        }
        Ok(())
    }

    fn write(&self) -> Result<(), Error> {
        self.record.write(self.host, self.guest)
    }
}

impl Drop for Care<'_> {
    fn drop(&mut self) {
        let cleared = if self.is_kept {
            // It would only fail as we have.
            self.guardian.dismiss();
            // A guest that stands may need its room to be whole again.
            if self.record.stands { Ok(()) } else { self.end_room() }.and_then(|()| self.write())
        } else {
            self.end_room().and_then(|()| Record::remove(self.host, self.guest))
        };
        if let Err(error) = cleared {
            log::warn!("{error}");
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
    device_model: Option<Qmp>,
    /// Before the device model was stopped.
    stopped: Instant,
    /// When the guest was paused, if it is.
    paused: Option<Instant>,
}

impl Standstill<'_, '_> {
    /// Lets the guest run; gives how long it stood.
    ///
    /// # Errors
    /// It cannot be made to run; the record stays, so that the next stubctl tries again.
    pub(crate) fn end(mut self) -> Result<Stood, Error> {
        self.release()
    }

    /// Leaves the guest standing for good: it has lost memory and must not run on.
    ///
    /// # Errors
    /// The record still says that somebody is to let it run.
    pub(crate) fn leave(mut self) -> Result<(), Error> {
        self.forget();
        self.care.record.stands = false;
        self.care.record.repair = None;
        self.care.write()
    }

    /// Leaves the guest standing until somebody has put it right: it may have a hole.
    pub(crate) fn leave_to_be_repaired(mut self) {
        self.forget();
        self.care.keep();
    }

    /// What a new stub has to put right if the one at work is gone.
    pub(crate) fn repair(&self) -> Repair {
        self.care.repair()
    }

    fn forget(&mut self) {
        self.paused = None;
        self.device_model = None;
    }

    fn release(&mut self) -> Result<Stood, Error> {
        // Before the guest writes: from then on the copy that waits is old, and nobody may put it back.
        if let Some(repair) = &mut self.care.record.repair
            && repair.swapping.take().is_some()
        {
            self.care.write()?;
        }
        let mut stood = Stood::default();
        let mut goes_on = Ok(());
        if let Some(mut device_model) = self.device_model.take() {
            goes_on = device_model.execute("cont");
            stood.device_model = Some(self.stopped.elapsed());
        }
        if let Some(paused) = self.paused.take() {
            self.care.host.xen.unpause(self.care.guest).inspect_err(|_| self.paused = Some(paused))?;
            stood.guest = paused.elapsed();
        }
        // The guest runs all the same; with the record as it is the next stubctl tries once more.
        goes_on?;
        if self.care.record.stands && !self.care.is_kept {
            self.care.record.stands = false;
            self.care.write()?;
        }
        Ok(stood)
    }
}

impl Drop for Standstill<'_, '_> {
    fn drop(&mut self) {
        if self.care.is_kept {
            return;
        }
        if let Err(error) = self.release() {
            log::error!("{error}: {} may stand still; do: xl unpause {0}", self.care.guest);
        }
    }
}

/// A process that puts a guest right when stubctl dies: its standard input ends then.
struct Guardian(Child);

impl Guardian {
    fn start(guest: Domid, parent: u32) -> Result<Self, Error> {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("/proc/self/exe");
        command.args(["guard", &guest.raw().to_string(), &parent.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        // A Ctrl-C is for stubctl alone.
        command.process_group(0);
        Ok(Self(command.spawn()?))
    }

    /// Ends it; it does nothing any more.
    fn dismiss(&mut self) {
        // It fails only when it has ended.
        let _ = self.0.kill();
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It ends by itself when its input does; who waits for nobody is no loss.
        let _ = self.0.wait();
    }
}
