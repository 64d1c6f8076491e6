//! Runs in dom0: spares a new PVH guest the search for a timer that it does not have.
//!
//! `nest-timer DOMID`, before the guest runs. Linux calibrates its clock by counter 2 of the PIT, port 0x42. A PVH guest has
//! none, and Xen answers 0xff to every read, which is what Linux waits through: it reads a hundred thousand times before it
//! gives the PIT up, and each read leaves the guest (4 to 9 s on a translated processor). From a counter that never stands
//! at 0xff it turns away after the fourth. So the port is led to one of the machine's that ignores writes and reads 0.
//! Linux takes Xen's word for the clock either way.
#![allow(unsafe_code, reason = "giving a domain a port is a call into Xen's C library")]

use clap::Parser;
use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::process::ExitCode;
use std::ptr;

/// Counter 2 of the PIT (Intel 8254).
const PIT_COUNTER_2: u32 = 0x42;

/// QEMU's `fw_cfg` data register (`docs/specs/fw_cfg.txt`): no write does anything, and behind an item's end it reads 0. Who
/// booted the machine has read the last item to its end.
const FW_CFG_DATA: u32 = 0x511;

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_interface_open(logger: *mut c_void, builder_logger: *mut c_void, flags: c_uint) -> *mut c_void;
    fn xc_domain_ioport_mapping(
        xen: *mut c_void,
        domid: u32,
        first_gport: u32,
        first_mport: u32,
        nr_ports: u32,
        add: u32,
    ) -> c_int;
}

/// Spares a new PVH guest the search for a timer.
#[derive(Parser)]
struct Arguments {
    /// The domain's number.
    domid: u32,
}

fn main() -> ExitCode {
    match lead_port(Arguments::parse().domid) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nest-timer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn lead_port(domid: u32) -> io::Result<()> {
    // SAFETY: null loggers and no flags are what the header offers for the defaults.
    let xen = unsafe { xc_interface_open(ptr::null_mut(), ptr::null_mut(), 0) };
    if xen.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle is open until the process ends; the call takes numbers only.
    match unsafe { xc_domain_ioport_mapping(xen, domid, PIT_COUNTER_2, FW_CFG_DATA, 1, 1) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
