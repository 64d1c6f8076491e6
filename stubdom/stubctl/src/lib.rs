//! The dom0 side of the migration stub domain: libxl's save helper, the stubs' broker, the operator's tool.
//!
//! ```text
//! libxl ── helper ── restore ─┬─ pair             xl create, set_target, links, greeting
//!                             ├─ relay (framing)  libxl's descriptor -> the stub's TCP port
//!                             ├─ broker           what only dom0 may do, on the stub's request
//!                             └─ report           JSON for each guest
//!                  send ──────┬─ pair
//!                             ├─ outlet (framing) the stub's ring -> libxl's descriptor
//!                             └─ dom0             what only dom0 knows or may do, on the stub's request
//! operator ── commands ────────── pair, control_channel
//! ```
//! `ffi` is the only room with `unsafe`. A library, so that fuzzing reaches what takes bytes of others; the program is `main`.

mod broker;
mod byte_lock;
mod child;
mod cli;
mod commands;
mod conf;
mod control_channel;
#[cfg(feature = "doors")]
pub mod doors;
mod error;
mod exchange;
mod ffi;
mod frame;
mod framing;
mod helper;
mod host;
mod interrupt;
mod libxl;
mod marks;
mod net;
mod obstacle;
mod offline;
mod packaged;
mod pages;
mod pair;
mod program;
mod pv_exchange;
mod pv_suspend;
mod qmp;
mod relay;
mod report;
mod restore;
mod send;
mod standstill;
mod status;
mod survey;
mod text;
mod toolstack;
mod verdict;
mod wait;
mod watch;
mod xen_version;
mod xl_lock;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs as libxl's save helper, or as the operator's tool.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if helper::is_helper_call(&arguments) {
        return helper::main(&arguments);
    }
    commands::main()
}
