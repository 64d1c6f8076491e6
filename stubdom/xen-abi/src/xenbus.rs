//! The states of the two ends of a device (`xen/include/public/io/xenbus.h`).

/// `enum xenbus_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not known, or gone.
    Unknown = 0,
    /// The driver has started.
    Initialising = 1,
    /// The back end waits for the front end.
    InitWait = 2,
    /// The front end waits for the back end.
    Initialised = 3,
    /// The device works.
    Connected = 4,
    /// The device is to be closed.
    Closing = 5,
    /// The device is closed.
    Closed = 6,
    /// The device changes.
    Reconfiguring = 7,
    /// The device has changed.
    Reconfigured = 8,
}

impl State {
    /// Reads a `state` node; what is none of the states is unknown.
    pub fn parse(text: &str) -> Self {
        match text.trim() {
            "1" => Self::Initialising,
            "2" => Self::InitWait,
            "3" => Self::Initialised,
            "4" => Self::Connected,
            "5" => Self::Closing,
            "6" => Self::Closed,
            "7" => Self::Reconfiguring,
            "8" => Self::Reconfigured,
            _ => Self::Unknown,
        }
    }
}
