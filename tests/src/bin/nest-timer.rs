//! Runs in dom0: spares a new PVH guest the search for a timer that it does not have.
//!
//! `nest-timer DOMID`, before the guest runs. Linux calibrates its clock by counter 2 of the PIT, port 0x42. A PVH guest has
//! none, and Xen answers 0xff to every read, which is what Linux waits through: it reads a hundred thousand times before it
//! gives the PIT up, and each read leaves the guest (4 to 9 s on a translated processor). From a counter that never stands
//! at 0xff it turns away after the fourth. So the port is led to one of the machine's that ignores writes and reads 0.
//! Linux takes Xen's word for the clock either way.

use clap::Parser;
use e2e::xenctrl::Xenctrl;
use std::process::ExitCode;

/// Counter 2 of the PIT (Intel 8254).
const PIT_COUNTER_2: u32 = 0x42;

/// QEMU's `fw_cfg` data register (`docs/specs/fw_cfg.txt`): no write does anything, and behind an item's end it reads 0. Who
/// booted the machine has read the last item to its end.
const FW_CFG_DATA: u32 = 0x511;

/// Spares a new PVH guest the search for a timer.
#[derive(Parser)]
struct Arguments {
    /// The domain's number.
    domid: u32,
}

fn main() -> ExitCode {
    let Arguments { domid } = Arguments::parse();
    match Xenctrl::open().and_then(|xen| xen.lead_port(domid, PIT_COUNTER_2, FW_CFG_DATA)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nest-timer: {error}");
            ExitCode::FAILURE
        }
    }
}
