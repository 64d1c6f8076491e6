//! Runs in dom0: says whether two save files hold the same guest.
//!
//! `nest-same ONE OTHER` takes two files of `xl save`, made while the guest was suspended. They may name different holes and cut
//! pages into records as they like. It ends with 0 when a receiver makes the same of both, 1 when not, 2 when it could not
//! look. Of the state that goes on while a guest is suspended (times and counters) only the length is compared.

use clap::Parser;
use e2e::error::Result;
use e2e::savefile::{PAGE_BYTES, SaveFile, kind};
use std::path::PathBuf;
use std::process::ExitCode;

/// Most differences told one by one.
const MAX_TOLD: usize = 10;

/// Compares two save files.
#[derive(Parser)]
struct Arguments {
    /// One.
    one: PathBuf,
    /// The other.
    other: PathBuf,
}

fn main() -> ExitCode {
    match compare(&Arguments::parse()) {
        Ok((nr_equal, differences)) => {
            differences.iter().take(MAX_TOLD).for_each(|text| println!("{text}"));
            let same = differences.is_empty() && nr_equal > 0;
            println!(
                "same: {} equal={nr_equal} different={}",
                if same { "right" } else { "WRONG" },
                differences.len()
            );
            ExitCode::from(u8::from(!same))
        }
        Err(error) => {
            eprintln!("nest-same: {error}");
            ExitCode::from(2)
        }
    }
}

fn compare(arguments: &Arguments) -> Result<(usize, Vec<String>)> {
    let (one, other) = (SaveFile::open(&arguments.one)?, SaveFile::open(&arguments.other)?);
    let mut differences = state(&one, &other)?;
    let with_data = |file: &SaveFile| -> Result<Vec<(u64, u64)>> {
        Ok(file.last_versions()?.into_iter().filter_map(|(pfn, data)| Some((pfn, data?))).collect())
    };
    let (left, right) = (with_data(&one)?, with_data(&other)?);
    let gfns = |pages: &[(u64, u64)]| pages.iter().map(|(pfn, _)| *pfn).collect::<Vec<_>>();
    if gfns(&left) != gfns(&right) {
        let only = |here: &[(u64, u64)], there: &[(u64, u64)]| {
            let there = gfns(there);
            gfns(here).into_iter().filter(|pfn| there.binary_search(pfn).is_err()).collect::<Vec<_>>()
        };
        differences.push(format!("pages of one alone: {:x?}", only(&left, &right)));
        differences.push(format!("pages of the other alone: {:x?}", only(&right, &left)));
        return Ok((0, differences));
    }
    let mut nr_equal = 0;
    for ((pfn, here), (_, there)) in left.iter().zip(&right) {
        if one.bytes(*here, PAGE_BYTES)? == other.bytes(*there, PAGE_BYTES)? {
            nr_equal += 1;
        } else {
            differences.push(format!("pfn {pfn:#x}: the contents differ"));
        }
    }
    Ok((nr_equal, differences))
}

/// What differs beside memory: kinds and order of records, static data, parameters, sizes.
fn state(one: &SaveFile, other: &SaveFile) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let mut expect = |what: &str, is_equal: bool| {
        if !is_equal {
            differences.push(format!("{what} differ"));
        }
    };
    let kinds = |file: &SaveFile| {
        let mut kinds: Vec<u32> = file.records.iter().map(|record| record.kind).collect();
        kinds.dedup(); // as many records of pages as a sender likes
        kinds
    };
    expect("the kinds of records, in their order,", kinds(one) == kinds(other));
    let headers = |file: &SaveFile| file.bytes(file.libxc, file.first_record() - file.libxc);
    expect("the headers", headers(one)? == headers(other)?);
    for (what, kind) in [("CPUID policies", kind::X86_CPUID_POLICY), ("MSR policies", kind::X86_MSR_POLICY)] {
        expect(what, one.body_of(kind)? == other.body_of(kind)?);
    }
    expect("the HVM parameters", one.hvm_params()? == other.hvm_params()?);
    // Mode and frequency, incarnation; the nanoseconds between them go on.
    let tsc = |file: &SaveFile| -> Result<_> {
        let body = file.body_of(kind::X86_TSC_INFO)?;
        Ok((body.len(), body[..8].to_vec(), body[16..].to_vec()))
    };
    expect("the TSC's mode and frequency", tsc(one)? == tsc(other)?);
    let context = |file: &SaveFile| file.first(kind::HVM_CONTEXT).map(|record| record.len);
    expect("the lengths of the HVM context", context(one)? == context(other)?);
    Ok(differences)
}
