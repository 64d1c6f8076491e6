//! What becomes of a guest whose exchange broke off: whoever is left puts it right.
//!
//! **Takes** a guest and its record. **Gives** the guest as it was before, or as the exchange was to leave it. **Never**
//! lets a guest run that may have a hole, and never forgets one that it could not put right.

use super::record::{Lock, Record};
use crate::commands::Guest;
use crate::conf::Conf;
use crate::control_channel::{ControlChannel, ControlError};
use crate::error::Error;
use crate::ffi::sys;
use crate::host::Host;
use crate::marks::Marks;
use crate::pair::{self, PairError, Stub};
use crate::qmp::{Qmp, QmpError};
use crate::wait::Wait;
use control::exchange::Repair;
use control::{FromStub, ToStub};
use std::io;
use std::time::Duration;
use xen_abi::types::Domid;

/// How long a stub may take for a step that was under way when it lost its stubctl.
const STEP: Duration = Duration::from_secs(20);

/// How often a guardian tries to have a device model go on.
const DEVICE_MODEL_PERIOD: Duration = Duration::from_secs(5);

/// Between two attempts to talk to a stub.
const RETRY: Duration = Duration::from_millis(100);

/// How often a guardian looks whether the lock is free.
const LOCK_PERIOD: Duration = Duration::from_millis(20);

/// `stubctl guard`: waits until the stubctl that started it is gone, then puts the guest right.
pub(crate) fn guard(host: &Host, guest: Domid, parent: u32) -> Result<(), Error> {
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    let is_left =
        || Record::read(host, guest).map(|record| record.is_some_and(|record| record.pid == parent));
    let _undisturbed = host.interrupt.undisturbed();
    let mut pause = LOCK_PERIOD;
    // Most often nothing is left, and then the lock would only be in another's way.
    while is_left()? {
        let put = match Lock::take_now(host, guest) {
            // The parent that is just dying: Linux may close its end of our input before the lock. Or somebody who puts the
            // guest right, and so makes an end of what is left.
            Err(Error::Pair(PairError::InCare(..))) => Ok(()),
            Err(error) => return Err(error),
            Ok(_lock) if is_left()? => put_right(host, guest),
            Ok(_) => return Ok(()),
        };
        match put {
            Ok(()) => {}
            // It hangs with what it stores on: nobody knows for how long.
            Err(error @ Error::Qmp(_)) if pause == LOCK_PERIOD => {
                log::error!("{error}");
                sys::let_standard_error_go()?;
                pause = DEVICE_MODEL_PERIOD;
            }
            Err(Error::Qmp(_)) => {}
            Err(error) => return Err(error),
        }
        host.interrupt.wait(&[], pause)?;
    }
    Ok(())
}

/// Puts right every guest that a dead stubctl has left. A frame that a stub took out of use by itself tells no more whose it
/// was, so that its guest would stand on when the same frame is named again.
pub(crate) fn put_all_right(host: &Host) {
    let domains = host.store.children("/local/domain").unwrap_or_default();
    for guest in domains.iter().filter_map(|name| name.raw().parse().ok()).map(Domid::new) {
        let is_left = Record::read(host, guest).is_ok_and(|record| record.is_some());
        let put = match is_left.then(|| Lock::take_now(host, guest)) {
            None | Some(Err(Error::Pair(PairError::InCare(..)))) => continue,
            Some(Err(error)) => Err(error),
            Some(Ok(_lock)) => put_right(host, guest),
        };
        if let Err(error) = put {
            log::error!("{guest}: {error}");
        }
    }
}

/// Puts right what a dead stubctl left of a guest, whose lock the caller has.
///
/// # Errors
/// It cannot be put right: the record stays, and a guest that may have a hole stands.
pub(super) fn put_right(host: &Host, guest: Domid) -> Result<(), Error> {
    let Some(mut record) = Record::read(host, guest)? else { return Ok(()) };
    let _undisturbed = host.interrupt.undisturbed();
    log::warn!("putting {guest} right: the stubctl {} that held it is gone", record.pid);
    let repaired = match record.repair {
        Some(repair) if !is_over(host, guest)? => repair_anew(host, guest, repair),
        _ => Ok(()),
    };
    if let Err(error) = &repaired
        && record.repair.is_some_and(|repair| repair.swapping.is_some())
    {
        let what = format!("{error}; {guest} stands still until a stub can put its memory right: {AGAIN}");
        end_mark(host, guest, &mut record)?;
        return Err(ControlError::Failed(what).into());
    }
    let goes_on = device_model_goes_on(host, guest, &mut record);
    if record.stands {
        unpause(host, guest, record.was_paused)?;
        record.stands = false;
    }
    let unmarked = end_mark(host, guest, &mut record);
    if let Some(room) = record.room.take() {
        room.take_back(host, guest)?;
    }
    if repaired.is_ok() {
        record.repair = None;
    }
    match repaired.and(goes_on).and(unmarked) {
        Ok(()) => Record::remove(host, guest),
        Err(error) => record.write(host, guest).and(Err(error)),
    }
}

