//! The operator's commands, as clap sees them.

use crate::error::EXIT_CODES;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;
use xen_abi::types::{Mfn, PAGE_SHIFT};

const INSTALL: &str = "\
As libxl's save helper, for one command:
  LIBXL_SAVE_HELPER=/usr/sbin/stubctl xl restore FILE
for every restore on this host:
  helper=/usr/lib/xen-$(xl info xen_version | cut -d. -f1,2)/bin/libxl-save-helper
  dpkg-divert --add --rename --divert $helper.distrib $helper
  ln -s /usr/sbin/stubctl $helper
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
        /// Name or number of the guest; name:7 is the guest that is called 7
        guest: String,
    },
    /// End a guest's stub; the guest runs on
    Detach {
        /// Name or number of the guest; name:7 is the guest that is called 7
        guest: String,
    },
    /// Survey a guest's memory: which 2 MiB regions are one run of machine memory
    Map(MapArguments),
    /// Tell which machine frames stand behind pages of a guest
    Locate {
        /// Name or number of the guest; name:7 is the guest that is called 7
        guest: String,
        /// Guest frame numbers, decimal or 0x...
        #[arg(required = true, value_parser = frame_number)]
        gfns: Vec<u64>,
    },
    /// Take failing frames of machine memory out of use, from under a running guest if need be
    Offline(OfflineArguments),
    /// List the frames that are offline, pending or broken, and their owners
    Pages(PagesArguments),
    /// Take pages out of use when they have had enough corrected errors; runs until it is ended
    Watch(WatchArguments),
    /// Take the frames out of use that a watch names on standard input
    #[command(hide = true)]
    Retire,
    /// Wait for the stubctl that started this to end, then put the guest right
    #[command(hide = true)]
    Guard {
        /// Number of the guest
        domid: u16,
        /// Its process
        parent: u32,
    },
    /// Wait for the stubctl that started this to end, then let the guest that it was sending run on
    #[command(hide = true)]
    GuardSend {
        /// Number of the guest
        domid: u16,
        /// The process of libxl
        libxl: u32,
    },
}

/// Where Linux in dom0 hands on the machine checks that it has from Xen.
pub(crate) const MCELOG: &str = "/dev/mcelog";

const REPORTS: &str = "\
A report is a line `[page|address] 0xNUMBER [COUNT]`: a frame number or a physical address, and how many errors are new (1 when
it is missing or 0). A number without a word before it is an address. `#` starts a comment.";

/// Where errors are reported, and how many are enough.
#[derive(Args, Debug)]
#[command(after_help = REPORTS)]
pub(crate) struct WatchArguments {
    /// Directory whose files hold reports; each is deleted once it is counted. It is made if there is none
    #[arg(long)]
    pub(crate) spool: Option<PathBuf>,
    /// File to which reports are appended
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
    /// Command whose output is reports; run by sh every interval
    #[arg(long)]
    pub(crate) command: Option<String>,
    /// Device with the machine checks of Xen, or "off"; read where it is there by default (/dev/mcelog)
    #[arg(long, value_name = "DEVICE")]
    pub(crate) mcelog: Option<PathBuf>,
    /// Corrected errors of a page that take it out of use
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) threshold: u64,
    /// Seconds between two looks
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) interval_s: u64,
    /// Seconds after which a frame is tried again whose refusal may pass by itself; each further wait for the same reason is
    /// twice as long, up to 1,024 times
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) retry_s: u64,
    /// Seconds that the frames of all guests wait for one guest that does not answer
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) patience_s: u64,
    /// What is known, kept across restarts
    #[arg(long, default_value = "/var/lib/xen-stubdom/watch.json")]
    pub(crate) state: PathBuf,
    /// Look once and end
    #[arg(long)]
    pub(crate) once: bool,
}

impl WatchArguments {
    /// Time between two looks.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_s)
    }
}

/// Which frames, and how.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct OfflineArguments {
    /// Machine frame numbers (address divided by 4096), decimal or 0x...
    #[arg(required = true, value_parser = frame_number)]
    pub(crate) mfns: Vec<u64>,
    /// The numbers are physical addresses
    #[arg(long)]
    pub(crate) address: bool,
    /// Tell whether it would work; change nothing
    #[arg(long)]
    pub(crate) check: bool,
    /// One line of JSON for each frame
    #[arg(long)]
    pub(crate) json: bool,
    /// Keep a stub that was started for this
    #[arg(long)]
    pub(crate) keep: bool,
    /// Exchange single pages only: superpages are split, the pause is shorter
    #[arg(long)]
    pub(crate) split: bool,
    /// Take no care of a Xen (before 4.20.4, 4.21.2) that may crash over frames freed beside free memory: as the stock tool
    #[arg(long)]
    pub(crate) careless: bool,
    /// Have the stub panic before its call to Xen of this number
    #[arg(long, hide = true)]
    pub(crate) debug_stub_panic: Option<u32>,
    /// Abort after this step: 1 prepared, 2 paused, 3 swap asked for, 4 unpaused, 5 marked, before the pause
    #[arg(long, hide = true)]
    pub(crate) debug_abort: Option<u8>,
    /// Ask the stub of this guest, whoever owns the frames: it has to refuse them
    #[arg(long, hide = true)]
    pub(crate) debug_ask: Option<String>,
}

impl OfflineArguments {
    /// The frames that are named.
    pub(crate) fn frames(&self) -> Vec<Mfn> {
        let shift = if self.address { PAGE_SHIFT } else { 0 };
        self.mfns.iter().map(|number| Mfn::new(number >> shift)).collect()
    }
}

/// How to list.
#[derive(Args, Debug)]
pub(crate) struct PagesArguments {
    /// One JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

/// Reads a frame number, decimal or with 0x.
pub(crate) fn frame_number(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "expected a frame number, decimal or 0x...".to_owned())
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
    /// Name or number of the guest; name:7 is the guest that is called 7
    pub(crate) guest: String,
    /// JSON, with one letter for each 2 MiB region: S superpage, s small pages, p partial, . hole
    #[arg(long)]
    pub(crate) json: bool,
    /// Keep the stub when there was none before
    #[arg(long)]
    pub(crate) keep: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(line: &[&str]) -> Vec<Mfn> {
        let line = ["stubctl", "offline"].iter().chain(line);
        match Cli::parse_from(line).command {
            Command::Offline(arguments) => arguments.frames(),
            other => panic!("expected offline, got {other:?}"),
        }
    }

    #[test]
    fn offline_takes_frame_numbers_and_addresses_if_they_are_called_so() {
        assert_eq!(frames(&["0x1234", "5"]), [Mfn::new(0x1234), Mfn::new(5)]);
        assert_eq!(frames(&["--address", "0x1234abc", "8192"]), [Mfn::new(0x1234), Mfn::new(2)]);
    }
}
