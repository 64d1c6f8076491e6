//! What bytes of others reach, door by door: each body takes any bytes as its choices and panics only for a fault of ours.
//!
//! **Takes** bytes: random ones of a seeded loop (`cargo run -p fuzz`), or libFuzzer's (`libfuzzer/`). **Gives** nothing, or
//! a panic. **Never** depends on time or on anything but its bytes, so that whatever is found can be found again.

pub mod choices;
pub mod doors;
mod streams;

/// A door.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// Its name on the command line.
    pub name: &'static str,
    /// What is tried.
    pub proves: &'static str,
    /// Executions in `scripts/test`.
    pub nr_short: u64,
    /// Executes once.
    pub body: fn(&[u8]),
}

/// Every door.
pub const DOORS: &[Door] = &[
    Door {
        name: "stream",
        proves: "a stream's items and end do not depend on its cuts, and the relay stops where the parser does",
        nr_short: 100_000,
        body: doors::stream,
    },
    Door {
        name: "restore",
        proves: "whatever a stream says and Xen refuses, the target owns no more than it may and nothing is left behind",
        nr_short: 5_000,
        body: doors::restore,
    },
    Door {
        name: "exchange",
        proves: "whatever fails, dies or meddles, an exchange leaves an honest guest whole",
        nr_short: 1_000,
        body: doors::exchange,
    },
    Door {
        name: "control",
        proves: "a message is taken as it was sent, or refused",
        nr_short: 100_000,
        body: doors::control,
    },
    Door {
        name: "vchan",
        proves: "the indices of a peer lead nowhere outside its rings",
        nr_short: 100_000,
        body: xen_front::doors::vchan,
    },
    Door {
        name: "xenstore",
        proves: "xenstore's messages are taken whole or refused",
        nr_short: 100_000,
        body: xen_front::doors::xenstore,
    },
    Door {
        name: "network",
        proves: "no neighbour's frames connect anybody but the relay, or hold the stub's port",
        nr_short: 10_000,
        body: doors::network,
    },
    Door {
        name: "tables",
        proves: "a grant table of any bytes names only pages that were asked for",
        nr_short: 20_000,
        body: doors::tables,
    },
    Door {
        name: "conf",
        proves: "a configuration is taken or refused with its line",
        nr_short: 50_000,
        body: stubctl::doors::conf,
    },
    Door {
        name: "qmp",
        proves: "whatever a device model answers, a command is done or refused",
        nr_short: 200,
        body: stubctl::doors::qmp,
    },
];
