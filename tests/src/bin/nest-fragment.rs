//! Runs in dom0: takes every second page from a paused domain that owns nearly all memory, so that Xen has plenty of
//! memory left and not two pages of it side by side; or gives a paused domain all memory that is left (`--fill`).
#![allow(unsafe_code, reason = "giving back another domain's pages is a call into Xen's C library")]

use clap::Parser;
use std::ffi::{c_int, c_uint, c_ulong, c_void};
use std::io;
use std::process::ExitCode;
use std::ptr::{self, NonNull};

/// Pages given back in one call.
const BATCH: usize = 4096;

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_interface_open(logger: *mut c_void, builder_logger: *mut c_void, flags: c_uint) -> *mut c_void;
    fn xc_domain_decrease_reservation(
        xen: *mut c_void,
        domid: u32,
        nr_extents: c_ulong,
        order: c_uint,
        frames: *mut u64,
    ) -> c_int;
    fn xc_domain_populate_physmap(
        xen: *mut c_void,
        domid: u32,
        nr_extents: c_ulong,
        order: c_uint,
        mem_flags: c_uint,
        frames: *mut u64,
    ) -> c_int;
}

/// Takes every second page from a paused domain, or gives it all that is left.
#[derive(Parser)]
struct Arguments {
    /// The domain's number.
    domid: u32,
    /// Its memory in MiB, which is to begin at frame 0 and have no gap.
    mib: u64,
    /// Gives it all memory that is left instead, behind that memory, until Xen has none or the domain may have no more.
    #[arg(long)]
    fill: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match if arguments.fill { fill(&arguments) } else { fragment(&arguments) } {
        Ok(count) => {
            println!("nest-fragment: {count} pages moved");
            ExitCode::from(u8::from(count == 0))
        }
        Err(error) => {
            eprintln!("nest-fragment: {error}");
            ExitCode::from(2)
        }
    }
}

fn open() -> io::Result<NonNull<c_void>> {
    // SAFETY: null loggers and no flags are what the header offers for the defaults.
    let xen = unsafe { xc_interface_open(ptr::null_mut(), ptr::null_mut(), 0) };
    NonNull::new(xen).ok_or_else(io::Error::last_os_error)
}

fn fill(arguments: &Arguments) -> io::Result<u64> {
    let xen = open()?;
    let mut count = 0;
    for first in (arguments.mib * 256..).step_by(BATCH) {
        let mut batch: Vec<u64> = (first..).take(BATCH).collect();
        // SAFETY: the handle is open until the process ends, the array has as many elements as the count says, and
        // xen_pfn_t is 64 bits wide on x86-64.
        let done = unsafe {
            xc_domain_populate_physmap(
                xen.as_ptr(),
                arguments.domid,
                batch.len() as c_ulong,
                0,
                0,
                batch.as_mut_ptr(),
            )
        };
        let done = usize::try_from(done).unwrap_or(0);
        count += done as u64;
        if done < BATCH {
            break;
        }
    }
    Ok(count)
}

fn fragment(arguments: &Arguments) -> io::Result<u64> {
    let xen = open()?;
    let mut odd: Vec<u64> = (0..arguments.mib * 256).skip(1).step_by(2).collect();
    let mut count = 0;
    for batch in odd.chunks_mut(BATCH) {
        // SAFETY: the handle is open until the process ends, the array has as many elements as the count says, and
        // xen_pfn_t is 64 bits wide on x86-64.
        let done = unsafe {
            xc_domain_decrease_reservation(
                xen.as_ptr(),
                arguments.domid,
                batch.len() as c_ulong,
                0,
                batch.as_mut_ptr(),
            )
        };
        count += u64::try_from(done).unwrap_or(0);
    }
    Ok(count)
}
