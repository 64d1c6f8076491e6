//! Runs in dom0: shows and rewrites the libxc stream within a file of `xl save`, so that the receiver can be tried with
//! every legal order of pages and every kind of damage. All of it repeats from its seed.

mod damage;
mod reorder;
mod splice;

use clap::{Parser, Subcommand};
use damage::Damage;
use e2e::error::{Doing, Result};
use e2e::foreign::gfn_range;
use e2e::pattern::is_witnessed;
use e2e::savefile::{PAGE_BYTES, SaveFile, kind};
use reorder::Order;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Shows and rewrites files of `xl save`.
#[derive(Parser)]
#[command(name = "nest-stream")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Lists the libxc records: number, offset, type, length.
    Info {
        /// The save file.
        file: PathBuf,
    },
    /// Writes the same guest with its pages in another order, other batches, or repeated.
    Reorder {
        /// The save file.
        file: PathBuf,
        /// What to write.
        out: PathBuf,
        #[command(flatten)]
        order: Order,
    },
    /// Makes holes, behind all contents, of the pages in a range that a witness has written, as a guest does whose balloon
    /// grows during a live migration; prints how many.
    Balloon {
        /// The save file.
        file: PathBuf,
        /// What to write.
        out: PathBuf,
        /// Guest frame numbers, FIRST:END.
        #[arg(value_parser = gfn_range)]
        gfns: Range<u64>,
    },
    /// Cuts the file after a number of bytes of the libxc stream.
    Truncate {
        /// The save file.
        file: PathBuf,
        /// What to write.
        out: PathBuf,
        /// Bytes of the libxc stream to keep.
        nr_bytes: u64,
    },
    /// Damages one thing, and prints the offset of the damage in the libxc stream.
    Damage {
        /// The save file.
        file: PathBuf,
        /// What to write.
        out: PathBuf,
        /// What to damage.
        damage: Damage,
    },
    /// Lists the kinds of damage.
    Damages,
}

fn main() -> ExitCode {
    match act(Arguments::parse().action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nest-stream: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(action: Action) -> Result<()> {
    match action {
        Action::Info { file } => info(&SaveFile::open(&file)?),
        Action::Reorder { file, out, order } => reorder::write(&SaveFile::open(&file)?, &order, &out),
        Action::Balloon { file, out, gfns } => balloon(&SaveFile::open(&file)?, &gfns, &out),
        Action::Truncate { file, out, nr_bytes } => truncate(&SaveFile::open(&file)?, nr_bytes, &out),
        Action::Damage { file, out, damage } => {
            println!("{}", damage::write(&SaveFile::open(&file)?, damage, &out)?);
            Ok(())
        }
        Action::Damages => {
            damage::names().for_each(|name| println!("{name}"));
            Ok(())
        }
    }
}

fn info(save: &SaveFile) -> Result<()> {
    for (number, record) in save.records.iter().enumerate() {
        let offset = record.offset - save.libxc;
        let pages = if record.kind == kind::PAGE_DATA {
            let pages = save.pages(record)?;
            format!(" pages={} data={}", pages.len(), pages.iter().filter(|page| page.data.is_some()).count())
        } else {
            String::new()
        };
        println!("{number} offset={offset} type={:#x} length={}{pages}", record.kind, record.len);
    }
    Ok(())
}

fn balloon(save: &SaveFile, gfns: &Range<u64>, out: &Path) -> Result<()> {
    let mut pfns = BTreeSet::new();
    for record in save.records.iter().filter(|record| record.kind == kind::PAGE_DATA) {
        for page in save.pages(record)?.iter().filter(|page| gfns.contains(&page.pfn())) {
            if let Some(at) = page.data
                && is_witnessed(&save.bytes(at, PAGE_BYTES)?)
            {
                pfns.insert(page.pfn());
            }
        }
    }
    let state = save.first(kind::X86_TSC_INFO)?.offset;
    let mut to = create(out)?;
    copy(save, 0, state, &mut to)?;
    to.write_all(&splice::holes(pfns.iter().copied())).doing("writing the holes")?;
    copy(save, state, save.len(), &mut to)?;
    println!("{}", pfns.len());
    to.flush().doing("writing the last bytes")
}

fn truncate(save: &SaveFile, nr_bytes: u64, out: &Path) -> Result<()> {
    let mut to = create(out)?;
    copy(save, 0, save.libxc.saturating_add(nr_bytes).min(save.len()), &mut to)?;
    to.flush().doing("writing the last bytes")
}

/// Opens what is to be written.
fn create(path: &Path) -> Result<BufWriter<File>> {
    let file = File::create(path).doing(format!("making {}", path.display()))?;
    Ok(BufWriter::with_capacity(1 << 20, file))
}

/// Copies the bytes from `start` to `end` of the file, a MiB at a time.
fn copy(save: &SaveFile, start: u64, end: u64, to: &mut impl Write) -> Result<()> {
    let mut at = start;
    while at < end {
        let len = (end - at).min(1 << 20);
        to.write_all(&save.bytes(at, len)?).doing("writing the new file")?;
        at += len;
    }
    Ok(())
}
