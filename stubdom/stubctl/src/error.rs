//! Every way in which stubctl fails, with its exit code and the errno that libxl is told.

use crate::broker::BlobError;
use crate::byte_lock::LockError;
use crate::conf::ConfError;
use crate::control_channel::ControlError;
use crate::ffi::hypercalls::{OpenError, UnknownInterface};
use crate::ffi::xenctrl::XenError;
use crate::ffi::xenstore::StoreError;
use crate::helper::Forbidden;
use crate::interrupt::Stop;
use crate::net::NetError;
use crate::packaged::PackagedError;
use crate::pair::PairError;
use crate::pv_suspend::SuspendError;
use crate::qmp::QmpError;
use crate::relay::RelayError;
use crate::send::OutletError;
use crate::xl_lock::HeldByParent;
use std::fmt;
use std::process::ExitCode;

/// Exit codes, as `stubctl --help` lists them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  dom0 could not do its part (Xen, xenstore, network, files)
  2  wrong command line, no such guest or stub
  3  wrong configuration
  4  the stub did not start or did not answer
  5  the stub refused or failed
  6  the migration stream broke off
  7  aborted
  8  offline: a frame was refused, its owner is as it was
  9  offline: a frame was exchanged, and somebody holds the old one
  10 offline: a guest stays paused and must not run on: an exchange cost it a page, or broke off and cannot be undone yet
Of several frames the highest code counts.";

macro_rules! errors {
    ($($(#[$doc:meta])* $room:ident($error:ty),)*) => {
        /// A failure, by the room it comes from.
        #[derive(Debug)]
        pub(crate) enum Error {
            $($(#[$doc])* $room($error),)*
        }

        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::$room(error)
            }
        })*

        impl fmt::Display for Error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$room(error) => error.fmt(f),)*
                }
            }
        }
    };
}

errors! {
    /// The configuration files.
    Conf(ConfError),
    /// A hypercall of dom0's.
    Xen(XenError),
    /// A Xen that this program is not made for.
    Interface(UnknownInterface),
    /// Xenstore.
    Store(StoreError),
    /// The relay's bridge.
    Net(NetError),
    /// xl's lock.
    XlLock(HeldByParent),
    /// Locks of our own.
    Lock(LockError),
    /// Making a stub.
    Pair(PairError),
    /// Suspending a PV guest.
    Suspend(SuspendError),
    /// Surveying a PV guest's memory.
    PvExchange(migration::exchange_pv::Error),
    /// Talking to a stub.
    Control(ControlError),
    /// The stream.
    Relay(RelayError),
    /// The stream that leaves.
    Outlet(OutletError),
    /// A device model.
    Qmp(QmpError),
    /// Blobs.
    Blob(BlobError),
    /// The distribution's helper.
    Packaged(PackagedError),
    /// An interrupt.
    Stop(Stop),
    /// The save helper's arguments.
    Usage(Usage),
    /// A restore that the configuration forbids.
    Forbidden(Forbidden),
    /// This process's own descriptors and files.
    Io(std::io::Error),
}

impl std::error::Error for Error {}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Call(error) => error.into(),
            OpenError::Interface(error) => error.into(),
        }
    }
}

/// A save-helper command line that is not libxl's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// What should stand there.
    pub(crate) expected: &'static str,
    /// What stands there.
    pub(crate) got: Option<String>,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let got = self.got.as_deref().unwrap_or("nothing");
        write!(f, "save-helper arguments: expected {}, got {got}", self.expected)
    }
}

impl Error {
    /// The exit code, as in [`EXIT_CODES`].
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// The same as a number.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Qmp(QmpError::Stop(_)) => 7,
            Self::Xen(_)
            | Self::Interface(_)
            | Self::Store(_)
            | Self::Net(_)
            | Self::Packaged(_)
            | Self::Io(_)
            | Self::Qmp(_)
            | Self::Lock(_) => 1,
            Self::Control(ControlError::Xen(_) | ControlError::Store(_) | ControlError::Lock(_)) => 1,
            Self::Usage(_) => 2,
            Self::Suspend(_) => 1,
            Self::PvExchange(_) => 1,
            Self::Pair(PairError::NoGuest(_) | PairError::NoStub(_) | PairError::NotHvm(_)) => 2,
            Self::Conf(_)
            | Self::Forbidden(_)
            | Self::Pair(PairError::NoConfig(_) | PairError::Disabled(..)) => 3,
            Self::Control(ControlError::Stop(_)) | Self::Stop(_) => 7,
            Self::Control(ControlError::Failed(_)) | Self::Blob(_) => 5,
            Self::XlLock(_) | Self::Pair(_) | Self::Control(_) => 4,
            Self::Relay(_) | Self::Outlet(_) => 6,
        }
    }

    /// Whether somebody wants this process to end.
    pub(crate) fn is_stop(&self) -> bool {
        matches!(self, Self::Stop(_) | Self::Control(ControlError::Stop(_)) | Self::Qmp(QmpError::Stop(_)))
    }

    /// The positive errno for libxl's own line, which prints its text behind "restoring domain".
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::Forbidden(_) => libc::EPERM,
            Self::Xen(error) | Self::Control(ControlError::Xen(error)) => error.errno,
            Self::Store(error) | Self::Control(ControlError::Store(error)) => error.errno,
            Self::Interface(_) => libc::EOPNOTSUPP,
            Self::XlLock(_) => libc::EDEADLK,
            Self::Control(ControlError::Silent { .. }) => libc::ETIMEDOUT,
            Self::Control(ControlError::Stop(_)) | Self::Stop(_) => libc::EINTR,
            Self::Conf(_) | Self::Usage(_) | Self::Pair(_) | Self::Suspend(_) | Self::PvExchange(_) => {
                libc::EINVAL
            }
            Self::Control(_) | Self::Blob(_) => libc::EPROTO,
            Self::Outlet(OutletError::Sink { .. }) => libc::EPIPE,
            Self::Outlet(_) => libc::EPROTO,
            Self::Relay(_)
            | Self::Net(_)
            | Self::Packaged(_)
            | Self::Io(_)
            | Self::Qmp(_)
            | Self::Lock(_) => libc::EIO,
        }
    }

    /// Whether the toolstack that asked is gone, so that nobody else cleans up behind it.
    pub(crate) fn is_parent_gone(&self) -> bool {
        matches!(self, Self::Stop(Stop::ParentGone) | Self::Control(ControlError::Stop(Stop::ParentGone)))
    }
}
