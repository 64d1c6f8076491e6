//! `event_channel_op` (`xen/include/public/event_channel.h`).
#![allow(unsafe_code, reason = "hypercalls; their arguments live on the stack")]

use super::raw::{address_mut, call};
use crate::ledger::Hypercall;
use xen_abi::abi::*;
use xen_abi::errno::Errno;
use xen_abi::types::{Domid, Port};

/// Allocates a port of our own that `remote` may bind to.
pub fn alloc_unbound(remote: Domid) -> Result<Port, Errno> {
    let mut arg = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: remote.raw(), port: 0 };
    op(EVTCHNOP_alloc_unbound, &mut arg)?;
    Ok(Port::new(arg.port))
}

/// Binds a new local port to the unbound port `remote_port` of `remote`.
pub fn bind_interdomain(remote: Domid, remote_port: Port) -> Result<Port, Errno> {
    let mut arg =
        EvtchnBindInterdomain { remote_dom: remote.raw(), remote_port: remote_port.raw(), local_port: 0 };
    op(EVTCHNOP_bind_interdomain, &mut arg)?;
    Ok(Port::new(arg.local_port))
}

/// Sends an event to the other end of `port`.
pub fn send(port: Port) -> Result<(), Errno> {
    op(EVTCHNOP_send, &mut port.raw())
}

/// Closes `port`.
pub fn close(port: Port) -> Result<(), Errno> {
    op(EVTCHNOP_close, &mut port.raw())
}

fn op<T: Copy>(cmd: u64, arg: &mut T) -> Result<(), Errno> {
    let args = [cmd, address_mut(arg), 0, 0, 0];
    // SAFETY: every caller passes the structure that `cmd` takes, all of it integers; events are masked for life, so
    // no call leads to an upcall.
    unsafe { call(Hypercall::EventChannel, __HYPERVISOR_event_channel_op, args) }.map(drop)
}
