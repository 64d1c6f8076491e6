//! Runs in dom0: looks for pages of the witness in a paused domain, which never had one: what another guest has left in
//! memory that Xen handed out.
//!
//! `nest-scan DOMID FIRST:END` prints how many pages of the range of gfns (decimal or 0x...) are there and how many of them hold
//! the witness' pattern; `--regions` prints the first gfn of each 2 MiB with such a page, too.

use clap::Parser;
use e2e::foreign::Foreign;
use e2e::foreign::gfn_range;
use e2e::pattern::is_witnessed;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::process::ExitCode;

/// Pages mapped at once.
const BATCH: usize = 1024;

/// Pages of a region of 2 MiB.
const REGION: u64 = 512;

/// Looks for pages of the witness in a domain.
#[derive(Parser)]
struct Arguments {
    /// The domain's number.
    domid: u32,
    /// The guest frame numbers to look at.
    #[arg(value_parser = gfn_range)]
    gfns: Range<u64>,
    /// Prints where they are.
    #[arg(long)]
    regions: bool,
}

fn main() -> ExitCode {
    match scan(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nest-scan: {error}");
            ExitCode::FAILURE
        }
    }
}

fn scan(arguments: &Arguments) -> io::Result<()> {
    let foreign = Foreign::open(arguments.domid)?;
    let gfns: Vec<u64> = arguments.gfns.clone().collect();
    let (mut nr_pages, mut nr_witnessed, mut regions) = (0, 0, BTreeSet::new());
    for batch in gfns.chunks(BATCH) {
        let mapped = foreign.map(batch)?;
        for (place, gfn) in batch.iter().enumerate() {
            let Some(page) = mapped.page(place) else { continue };
            nr_pages += 1;
            if is_witnessed(&page) {
                nr_witnessed += 1;
                regions.insert(gfn - gfn % REGION);
            }
        }
    }
    println!("pages={nr_pages} witnessed={nr_witnessed}");
    if arguments.regions {
        regions.iter().for_each(|gfn| println!("{gfn:#x}"));
    }
    Ok(())
}
