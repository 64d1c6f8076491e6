//! What of a guest is not as it should stay, and the one stubctl that has it in care.
//!
//! **Takes** a guest. **Gives** the record in its xenstore directory, and the lock without which nobody writes it.
//! **Never** frees the lock before its holder ends: a record that is found under the lock has been left by the dead.

use crate::byte_lock::{ByteLock, Kind};
use crate::error::Error;
use crate::host::{Host, home};
use crate::pair::PairError;
use crate::wait::Wait;
use control::exchange::Repair;
use control::nodes;
use serde_json::{Value, json};
use std::time::Duration;
use xen_abi::types::Domid;

/// How long another may take to be done.
const PATIENCE: Duration = Duration::from_secs(5);

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

/// What xenstore holds while something of a guest is not as it should stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The process that will put it right.
    pub(super) pid: u32,
    /// Whether the guest is being held still.
    pub(super) stands: bool,
    /// Whether somebody else had paused it before.
    pub(super) was_paused: bool,
    /// The guest's own `maxmem` in KiB, where it has been raised.
    pub(super) max_kib: Option<u64>,
    /// What a new stub has to put right if the one at work is gone.
    pub(super) repair: Option<Repair>,
}

impl Record {
    /// Nothing to put right yet.
    pub(super) fn new(pid: u32) -> Self {
        Self { pid, stands: false, was_paused: false, max_kib: None, repair: None }
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
        let Self { pid, stands, was_paused, max_kib, repair } = self;
        // A repair is numbers, which JSON can hold.
        let repair = serde_json::to_value(repair).unwrap_or(Value::Null);
        json!({ "pid": pid, "stands": stands, "was_paused": was_paused, "max_kib": max_kib, "repair": repair })
            .to_string()
    }

    fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let max_kib = value.get("max_kib")?;
        Some(Self {
            pid: value.get("pid")?.as_u64()?.try_into().ok()?,
            stands: value.get("stands")?.as_bool()?,
            was_paused: value.get("was_paused")?.as_bool()?,
            max_kib: if max_kib.is_null() { None } else { Some(max_kib.as_u64()?) },
            repair: serde_json::from_value(value.get("repair")?.clone()).ok()?,
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
    use xen_abi::types::{Gfn, Mfn};

    #[test]
    fn a_record_survives_its_text() {
        let waiting = Gfn::new(0xfe200);
        let swapping = Swapping { gfn: Gfn::new(700), mfn: Mfn::new(0x1234_5678), waiting };
        let repairs = [
            None,
            Some(Repair { swapping: None, scratch_region: None }),
            Some(Repair { swapping: Some(swapping), scratch_region: Some(waiting) }),
        ];
        for max_kib in [None, Some(262_144)] {
            for (stands, was_paused) in [(true, false), (false, true)] {
                for repair in repairs {
                    let record = Record { pid: 77, stands, was_paused, max_kib, repair };
                    assert_eq!(Record::parse(&record.text()), Some(record));
                }
            }
        }
    }

    #[test]
    fn what_is_no_record_is_not_taken_for_one() {
        for bad in ["", "nonsense", "77 stands -", "{}", "{\"pid\": 77}"] {
            assert_eq!(Record::parse(bad), None, "{bad}");
        }
    }
}
