//! Runs in dom0: has Xen find a machine check, as `xen-mceinj` does, but of a kind that is not in that tool's table.

use clap::Parser;
use e2e::xenctrl::Xenctrl;
use std::process::ExitCode;

/// Injects a machine check on CPU 0.
#[derive(Parser)]
struct Arguments {
    /// The bank that reports it.
    bank: u64,
    /// Its MCi_STATUS, 0x...
    #[arg(value_parser = hexadecimal)]
    status: u64,
    /// Its MCi_ADDR, 0x...
    #[arg(value_parser = hexadecimal)]
    address: u64,
    /// Its MCi_MISC, 0x...
    #[arg(value_parser = hexadecimal, default_value = "0x0")]
    misc: u64,
}

fn hexadecimal(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16)
}

fn main() -> ExitCode {
    let Arguments { bank, status, address, misc } = Arguments::parse();
    match Xenctrl::open().and_then(|xen| xen.inject_machine_check(bank, status, misc, address)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nest-mce: {error}");
            ExitCode::FAILURE
        }
    }
}
