//! The operator's commands, as clap sees them.

use crate::error::EXIT_CODES;
use clap::{Args, Parser, Subcommand};

const INSTALL: &str = "\
As libxl's save helper, for one command:
  LIBXL_SAVE_HELPER=/usr/sbin/stubctl xl restore FILE
for every restore on this host:
  dpkg-divert --add --rename --divert /usr/lib/xen-4.17/bin/libxl-save-helper.distrib \\
      /usr/lib/xen-4.17/bin/libxl-save-helper
  ln -s /usr/sbin/stubctl /usr/lib/xen-4.17/bin/libxl-save-helper
Guests get a stub by /etc/xen/stubdom/NAME.conf or default.conf; all others, and every save, go to the packaged
helper.";

/// Dom0 side of the Xen migration stub domain.
#[derive(Debug, Parser)]
#[command(name = "stubctl", version, after_help = format!("{INSTALL}\n\n{EXIT_CODES}"))]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the stubs: target, phase, progress, superpages
    Status(StatusArguments),
    /// Start a stub for a running guest and pair them
    Attach {
        /// Name or number of the guest
        guest: String,
    },
    /// End a guest's stub; the guest runs on
    Detach {
        /// Name or number of the guest
        guest: String,
    },
    /// Survey a guest's memory: which 2 MiB regions are one run of machine memory
    Map(MapArguments),
    /// Exchange frames of a PV guest
    #[command(hide = true)]
    PvExchange(PvExchangeArguments),
}

/// How to list.
#[derive(Args, Debug)]
pub(crate) struct StatusArguments {
    /// One JSON array; with --watch one a second, each on a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Go on until interrupted, once a second, with rates, a bar and an estimate
    #[arg(long)]
    pub(crate) watch: bool,
}

/// What to survey.
#[derive(Args, Debug)]
pub(crate) struct MapArguments {
    /// Name or number of the guest
    pub(crate) guest: String,
    /// JSON, with one letter for each 2 MiB region: S superpage, s small pages, p partial, . hole
    #[arg(long)]
    pub(crate) json: bool,
    /// Keep the stub when there was none before
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Which frames of a PV guest.
#[derive(Args, Debug)]
pub(crate) struct PvExchangeArguments {
    /// Number of the guest
    pub(crate) domid: u16,
    /// Machine frame numbers, hexadecimal
    #[arg(required = true, value_parser = hexadecimal)]
    pub(crate) mfns: Vec<u64>,
    /// One line of JSON for each frame
    #[arg(long)]
    pub(crate) json: bool,
}

fn hexadecimal(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16)
}
