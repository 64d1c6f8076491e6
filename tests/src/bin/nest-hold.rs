//! Runs in dom0: holds a page of a domain, as a back end does that nobody knows of, until it is ended.
//!
//! `nest-hold DOMID FRAME` maps the page read-only (its gfn, or a PV domain's mfn), prints `held` and waits. The reference
//! keeps the frame behind the page from being freed, whatever becomes of the gfn.

use clap::Parser;
use e2e::foreign::Foreign;
use std::io;
use std::process::ExitCode;

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
    match hold(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nest-hold: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Maps the page and keeps it so until the process is ended.
fn hold(arguments: &Arguments) -> io::Result<()> {
    let foreign = Foreign::open(arguments.domid)?;
    let mapped = foreign.map(&[arguments.frame])?;
    if let Some(error) = mapped.error(0) {
        return Err(error);
    }
    println!("held");
    loop {
        std::thread::park();
    }
}
