//! A PV guest, suspended for a while.
//!
//! **Takes** a running guest. **Gives** the time in which it stands still, having suspended itself: none of its vCPUs is in
//! the middle of anything, so none remembers a machine frame. **Never** leaves it standing, unless told to.
//!
//! As libxl does it (`libxl_dom_suspend.c`), by the node `control/shutdown`; and as the stock page exchange does it
//! (`xen-hptool.c`), by an event channel that Xen signals when the guest has suspended, instead of telling xenstored of a
//! shutdown. That matters: `xl` ends its watch over a guest that it sees suspended, and would not restart it any more.
//! The stock tool needs a port that the guest offers, which no upstream Linux does; dom0 can make one for the guest. It
//! is kept in a node of dom0's in the guest's home and serves again, since a port once made stays the guest's.

use crate::error::Error;
use crate::ffi::event::EventChannel;
use crate::ffi::sys::Polled;
use crate::ffi::xenctrl::XenError;
use crate::host::{Host, home};
use control::Untrusted;
use std::fmt;
use std::time::{Duration, Instant};
use xen_abi::types::{Domid, Port};

/// How long a guest may take to suspend.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often to look, whether or not an event came.
const LOOK: Duration = Duration::from_millis(500);

/// Where the port is noted.
const PORT_NODE: &str = "stubctl-suspend-port";

/// Why a guest was not suspended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SuspendError {
    /// It is gone.
    Gone(Domid),
    /// It is no PV domain.
    NotPv(Domid),
    /// It has shut down, or is suspended by somebody else.
    Shutdown(Domid),
    /// Somebody has paused it.
    Paused(Domid),
    /// Somebody else has asked it to shut down or to suspend.
    Busy(Domid, Untrusted<String>),
    /// It did not suspend in time.
    Slow(Domid),
}

impl SuspendError {
    /// Names the reason in a word, for scripts.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Gone(_) | Self::NotPv(_) => "changing-hands",
            Self::Shutdown(_) | Self::Paused(_) | Self::Busy(..) => "not-suspended",
            // Perhaps it cannot: asking it again and again would be in vain.
            Self::Slow(_) => "does-not-suspend",
        }
    }
}

impl fmt::Display for SuspendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(domid) => write!(f, "{domid} is gone"),
            Self::NotPv(domid) => write!(f, "{domid} is no PV domain"),
            Self::Shutdown(domid) => write!(f, "{domid} has shut down or is being saved"),
            Self::Paused(domid) => {
                write!(f, "{domid} is paused, so it cannot suspend itself: unpause it first")
            }
            Self::Busy(domid, what) => write!(f, "{domid} has been asked to do this by someone else: {what}"),
            Self::Slow(domid) => {
                write!(
                    f,
                    "{domid} did not suspend within {} s, as if its kernel could not; the request was taken back",
                    PATIENCE.as_secs()
                )
            }
        }
    }
}

impl std::error::Error for SuspendError {}

/// A guest that has suspended itself and is paused; it goes on when this is dropped.
pub(crate) struct Suspended<'a> {
    host: &'a Host,
    domid: Domid,
    _request: Request<'a>,
    /// When it was seen to stand.
    since: Instant,
}

impl<'a> Suspended<'a> {
    /// Asks a guest to suspend itself, waits until it has, and pauses it.
    pub(crate) fn new(host: &'a Host, domid: Domid) -> Result<Self, Error> {
        check(host, domid)?;
        let request = Request::new(host, domid)?;
        request.wait()?;
        let suspended = Self { host, domid, _request: request, since: Instant::now() };
        host.xen.pause(domid)?;
        Ok(suspended)
    }

    /// Lets the guest go on; gives how long it stood.
    pub(crate) fn end(self) -> Duration {
        let since = self.since;
        drop(self);
        since.elapsed()
    }

    /// Leaves the guest standing: it must not run on.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }

    fn go_on(&self) -> Result<(), Error> {
        self.host.xen.resume(self.domid)?;
        self.host.xen.unpause(self.domid)?;
        self.host.store.resumed(self.domid)?;
        Ok(())
    }
}

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.go_on() {
            log::error!("{} does not go on: {error}", self.domid);
        }
    }
}

