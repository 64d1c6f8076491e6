//! Runs in dom0: says whether Xen logs which pages a domain writes to, `on` or `off`, and turns it off.

use clap::Parser;
use e2e::xenctrl::Xenctrl;
use std::process::ExitCode;

/// Asks about a domain's log of dirty pages, and ends it.
#[derive(Parser)]
struct Arguments {
    /// The domain's number.
    domid: u32,
}

fn main() -> ExitCode {
    match Xenctrl::open().and_then(|xen| xen.end_log(Arguments::parse().domid)) {
        Ok(was_on) => {
            println!("{}", if was_on { "on" } else { "off" });
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("nest-log: {error}");
            ExitCode::FAILURE
        }
    }
}
