//! `sched_op` (`xen/include/public/sched.h`).
#![allow(unsafe_code, reason = "hypercalls; their arguments live on the stack")]

use super::raw::{address, call};
use crate::ledger::Hypercall;
use xen_abi::abi::*;
use xen_abi::errno::Errno;
use xen_abi::types::Port;

/// Sleeps until one of `ports` is pending or system time reaches `timeout_ns`; 0 means no timeout.
///
/// Returns at once if a port is pending already. At most 128 ports ([`SCHEDOP_POLL_MAX_PORTS`]).
pub fn poll(ports: &[Port], timeout_ns: u64) -> Result<(), Errno> {
    let nr_ports = u32::try_from(ports.len()).map_err(|_| Errno::EINVAL)?;
    op(SCHEDOP_poll, &SchedPoll { ports: ports.as_ptr() as u64, nr_ports, timeout: timeout_ns })
}

/// Lets other vCPUs run (`SCHEDOP_yield`).
pub fn yield_() {
    // An error would mean that there was nobody to yield to; the caller goes on either way.
    let _ = op(SCHEDOP_yield, &0u64);
}

/// Why a domain shuts down (`SHUTDOWN_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// It is done.
    Poweroff = SHUTDOWN_poweroff,
    /// It has failed; the toolstack may keep it for a look.
    Crash = SHUTDOWN_crash,
}

/// Ends this domain.
pub fn shutdown(reason: Reason) -> ! {
    loop {
        // Xen does not return from this; were it to, asking again is all there is to do.
        let _ = op(SCHEDOP_shutdown, &(reason as u32));
    }
}

fn op<T>(cmd: u64, arg: &T) -> Result<(), Errno> {
    let args = [cmd, address(arg), 0, 0, 0];
    // SAFETY: Xen only reads `arg`, which is the structure that `cmd` takes, and the ports it names.
    unsafe { call(Hypercall::Sched, __HYPERVISOR_sched_op, args) }.map(drop)
}