/// Refuses a guest that cannot suspend itself now.
fn check(host: &Host, domid: Domid) -> Result<(), Error> {
    let info = host.xen.domain_info(domid)?.ok_or(SuspendError::Gone(domid))?;
    if info.hvm {
        return Err(SuspendError::NotPv(domid).into());
    }
    if info.shutdown || info.dying {
        return Err(SuspendError::Shutdown(domid).into());
    }
    if info.paused {
        return Err(SuspendError::Paused(domid).into());
    }
    match host.store.read(&home(domid, "control/shutdown"))? {
        Some(what) if !what.raw().is_empty() => Err(SuspendError::Busy(domid, what).into()),
        _ => Ok(()),
    }
}

/// A request to suspend, and the subscription to its fulfilment. Both end with the value.
struct Request<'a> {
    host: &'a Host,
    domid: Domid,
    channel: EventChannel,
}

impl<'a> Request<'a> {
    fn new(host: &'a Host, domid: Domid) -> Result<Self, Error> {
        let (channel, port) = bind(host, domid)?;
        host.xen.subscribe_for_suspend(domid, Some(port))?;
        let request = Self { host, domid, channel };
        host.store.write(&home(domid, "control/shutdown"), "suspend")?;
        Ok(request)
    }

    /// Waits until the guest has suspended. When that takes too long, or somebody wants an end, takes the request back; a
    /// guest that has taken it up already is waited for all the same, or it would stay suspended.
    fn wait(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut stop = None;
        while !self.is_fulfilled()? {
            stop = stop.or(self.wait_for_event().err());
            let is_late = Instant::now() > deadline;
            if (stop.is_some() || is_late) && self.take_back()? || Instant::now() > deadline + PATIENCE {
                return Err(stop.unwrap_or_else(|| SuspendError::Slow(self.domid).into()));
            }
        }
        Ok(())
    }

    fn is_fulfilled(&self) -> Result<bool, Error> {
        let info = self.host.xen.domain_info(self.domid)?.ok_or(SuspendError::Gone(self.domid))?;
        if info.dying || info.shutdown && !info.suspended {
            return Err(SuspendError::Shutdown(self.domid).into());
        }
        Ok(info.suspended)
    }

    fn wait_for_event(&self) -> Result<(), Error> {
        let event = Polled::readable(self.channel.fd());
        self.host.interrupt.wait(&[&event], LOOK)?;
        if event.is_ready() {
            self.channel.acknowledge();
        }
        Ok(())
    }

    /// Takes the request back, unless the guest has taken it up: it empties the node then. Tells whether that is done.
    fn take_back(&self) -> Result<bool, Error> {
        let node = home(self.domid, "control/shutdown");
        if self.host.store.read(&node)?.is_none_or(|text| text.raw() != "suspend") {
            std::thread::sleep(LOOK);
            return Ok(false);
        }
        self.host.store.write(&node, "")?;
        // It may have read the node just before.
        std::thread::sleep(LOOK);
        Ok(!self.is_fulfilled()?)
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.host.xen.subscribe_for_suspend(self.domid, None) {
            log::warn!("{error}");
        }
    }
}

/// Binds to the port that was made for this guest before, or to a new one.
fn bind(host: &Host, domid: Domid) -> Result<(EventChannel, Port), Error> {
    let node = home(domid, PORT_NODE);
    let noted = host.store.read_number(&node)?.map(Port::new);
    if let Some((channel, port)) = noted.and_then(|port| Some((EventChannel::bind(domid, port).ok()?, port)))
    {
        return Ok((channel, port));
    }
    let port = host.xen.alloc_unbound(domid)?;
    let failed = |errno| XenError { call: "xenevtchn_bind_interdomain", domid: Some(domid), errno };
    let channel = EventChannel::bind(domid, port).map_err(failed)?;
    host.store.write(&node, &port.raw().to_string())?;
    Ok((channel, port))
}
