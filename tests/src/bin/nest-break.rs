//! Runs in dom0: has Xen take a page of a domain for broken, as it does when memory fails under an HVM guest.

use clap::Parser;
use e2e::xenctrl::Xenctrl;
use std::process::ExitCode;

/// Marks a page of a domain broken; a domain that touches it then is crashed.
#[derive(Parser)]
struct Arguments {
    /// The domain's number.
    domid: u32,
    /// The page, a guest frame number in decimal.
    gfn: u64,
}

fn main() -> ExitCode {
    let Arguments { domid, gfn } = Arguments::parse();
    match Xenctrl::open().and_then(|xen| xen.mark_broken(domid, gfn)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nest-break: {error}");
            ExitCode::FAILURE
        }
    }
}
