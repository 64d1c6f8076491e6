//! What of a guest is not as it should stay, and the one stubctl that has it in care.
//!
//! **Takes** a guest. **Gives** the record in its xenstore directory, and the lock without which nobody writes it.
//! **Never** frees the lock before its holder ends: a record that is found under the lock has been left by the dead.

use crate::byte_lock::{ByteLock, Kind};
use crate::error::Error;
use crate::host::{Host, home};
use crate::pair::PairError;
use crate::qmp::QmpError;
use crate::wait::Wait;
use control::exchange::Repair;
use control::nodes;
use serde_json::{Value, json};
use std::time::Duration;
use xen_abi::types::{Domid, Mfn};

/// How long another may take to be done: a guardian that waits for a device model takes ten seconds at a time.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often to look whether he is.
const LOOK: Duration = Duration::from_millis(50);

/// The care of one guest, which one process has at a time.
pub(crate) struct Lock(#[expect(dead_code, reason = "dropping it is what frees the guest")] ByteLock);

impl Lock {
    /// Takes it, after waiting for who is about to be done: a guardian, most often.
    ///
    /// # Errors
    /// Another process has it: [`PairError::InCare`].
    pub(crate) fn take(host: &Host, guest: Domid) -> Result<Self, Error> {
        let mut last = None;
        let taken =
            Wait::new(&host.interrupt, PATIENCE, LOOK).until(|| match Self::take_now(host, guest) {
                Err(error @ Error::Pair(PairError::InCare(..))) => {
                    last = Some(error);
                    Ok(None)
                }
                taken => taken.map(Some),
            })?;
        taken.ok_or_else(|| last.unwrap_or_else(|| PairError::InCare(guest, None).into()))
    }

    /// Takes it, or fails at once.
    ///
    /// # Errors
    /// Another process has it: [`PairError::InCare`].
    pub(super) fn take_now(host: &Host, guest: Domid) -> Result<Self, Error> {
        match ByteLock::take_now(Kind::Care, guest.raw())? {
            Some(lock) => Ok(Self(lock)),
            None => {
                let pid = Record::read(host, guest).ok().flatten().map(|record| record.pid);
                Err(PairError::InCare(guest, pid).into())
            }
        }
    }
}

/// A `maxmem` that has been raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// The guest's own, in KiB.
    pub(super) own_kib: u64,
    /// What it was raised to, in KiB.
    pub(super) raised_kib: u64,
}

impl Room {
    /// What `maxmem` has to be set to when it is `now_kib`; `None`: it is another's by now, and stays.
    pub(super) fn back(self, now_kib: u64) -> Option<u64> {
        (now_kib == self.raised_kib).then_some(self.own_kib)
    }

    /// Takes the room back from a guest, unless somebody else has set its `maxmem` meanwhile.
    pub(super) fn take_back(self, host: &Host, guest: Domid) -> Result<(), Error> {
        let Some(info) = host.xen.domain_info(guest)? else { return Ok(()) };
        match self.back(info.max_pages * 4) {
            Some(kib) => Ok(host.xen.set_max_mem(guest, kib)?),
            None => {
                let (now, raised) = (info.max_pages * 4, self.raised_kib);
                log::warn!(
                    "{guest} may own {now} KiB, expected {raised}: somebody else has set that, and it stays"
                );
                Ok(())
            }
        }
    }
}

/// What xenstore holds while something of a guest is not as it should stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The process that will put it right.
    pub(super) pid: u32,
    /// Whether the guest's vCPUs are being held still.
    pub(super) stands: bool,
    /// Whether somebody else had paused it before.
    pub(super) was_paused: bool,
    /// Whether its device model was asked to stop and has not been seen to go on.
    pub(super) device_model_stopped: bool,
    /// Its `maxmem`, where that has been raised.
    pub(super) room: Option<Room>,
    /// What a new stub has to put right if the one at work is gone.
    pub(super) repair: Option<Repair>,
    /// The frame that is marked offline for the exchange, or is about to be.
    pub(super) mark: Option<Mfn>,
}

impl Record {
    /// Nothing to put right yet.
    pub(super) fn new(pid: u32) -> Self {
        let [stands, was_paused, device_model_stopped] = [false; 3];
        Self { pid, stands, was_paused, device_model_stopped, room: None, repair: None, mark: None }
    }

    /// Whether the guest or its device model does not run, and somebody has to see to it.
    pub(super) fn is_owed(&self) -> bool {
        self.stands || self.device_model_stopped
    }

    /// Has a device model that was stopped go on; where it is not seen to, that stays on record.
    ///
    /// # Errors
    /// What the device model did not do.
    pub(super) fn device_model_goes_on(
        &mut self,
        guest: Domid,
        go_on: impl FnOnce() -> Result<(), QmpError>,
    ) -> Result<(), QmpError> {
        go_on().map_err(|error| QmpError::Stopped(guest, Box::new(error)))?;
        self.device_model_stopped = false;
        Ok(())
    }

