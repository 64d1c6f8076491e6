//! What becomes of a guest whose send broke off because stubctl died, or libxl, or both.
//!
//! **Takes** a guest. **Gives** it without a log of its writes, and running if nobody else lets it run. **Never** resumes a
//! guest whose libxl is there: libxl does that itself, in its own order.
//!
//! Stock xl leaves the log on when its helper is killed, and a suspended guest where it is when both are (a Ctrl-C).

use crate::error::Error;
use crate::host::Host;
use crate::qmp::Qmp;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use xen_abi::types::Domid;

/// How often the guardian looks whether libxl has resumed the guest.
const PERIOD: Duration = Duration::from_millis(200);

/// A process of its own that puts the guest right when this one dies.
pub(super) struct Guardian(Child);

impl Guardian {
    /// Starts it; its standard input ends with this process.
    pub(super) fn start(guest: Domid) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        let libxl = std::os::unix::process::parent_id();
        command.args(["guard-send", &guest.raw().to_string(), &libxl.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        // A Ctrl-C is for stubctl alone.
        command.process_group(0);
        command.spawn().map(Self)
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // Both fail only when it has ended: who is left has put the guest right, or it needs nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `stubctl guard-send`: waits until the stubctl that started it is gone, then puts the guest right.
pub(crate) fn guard(host: &Host, guest: Domid, libxl: u32) -> Result<(), Error> {
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    let _undisturbed = host.interrupt.undisturbed();
    if host.xen.domain_info(guest)?.is_none_or(|info| info.dying) {
        return Ok(());
    }
    log::warn!("putting {guest} right: the stubctl that sent it is gone");
    host.xen.end_log(guest)?;
    let quiet = end_qemu_log(host, guest);
    while Path::new(&format!("/proc/{libxl}")).exists() {
        if !is_suspended(host, guest)? {
            return quiet;
        }
        host.interrupt.wait(&[], PERIOD)?;
    }
    resume(host, guest)?;
    quiet
}

/// Lets a suspended guest run whose libxl is gone.
pub(crate) fn resume(host: &Host, guest: Domid) -> Result<(), Error> {
    if !is_suspended(host, guest)? {
        return Ok(());
    }
    log::warn!("{guest} runs on: nobody is left who would resume it");
    if let Some(mut device_model) = Qmp::connect(&host.interrupt, Qmp::socket(guest))? {
        device_model.go_on()?;
    }
    host.xen.resume(guest)?;
    Ok(host.store.resumed(guest)?)
}

/// Has the device model stop reporting what it writes to the guest, if there is one.
pub(super) fn end_qemu_log(host: &Host, guest: Domid) -> Result<(), Error> {
    match Qmp::connect(&host.interrupt, Qmp::socket(guest))? {
        Some(mut device_model) => Ok(device_model.end_dirty_log()?),
        None => Ok(()),
    }
}

fn is_suspended(host: &Host, guest: Domid) -> Result<bool, Error> {
    Ok(host.xen.domain_info(guest)?.is_some_and(|info| info.suspended && !info.dying))
}
