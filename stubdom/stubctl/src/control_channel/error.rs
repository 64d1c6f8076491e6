//! What ends a conversation with a stub.

use crate::byte_lock::LockError;
use crate::ffi::vchan::{ConnectError, Nonsense};
use crate::ffi::xenctrl::{DomainInfo, XenError};
use crate::ffi::xenstore::StoreError;
use crate::interrupt::Stop;
use control::FrameError;
use std::fmt;
use std::time::Duration;
use xen_abi::types::Domid;

/// How a stub's domain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It crashed.
    Crashed,
    /// It shut itself down.
    ShutDown,
    /// It is gone, or going: xl, which clears a crashed stub away, may have been quicker than our look.
    Gone,
}

impl End {
    /// `None`: the domain lives.
    pub(super) fn of(info: Option<&DomainInfo>) -> Option<Self> {
        match info {
            Some(info) if info.crashed => Some(Self::Crashed),
            Some(info) if info.dying => Some(Self::Gone),
            Some(info) => info.shutdown.then_some(Self::ShutDown),
            None => Some(Self::Gone),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crashed => "crashed",
            Self::ShutDown => "has shut down",
            Self::Gone => "is gone (crashed, destroyed, or ended by itself)",
        })
    }
}

/// What ended a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ControlError {
    /// The stub reports that the command failed; its own words.
    Failed(String),
    /// No answer in time.
    Silent {
        /// What should have come.
        expected: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The stub's domain is gone or has shut down.
    Dead {
        /// Which domain.
        stub: Domid,
        /// How it ended.
        end: End,
    },
    /// Another stubctl talks to the stub.
    Busy(Domid),
    /// The locks of the channels cannot be had.
    Lock(LockError),
    /// The stub closed the channel.
    Closed,
    /// The stub sends more messages than any stub needs.
    Flood,
    /// The stub's bytes are no messages.
    Frame(FrameError),
    /// The stub is of another build.
    Version {
        /// Its protocol version.
        stub: u16,
    },
    /// The stub has another target than it should.
    OtherTarget {
        /// The target it should have.
        expected: Domid,
        /// The target it has.
        got: Domid,
    },
    /// It cannot be connected to.
    Connect(ConnectError),
    /// The stub's index in the shared page makes no sense.
    Nonsense,
    /// Xenstore.
    Store(StoreError),
    /// The hypervisor.
    Xen(XenError),
    /// Not the stub's fault.
    Stop(Stop),
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(text) => f.write_str(text),
            Self::Silent { expected, waited } => {
                write!(
                    f,
                    "the stub did not answer within {} s, expected {expected}: try again, with a longer timeout (start_timeout_s, \
                     stall_timeout_s) if the host is only slow",
                    waited.as_secs()
                )
            }
            Self::Dead { stub, end } => {
                write!(
                    f,
                    "the stub {stub} {end}: its last words are in xenconsoled's log of its console \
                     (/var/log/xen/guest-*-stubdom-*.log with xenconsoled --log=guest), then try again"
                )
            }
            Self::Busy(stub) => {
                write!(
                    f,
                    "another stubctl talks to the stub {stub}: try again when it is done (stubctl status)"
                )
            }
            Self::Lock(error) => error.fmt(f),
            Self::Closed => write!(f, "the stub closed its control channel"),
            Self::Flood => {
                write!(
                    f,
                    "the stub sends messages without end, expected at most a few a second: it is not to be trusted"
                )
            }
            Self::Frame(error) => write!(f, "the stub sent what is no message: {error}"),
            Self::Version { stub } => {
                let ours = control::VERSION;
                write!(
                    f,
                    "the stub speaks control protocol {stub}, stubctl {ours}: install both of one build"
                )
            }
            Self::OtherTarget { expected, got } => {
                write!(f, "the stub serves {got}, expected it to serve {expected}")
            }
            Self::Connect(error) => write!(f, "cannot open the stub's control channel: {error}"),
            Self::Nonsense => write!(f, "the stub's index in its control channel makes no sense"),
            Self::Store(error) => error.fmt(f),
            Self::Xen(error) => error.fmt(f),
            Self::Stop(stop) => stop.fmt(f),
        }
    }
}

impl std::error::Error for ControlError {}

impl From<Stop> for ControlError {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<LockError> for ControlError {
    fn from(error: LockError) -> Self {
        Self::Lock(error)
    }
}

impl From<Nonsense> for ControlError {
    fn from(Nonsense: Nonsense) -> Self {
        Self::Nonsense
    }
}

impl From<FrameError> for ControlError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<StoreError> for ControlError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<XenError> for ControlError {
    fn from(error: XenError) -> Self {
        Self::Xen(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_abi::types::Mfn;

    #[test]
    fn a_stub_that_is_gone_is_not_said_to_have_ended_by_itself() {
        let lives = DomainInfo {
            hvm: false,
            dying: false,
            shutdown: false,
            crashed: false,
            suspended: false,
            paused: false,
            tot_pages: 0,
            max_pages: 0,
            shared_info: Mfn::new(0),
            max_vcpu: 0,
            cpu_ns: 0,
        };
        assert_eq!(End::of(Some(&lives)), None);
        assert_eq!(End::of(None), Some(End::Gone));
        assert_eq!(End::of(Some(&DomainInfo { dying: true, ..lives })), Some(End::Gone));
        assert_eq!(End::of(Some(&DomainInfo { shutdown: true, ..lives })), Some(End::ShutDown));
        let crashed = DomainInfo { shutdown: true, crashed: true, ..lives };
        assert_eq!(End::of(Some(&crashed)), Some(End::Crashed));
        assert_eq!(End::of(Some(&DomainInfo { dying: true, ..crashed })), Some(End::Crashed));
        let text = ControlError::Dead { stub: Domid::new(7), end: End::Gone }.to_string();
        assert!(
            text.starts_with(
                "the stub d7 is gone (crashed, destroyed, or ended by itself): its last words are in"
            ),
            "{text}"
        );
    }
}