/// Takes the mark back from a frame that is in use: the swap that needed it is over.
fn end_mark(host: &Host, guest: Domid, record: &mut Record) -> Result<(), Error> {
    let Some(mfn) = record.mark else { return Ok(()) };
    Marks::new(host, false)?.end(mfn, guest)?;
    record.mark = None;
    record.write(host, guest)
}

/// What an operator can do when no stub was to be had.
pub(crate) const AGAIN: &str =
    "free some memory of the host and do the same again (stubctl offline puts a guest right before all else)";

fn repair_anew(host: &Host, domid: Domid, repair: Repair) -> Result<(), Error> {
    let guest = Guest { domid, name: host.name_or_number(domid)? };
    let conf = guest.conf()?;
    // The stub ends again: who needs one starts it.
    rescue(host, &guest, &conf, repair).map(drop)
}

/// Waits until the guest's stub has ended its exchange: it looks at its channel only between two steps, and ends an exchange
/// when it has lost its client, so its greeting of another is proof. A stub that gives none is destroyed.
///
/// Gives whether there was a living stub to end it.
pub(crate) fn is_over(host: &Host, guest: Domid) -> Result<bool, Error> {
    let is_over = Wait::new(&host.interrupt, STEP, RETRY).until(|| {
        let Some(stub) = pair::find(host, guest)? else { return Ok(Some(false)) };
        match ControlChannel::open(host, stub, STEP, STEP) {
            // Whoever talks to it by now was greeted.
            Ok(_) | Err(ControlError::Busy(_)) => Ok(Some(true)),
            Err(error) => {
                log::debug!("{error}");
                Ok::<_, Error>(None)
            }
        }
    })?;
    if let Some(is_over) = is_over {
        return Ok(is_over);
    }
    if let Some(stub) = pair::find(host, guest)? {
        log::error!("the stub {stub} does not end its exchange: destroying it");
        pair::destroy(host, stub, guest);
    }
    Ok(false)
}

/// Starts a stub in the place of one that is gone and has it put the guest right.
///
/// # Errors
/// There is none to be had, or it failed.
pub(crate) fn rescue<'a>(
    host: &'a Host,
    guest: &Guest,
    conf: &Conf,
    repair: Repair,
) -> Result<Stub<'a>, Error> {
    let _undisturbed = host.interrupt.undisturbed();
    log::warn!("the stub of {} is gone: starting another to put the guest right", guest.name);
    pair::bury(host, guest.domid, conf.start_timeout)?;
    // Whatever the configuration says by now: the guest has to be put right.
    let conf = &Conf { disabled_in: None, ..conf.clone() };
    let stub = Stub::start(host, conf, guest.name.raw(), guest.domid)?;
    put_right_by(&mut stub.greet(conf)?, repair)?;
    Ok(stub)
}

/// Has the stub whose exchange is over look once more for what that has left: nobody heard how it ended.
///
/// # Errors
/// It failed, or somebody else talks to it.
pub(crate) fn repair_once_more(host: &Host, guest: Domid, conf: &Conf, repair: Repair) -> Result<(), Error> {
    let Some(stub) = pair::find(host, guest)? else { return Ok(()) };
    let timeout = conf.stall_timeout;
    put_right_by(&mut ControlChannel::open_paired(host, stub, guest, timeout, timeout)?, repair)
}

fn put_right_by(channel: &mut ControlChannel<'_>, repair: Repair) -> Result<(), Error> {
    channel.send(&ToStub::Repair(repair))?;
    let done = channel.wait("Done for Repair", |message| match message {
        FromStub::Done => Some(Ok(())),
        FromStub::NotExchanged { text, .. } => Some(Err(text.to_string())),
        _ => None,
    })?;
    Ok(done.map_err(ControlError::Failed)?)
}

fn device_model_goes_on(host: &Host, guest: Domid, record: &mut Record) -> Result<(), Error> {
    if !record.device_model_stopped {
        return Ok(());
    }
    let goes_on = || match Qmp::connect(&host.interrupt, Qmp::socket(guest)) {
        Ok(Some(mut device_model)) => device_model.go_on_if_stopped(),
        Ok(None) => Ok(()),
        // Nothing is left that could go on.
        Err(QmpError::Dead(_)) => Ok(()),
        Err(error) => Err(error),
    };
    Ok(record.device_model_goes_on(guest, goes_on)?)
}

fn unpause(host: &Host, guest: Domid, was_paused: bool) -> Result<(), Error> {
    if was_paused {
        log::warn!("{guest} was paused before by somebody else, and stays so: xl unpause {}", guest.raw());
    } else if host.xen.domain_info(guest)?.is_some_and(|info| info.paused) {
        host.xen.unpause(guest)?;
    }
    Ok(())
}
