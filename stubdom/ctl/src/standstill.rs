//! A guest held still for an exchange, and what sees to it that it never stays so.
//!
//! **Takes** a guest. **Gives** the time in which it stands still. **Never** leaves it standing:
//! - a [`Standstill`] that is dropped lets the guest run;
//! - a process of its own, the [`Guardian`], does so when stubctl dies;
//! - a record in xenstore lets the next stubctl do so when both have died ([`repair`]).
//!
//! Order: stop the device model (which ends its DMA), pause the guest; afterwards the device model goes on first. The
//! guest's first vCPU to run tells it to drop what it has mapped of the old frame, and it hears that only while it runs:
//! a stopped one has its ioreq server disabled (QEMU's `xen_hvm_change_state_handler`).

use crate::error::Error;
use crate::host::{Host, home};
use crate::pair::{self, PairError};
use crate::qmp::Qmp;
use control::nodes;
use std::io;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use xen_front::types::Domid;

/// How long a stub may take for the swap that was under way when stubctl died.
const SWAP: Duration = Duration::from_secs(20);

/// What xenstore holds while something of a guest is not as it should stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    /// The process that will put it right.
    pid: u32,
    /// Whether the guest is being held still.
    stands: bool,
    /// The guest's own `maxmem` in KiB, where it has been raised.
    max_kib: Option<u64>,
}

impl Record {
    fn text(&self) -> String {
        let max_kib = self.max_kib.map_or_else(|| "-".to_owned(), |kib| kib.to_string());
        format!("{} {} {max_kib}", self.pid, if self.stands { "stands" } else { "runs" })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let pid = words.next()?.parse().ok()?;
        let stands = words.next()? == "stands";
        Some(Self { pid, stands, max_kib: words.next()?.parse().ok() })
    }
}

/// Holds a guest's standstills and its raised `maxmem` together.
pub(crate) struct Care<'a> {
    host: &'a Host,
    guest: Domid,
    record: Record,
    /// Lives as long as we do.
    _guardian: Guardian,
}

impl<'a> Care<'a> {
    /// Takes a guest into care, after putting right what an earlier stubctl left.
    pub(crate) fn take(host: &'a Host, guest: Domid) -> Result<Self, Error> {
        if let Some(pid) = repair(host, guest)? {
            return Err(PairError::InCare(guest, pid).into());
        }
        let guardian = Guardian::start(guest)?;
        let record = Record { pid: std::process::id(), stands: false, max_kib: None };
        let care = Self { host, guest, record, _guardian: guardian };
        care.write()?;
        Ok(care)
    }

    /// Lets the guest own `nr_pages` more than it may.
    pub(crate) fn make_room(&mut self, nr_pages: u64) -> Result<(), Error> {
        let Some(info) = self.host.xen.domain_info(self.guest)? else { return Ok(()) };
        let kib = info.max_pages * 4;
        self.record.max_kib = Some(kib);
        self.write()?;
        self.host.xen.set_max_mem(self.guest, kib + nr_pages * 4)?;
        Ok(())
    }

    /// Takes the room back.
    pub(crate) fn end_room(&mut self) -> Result<(), Error> {
        if let Some(kib) = self.record.max_kib {
            self.host.xen.set_max_mem(self.guest, kib)?;
            self.record.max_kib = None;
            self.write()?;
        }
        Ok(())
    }

    /// Holds the guest and its device model still.
    pub(crate) fn hold(&mut self) -> Result<Standstill<'_, 'a>, Error> {
        self.record.stands = true;
        self.write()?;
        let mut standstill =
            Standstill { care: self, device_model: None, began: Instant::now(), paused: false };
        standstill.device_model = Qmp::connect(Qmp::socket(standstill.care.guest))?;
        if let Some(device_model) = &mut standstill.device_model {
            device_model.execute("stop")?;
        }
        standstill.began = Instant::now();
        standstill.care.host.xen.pause(standstill.care.guest)?;
        standstill.paused = true;
        Ok(standstill)
    }

    fn write(&self) -> Result<(), Error> {
        self.host.store.write(&node(self.guest), &self.record.text())?;
        Ok(())
    }
}

impl Drop for Care<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end_room().and_then(|()| Ok(self.host.store.remove(&node(self.guest))?)) {
            log::warn!("{error}");
        }
    }
}

/// The time in which a guest stands still; it ends with the value.
pub(crate) struct Standstill<'c, 'a> {
    care: &'c mut Care<'a>,
    device_model: Option<Qmp>,
    began: Instant,
    paused: bool,
}

