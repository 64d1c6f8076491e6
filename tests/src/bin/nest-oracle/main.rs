//! Runs in dom0: says whether a paused domain's memory is what the stream says, page by page.
//!
//! `nest-oracle FILE DOMAIN` takes a file of `xl save` and a domain restored from it with `xl restore -p`. For each page
//! the stream's last version counts. It ends with 0 when all is equal, 1 when not, 2 when it could not look.
//!
//! What a receiver may change is excepted by name: the rings of xenstore and console and the pages of the ioreq server,
//! which the receiver clears and the toolstack and the device model then use (`tools/libs/guest/
//! xg_sr_restore_x86_hvm.c`). Frames that the stream does not name are not looked for: how many pages the guest owns tells.

use clap::Parser;
use e2e::error::{Doing, Result};
use e2e::foreign::{Foreign, PAGE_BYTES};
use e2e::savefile::{self, SaveFile};
use e2e::xenctrl::Xenctrl;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

/// Frames mapped, or asked about, at a time; Xen takes no more types in a call.
const BATCH: usize = 1024;

/// Most differences told one by one.
const MAX_TOLD: usize = 10;

/// Indices of HVM parameters that name special pages (`xen/hvm/params.h`).
mod param {
    pub(super) const STORE_PFN: u64 = 1;
    pub(super) const IOREQ_PFN: u64 = 5;
    pub(super) const BUFIOREQ_PFN: u64 = 6;
    pub(super) const CONSOLE_PFN: u64 = 17;
    pub(super) const IOREQ_SERVER_PFN: u64 = 32;
    pub(super) const NR_IOREQ_SERVER_PAGES: u64 = 33;
}

/// Compares a paused domain's memory with the stream it came from.
#[derive(Parser)]
struct Arguments {
    /// The file of `xl save`.
    file: PathBuf,
    /// The domain's number.
    domid: u32,
}

/// What was found.
#[derive(Debug, Default)]
struct Findings {
    nr_equal: usize,
    nr_different: usize,
    nr_missing: usize,
    nr_extra: usize,
    nr_excepted: usize,
}

impl Findings {
    fn all_right(&self) -> bool {
        self.nr_different + self.nr_missing + self.nr_extra == 0 && self.nr_equal > 0
    }

    /// Prints a difference, unless enough were printed.
    fn tell(&self, what: impl std::fmt::Display) {
        if self.nr_different + self.nr_missing + self.nr_extra <= MAX_TOLD {
            println!("{what}");
        }
    }
}

fn main() -> ExitCode {
    match compare(&Arguments::parse()) {
        Ok(findings) => {
            let Findings { nr_equal, nr_different, nr_missing, nr_extra, nr_excepted } = findings;
            println!(
                "oracle: {} equal={nr_equal} different={nr_different} missing={nr_missing} extra={nr_extra} \
                 excepted={nr_excepted}",
                if findings.all_right() { "right" } else { "WRONG" }
            );
            ExitCode::from(u8::from(!findings.all_right()))
        }
        Err(error) => {
            eprintln!("nest-oracle: {error}");
            ExitCode::from(2)
        }
    }
}

fn compare(arguments: &Arguments) -> Result<Findings> {
    let save = SaveFile::open(&arguments.file)?;
    let wanted = save.last_versions()?;
    let excepted = special_pages(&save)?;
    let foreign = Foreign::open(arguments.domid).doing("opening libxenforeignmemory")?;
    let mut findings = Findings::default();
    let mut pages = Pages::default();
    let (filled, holes): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, data)| data.is_some());
    for batch in filled.chunks(BATCH) {
        let frames: Vec<u64> = batch.iter().map(|(pfn, _)| *pfn).collect();
        let mapped = foreign.map(&frames).doing("mapping the domain's memory")?;
        for (place, (pfn, _)) in batch.iter().enumerate() {
            if excepted.contains(pfn) {
                findings.nr_excepted += 1;
                continue;
            }
            let expected = pages.read(&save, &batch[place..])?;
            if mapped.equals(place, expected) == Some(true) {
                findings.nr_equal += 1;
            } else {
                judge(&mut findings, *pfn, expected, mapped.page(place));
            }
        }
    }
    let xen = Xenctrl::open().doing("opening libxenctrl")?;
    for batch in holes.chunks(BATCH) {
        let frames: Vec<u64> = batch.iter().map(|(pfn, _)| *pfn).collect();
        let filled = xen.have_memory(arguments.domid, &frames).doing("asking where the domain has memory")?;
        for pfn in frames.iter().zip(filled).filter_map(|(pfn, filled)| filled.then_some(pfn)) {
            if excepted.contains(pfn) {
                findings.nr_excepted += 1;
            } else {
                findings.nr_extra += 1;
                findings
                    .tell(format_args!("pfn {pfn:#x}: a hole in the stream, the domain has a frame there"));
            }
        }
    }
    Ok(findings)
}

/// Pages of the file that stand behind one another, read in one go.
#[derive(Default)]
struct Pages {
    offset: u64,
    bytes: Vec<u8>,
}

impl Pages {
    /// The first page of these, which has contents. Reads as many of the others with it as stand behind it in the file.
    fn read(&mut self, save: &SaveFile, named: &[(u64, Option<u64>)]) -> Result<&[u8]> {
        let first = named.first().and_then(|(_, data)| *data).unwrap_or_default();
        let is_here = (self.offset..self.offset + self.bytes.len() as u64).contains(&first);
        if !is_here {
            let follow =
                (first..).step_by(PAGE_BYTES).zip(named).take_while(|(at, (_, data))| *data == Some(*at));
            self.bytes = save.bytes(first, follow.count() as u64 * savefile::PAGE_BYTES)?;
            self.offset = first;
        }
        let at = usize::try_from(first - self.offset).doing("finding a page among those that were read")?;
        Ok(&self.bytes[at..at + PAGE_BYTES])
    }
}

/// One page against the stream, unless they are equal.
fn judge(findings: &mut Findings, pfn: u64, expected: &[u8], found: Option<Vec<u8>>) {
    let Some(found) = found else {
        findings.nr_missing += 1;
        findings.tell(format_args!("pfn {pfn:#x}: the stream has it, the domain has no frame there"));
        return;
    };
    findings.nr_different += 1;
    let at = expected.iter().zip(&found).position(|(a, b)| a != b).unwrap_or(0);
    let nr_bytes = expected.iter().zip(&found).filter(|(a, b)| a != b).count();
    let (expected, found) = (expected[at], found[at]);
    findings.tell(format_args!(
        "pfn {pfn:#x}: {nr_bytes} bytes differ, the first at {at:#x}: expected {expected:#04x}, got {found:#04x}"
    ));
}

/// The pages that the receiver may change, by the stream's own HVM parameters.
fn special_pages(save: &SaveFile) -> Result<BTreeSet<u64>> {
    let params: BTreeMap<u64, u64> = save.hvm_params()?.into_iter().collect();
    let single = [param::STORE_PFN, param::CONSOLE_PFN, param::IOREQ_PFN, param::BUFIOREQ_PFN];
    let mut pages: BTreeSet<u64> = single.iter().filter_map(|index| params.get(index).copied()).collect();
    if let Some(first) = params.get(&param::IOREQ_SERVER_PFN) {
        let count = params.get(&param::NR_IOREQ_SERVER_PAGES).copied().unwrap_or(0).min(64);
        pages.extend((0..count).filter_map(|number| first.checked_add(number)));
    }
    Ok(pages)
}
