//! Runs in dom0: prints how much memory Xen has free, in KiB (`xl info` tells MiB only), and how many domains there are besides
//! dom0, dying ones among them.

use e2e::xenctrl::Xenctrl;
use std::io;
use std::process::ExitCode;

const PAGE_KIB: u64 = 4;

fn main() -> ExitCode {
    match tell() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nest-host: {error}");
            ExitCode::FAILURE
        }
    }
}

fn tell() -> io::Result<()> {
    let xen = Xenctrl::open()?;
    let nr_guests = xen.domains()?.iter().filter(|info| info.domain != 0).count();
    println!("free_kib={} guests={nr_guests}", xen.free_pages()? * PAGE_KIB);
    Ok(())
}