impl Standstill<'_, '_> {
    /// Lets the guest run; gives how long its vCPUs stood.
    ///
    /// # Errors
    /// It cannot be made to run; the record stays, so that the next stubctl tries again.
    pub(crate) fn end(mut self) -> Result<Duration, Error> {
        self.release()
    }

    /// Leaves the guest standing: it has lost memory and must not run on.
    pub(crate) fn leave(mut self) {
        self.paused = false;
        self.device_model = None;
        self.care.record.stands = false;
    }

    fn release(&mut self) -> Result<Duration, Error> {
        if let Some(device_model) = &mut self.device_model {
            device_model.execute("cont")?;
        }
        self.device_model = None;
        if self.paused {
            self.care.host.xen.unpause(self.care.guest)?;
            self.paused = false;
        }
        let stood = self.began.elapsed();
        if self.care.record.stands {
            self.care.record.stands = false;
            self.care.write()?;
        }
        Ok(stood)
    }
}

impl Drop for Standstill<'_, '_> {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            log::error!("{error}: {} may stand still; do: xl unpause {0}", self.care.guest);
        }
    }
}

/// A process that puts a guest right when stubctl dies: its standard input ends then.
struct Guardian(Child);

impl Guardian {
    fn start(guest: Domid) -> Result<Self, Error> {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("/proc/self/exe");
        command.args(["guard", &guest.raw().to_string()]).stdin(Stdio::piped()).stdout(Stdio::null());
        // A Ctrl-C is for stubctl alone.
        command.process_group(0);
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It ends by itself when its input does; who waits for nobody is no loss.
        let _ = self.0.wait();
    }
}

/// `stubctl guard`: waits until the stubctl that started it is gone, then puts the guest right.
pub(crate) fn guard(host: &Host, guest: Domid) -> Result<(), Error> {
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    repair_of(host, guest, |_| true).map(drop)
}

/// Puts right what a dead stubctl left of a guest; gives the process that has it in care, if that lives.
pub(crate) fn repair(host: &Host, guest: Domid) -> Result<Option<u32>, Error> {
    repair_of(host, guest, |pid| !is_alive(pid))
}

fn repair_of(host: &Host, guest: Domid, is_orphan: impl Fn(u32) -> bool) -> Result<Option<u32>, Error> {
    let text = host.store.read(&node(guest))?;
    let Some(record) = text.as_deref().and_then(Record::parse) else { return Ok(None) };
    if !is_orphan(record.pid) {
        return Ok(Some(record.pid));
    }
    log::warn!("putting {guest} right: the stubctl {} that held it is gone", record.pid);
    if record.stands {
        let_swap_end(host, guest)?;
        resume(host, guest)?;
    }
    if let Some(kib) = record.max_kib {
        host.xen.set_max_mem(guest, kib)?;
    }
    host.store.remove(&node(guest))?;
    Ok(None)
}

/// Waits until the guest's stub is in no swap: it looks at its channel only between two steps, so its greeting is proof.
fn let_swap_end(host: &Host, guest: Domid) -> Result<(), Error> {
    let Some(stub) = pair::find(host, guest)? else { return Ok(()) };
    let deadline = Instant::now() + SWAP;
    while Instant::now() < deadline {
        match crate::control_channel::ControlChannel::open(host, stub, SWAP) {
            Ok(_) => return Ok(()),
            Err(error) => log::debug!("{error}"),
        }
        if pair::find(host, guest)?.is_none() {
            break;
        }
        host.interrupt.wait(&[], Duration::from_millis(100))?;
    }
    Ok(())
}

fn resume(host: &Host, guest: Domid) -> Result<(), Error> {
    if let Some(mut device_model) = Qmp::connect(Qmp::socket(guest))? {
        device_model.execute("cont")?;
    }
    if host.xen.domain_info(guest)?.is_some_and(|info| info.paused) {
        host.xen.unpause(guest)?;
    }
    Ok(())
}

fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "stubctl")
}

fn node(guest: Domid) -> String {
    home(guest, nodes::EXCHANGE_OF_TARGET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_text() {
        for max_kib in [None, Some(262_144)] {
            for stands in [true, false] {
                let record = Record { pid: 77, stands, max_kib };
                assert_eq!(Record::parse(&record.text()), Some(record));
            }
        }
        assert_eq!(Record::parse("nonsense"), None);
    }
}
