//! Runs in dom0: takes every second page from a paused domain that owns nearly all memory, so that Xen has plenty of
//! memory left and not two pages of it side by side; or gives a paused domain all memory that is left (`--fill`).

use clap::Parser;
use e2e::xenctrl::Xenctrl;
use std::io;
use std::process::ExitCode;

/// Pages moved in one call.
const BATCH: usize = 4096;

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

fn fill(arguments: &Arguments) -> io::Result<usize> {
    let xen = Xenctrl::open()?;
    let mut count = 0;
    for first in (arguments.mib * 256..).step_by(BATCH) {
        let mut batch: Vec<u64> = (first..).take(BATCH).collect();
        let nr_done = xen.populate(arguments.domid, &mut batch);
        count += nr_done;
        if nr_done < BATCH {
            break;
        }
    }
    Ok(count)
}

fn fragment(arguments: &Arguments) -> io::Result<usize> {
    let xen = Xenctrl::open()?;
    let mut odd: Vec<u64> = (0..arguments.mib * 256).skip(1).step_by(2).collect();
    Ok(odd.chunks_mut(BATCH).map(|batch| xen.take_back(arguments.domid, batch)).sum())
}