    /// Reads a guest's record, if it has one.
    ///
    /// # Errors
    /// What stands there is no record: [`PairError::BadRecord`].
    pub(super) fn read(host: &Host, guest: Domid) -> Result<Option<Self>, Error> {
        let Some(text) = host.store.read(&node(guest))? else { return Ok(None) };
        let record = Self::parse(text.raw());
        record.map(Some).ok_or_else(|| PairError::BadRecord(guest, node(guest), text).into())
    }

    /// Writes it down.
    pub(super) fn write(&self, host: &Host, guest: Domid) -> Result<(), Error> {
        Ok(host.store.write(&node(guest), &self.text())?)
    }

    /// Removes a guest's record.
    pub(super) fn remove(host: &Host, guest: Domid) -> Result<(), Error> {
        Ok(host.store.remove(&node(guest))?)
    }

    fn text(&self) -> String {
        let Self { pid, stands, was_paused, device_model_stopped, room, repair, mark } = self;
        // A repair is numbers, which JSON can hold.
        let repair = serde_json::to_value(repair).unwrap_or(Value::Null);
        json!({
            "pid": pid,
            "stands": stands,
            "was_paused": was_paused,
            "device_model_stopped": device_model_stopped,
            "own_kib": room.map(|room| room.own_kib),
            "raised_kib": room.map(|room| room.raised_kib),
            "repair": repair,
            "mark": mark.map(Mfn::raw),
        })
        .to_string()
    }

    fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let flag = |name| value.get(name)?.as_bool();
        let room = match (value.get("own_kib")?, value.get("raised_kib")?) {
            (Value::Null, Value::Null) => None,
            (own, raised) => Some(Room { own_kib: own.as_u64()?, raised_kib: raised.as_u64()? }),
        };
        let mark = match value.get("mark")? {
            Value::Null => None,
            mark => Some(Mfn::new(mark.as_u64()?)),
        };
        Some(Self {
            pid: value.get("pid")?.as_u64()?.try_into().ok()?,
            stands: flag("stands")?,
            was_paused: flag("was_paused")?,
            device_model_stopped: flag("device_model_stopped")?,
            room,
            repair: serde_json::from_value(value.get("repair")?.clone()).ok()?,
            mark,
        })
    }
}

fn node(guest: Domid) -> String {
    home(guest, nodes::EXCHANGE_OF_TARGET)
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::exchange::Swapping;
    use xen_abi::types::Gfn;

    #[test]
    fn a_record_survives_its_text() {
        let waiting = Gfn::new(0xfe200);
        let swapping = Swapping { gfn: Gfn::new(700), mfn: Mfn::new(0x1234_5678), waiting };
        let repairs = [
            None,
            Some(Repair { swapping: None, scratch_region: None }),
            Some(Repair { swapping: Some(swapping), scratch_region: Some(waiting) }),
        ];
        let rooms = [
            (None, Some(Mfn::new(0x1234_5678))),
            (Some(Room { own_kib: 262_144, raised_kib: 266_240 }), None),
        ];
        for (room, mark) in rooms {
            for nr in 0..3 {
                let [stands, was_paused, device_model_stopped] = std::array::from_fn(|flag| flag == nr);
                for repair in repairs {
                    let record =
                        Record { pid: 77, stands, was_paused, device_model_stopped, room, repair, mark };
                    assert_eq!(Record::parse(&record.text()), Some(record));
                }
            }
        }
    }

    #[test]
    fn a_device_model_that_did_not_go_on_stays_on_record() {
        let mut record = Record { device_model_stopped: true, ..Record::new(77) };
        let late = || Err(QmpError::Silent("cont", PATIENCE));
        let error = record.device_model_goes_on(Domid::new(7), late).unwrap_err().to_string();
        assert!(record.is_owed());
        assert!(error.starts_with("the device model did not answer \"cont\" within 15 s; "), "{error}");
        assert!(error.ends_with(": xl qemu-monitor-command 7 cont"), "{error}");
        record.device_model_goes_on(Domid::new(7), || Ok(())).unwrap();
        assert!(!record.is_owed());
    }

    #[test]
    fn a_maxmem_that_somebody_else_has_set_meanwhile_is_left() {
        let room = Room { own_kib: 262_144, raised_kib: 266_240 };
        assert_eq!(room.back(266_240), Some(262_144));
        assert_eq!(room.back(205_824), None);
        assert_eq!(room.back(262_144), None);
    }

    #[test]
    fn what_is_no_record_is_not_taken_for_one() {
        for bad in ["", "nonsense", "77 stands -", "{}", "{\"pid\": 77}"] {
            assert_eq!(Record::parse(bad), None, "{bad}");
        }
    }
}
