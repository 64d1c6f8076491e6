//! Runs in dom0: has Xen take a page of a domain for broken, as it does when memory fails under an HVM guest.
#![allow(unsafe_code, reason = "marking another domain's page is a call into Xen's C library")]

use clap::Parser;
use std::ffi::{c_int, c_uint, c_ulong, c_void};
use std::io;
use std::process::ExitCode;
use std::ptr;

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_interface_open(logger: *mut c_void, builder_logger: *mut c_void, flags: c_uint) -> *mut c_void;
    fn xc_set_broken_page_p2m(xen: *mut c_void, domid: u32, pfn: c_ulong) -> c_int;
}

/// Marks a page of a domain broken; a domain that touches it then is crashed.
#[derive(Parser)]
struct Arguments {
    /// The domain's number.
    domid: u32,
    /// The page, a guest frame number in decimal.
    gfn: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // SAFETY: null loggers and no flags are what the header offers for the defaults.
    let xen = unsafe { xc_interface_open(ptr::null_mut(), ptr::null_mut(), 0) };
    if xen.is_null() {
        eprintln!("nest-break: {}", io::Error::last_os_error());
        return ExitCode::from(2);
    }
    // SAFETY: the handle is open until the process ends; the call takes numbers only.
    let done = unsafe { xc_set_broken_page_p2m(xen, arguments.domid, arguments.gfn) };
    if done != 0 {
        eprintln!("nest-break: {}", io::Error::last_os_error());
    }
    ExitCode::from(u8::from(done != 0))
}
