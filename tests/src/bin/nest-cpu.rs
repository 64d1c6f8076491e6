//! Runs in dom0: prints the processor time that each domain has had, a line each: its number and nanoseconds.
//!
//! Xen counts what a domain's vCPUs ran, and nothing that others ran meanwhile; dom0's own clocks cannot tell these apart.

use e2e::xenctrl::Xenctrl;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Xenctrl::open().and_then(|xen| xen.domains()) {
        Ok(all) => {
            all.iter().for_each(|info| println!("{} {}", info.domain, info.cpu_time));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("nest-cpu: {error}");
            ExitCode::FAILURE
        }
    }
}
