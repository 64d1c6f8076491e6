//! Runs in dom0: takes every second page from a paused domain that owns nearly all memory, so that Xen has plenty of
//! memory left and not two pages of it side by side.
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
}

/// Takes every second page from a paused domain.
#[derive(Parser)]
struct Arguments {
    /// The domain's number.
    domid: u32,
    /// Its memory in MiB, which is to begin at frame 0 and have no gap.
    mib: u64,
}

fn main() -> ExitCode {
    match fragment(&Arguments::parse()) {
        Ok(count) => {
            println!("nest-fragment: {count} pages given back");
            ExitCode::from(u8::from(count == 0))
        }
        Err(error) => {
            eprintln!("nest-fragment: {error}");
            ExitCode::from(2)
        }
    }
}

fn fragment(arguments: &Arguments) -> io::Result<u64> {
    // SAFETY: null loggers and no flags are what the header offers for the defaults.
    let xen = unsafe { xc_interface_open(ptr::null_mut(), ptr::null_mut(), 0) };
    let xen = NonNull::new(xen).ok_or_else(io::Error::last_os_error)?;
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
