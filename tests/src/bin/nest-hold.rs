//! Runs in dom0: holds a page of a domain, as a back end does that nobody knows of, until it is ended.
//!
//! `nest-hold DOMID FRAME` maps the page read-only (its gfn, or a PV domain's mfn), prints `held` and waits. The reference
//! keeps the frame behind the page from being freed, whatever becomes of the gfn.
#![allow(unsafe_code, reason = "mapping another domain's page is a call into Xen's C library")]

use clap::Parser;
use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::process::ExitCode;
use std::ptr;

const PROT_READ: c_int = 1;

#[link(name = "xenforeignmemory")]
unsafe extern "C" {
    fn xenforeignmemory_open(logger: *mut c_void, open_flags: c_uint) -> *mut c_void;
    fn xenforeignmemory_map(
        handle: *mut c_void,
        domid: u32,
        prot: c_int,
        nr_pages: usize,
        frames: *const u64,
        errors: *mut c_int,
    ) -> *mut c_void;
}

/// Holds a page of a domain.
#[derive(Parser)]
struct Arguments {
    /// The domain's number.
    domid: u32,
    /// The page, decimal or 0x...
    #[arg(value_parser = frame_number)]
    frame: u64,
}

fn frame_number(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = map(&arguments) {
        eprintln!("nest-hold: {error}");
        return ExitCode::FAILURE;
    }
    println!("held");
    loop {
        std::thread::park();
    }
}

/// Maps the page until the process ends.
fn map(arguments: &Arguments) -> io::Result<()> {
    // SAFETY: a null logger and no flags are what the header offers for the defaults.
    let handle = unsafe { xenforeignmemory_open(ptr::null_mut(), 0) };
    if handle.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut error = 0;
    // SAFETY: the handle is open until the process ends; both arrays have one element as the count says, and xen_pfn_t is
    // 64 bits wide on x86-64. Nobody reads the mapping, which is never taken away.
    let address = unsafe {
        xenforeignmemory_map(
            handle,
            arguments.domid,
            PROT_READ,
            1,
            &raw const arguments.frame,
            &raw mut error,
        )
    };
    match (address.is_null(), error) {
        (false, 0) => Ok(()),
        (true, _) => Err(io::Error::last_os_error()),
        (false, error) => Err(io::Error::from_raw_os_error(-error)),
    }
}
