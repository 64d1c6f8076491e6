//! What a restore costs in hypercalls, as a checked-in table: a change of performance is a reviewable change of a file.
//!
//! `UPDATE_LEDGER=1 cargo test -p migration ledger` writes the table anew.

use super::*;
use alloc::format;
use alloc::string::String;

extern crate std;

const REGIONS: u64 = 5;
const PAGES: u64 = REGIONS * 512;
const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/restore/tests/ledger.txt");

/// A small generator of numbers (xorshift), the same on every machine.
fn shuffle(entries: &mut [Entry]) {
    let mut word = 0x2545_f491_4f6c_dd1d_u64;
    for last in (1..entries.len()).rev() {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        let other = usize::try_from(word % (last as u64 + 1)).expect("an index");
        entries.swap(last, other);
    }
}

/// Each pattern's name and its entries.
fn patterns() -> [(&'static str, Vec<Entry>); 6] {
    let in_order: Vec<Entry> = data(0..PAGES).collect();
    let mut shuffled = in_order.clone();
    shuffle(&mut shuffled);
    let with_hole: Vec<Entry> = data(0..0xa0).chain(holes(0xa0..0xc0)).chain(data(0xc0..PAGES)).collect();
    let mut holes_shuffled = with_hole.clone();
    shuffle(&mut holes_shuffled);
    let dirtied = in_order.iter().copied().chain(data(0..PAGES).step_by(16)).collect();
    [
        ("in order", in_order.clone()),
        ("reversed", in_order.into_iter().rev().collect()),
        ("shuffled", shuffled),
        ("VGA hole", with_hole),
        ("VGA hole, shuffled", holes_shuffled),
        ("second pass", dirtied),
    ]
}

fn hosts() -> [(&'static str, Bench); 4] {
    let mut fragmented = Bench::new(PAGES + 600);
    fragmented.xen.fragment(Order::PAGE_2M, usize::MAX);
    let mut scarce = Bench::new(PAGES + 600);
    scarce.xen.fragment(Order::PAGE_2M, 30);
    [
        ("roomy", Bench::new(PAGES + 600)),
        ("tight", Bench::new(PAGES)),
        ("two superpages", scarce),
        ("fragmented", fragmented),
    ]
}

fn row(pattern: &str, batch_pages: usize, host: &str, bench: &mut Bench, entries: &[Entry]) -> String {
    let mut writer = Writer::begin();
    entries.chunks(batch_pages).for_each(|batch| writer.pages(batch));
    writer.finish(&[]);
    let report = bench.restore(&writer.bytes, 65_536).expect("sound");
    let count = |kind| bench.xen.ledger.count(kind);
    format!(
        "{pattern:<18} {batch_pages:>5} {host:<14} {:>5} {:>5} {:>5} {:>6} {:>5} {:>5} {:>5} {:>5} {:>6} {:>5}\n",
        count("populate 1G"),
        count("populate 2M"),
        count("populate 4K"),
        bench.xen.ledger.nr_short(),
        count("decrease 2M"),
        count("decrease 4K"),
        count("map"),
        count("unmap"),
        report.target.census.nr_2m,
        report.target.census.nr_4k,
    )
}

fn table() -> String {
    let mut table = String::from(
        "Hypercalls of one restore of 5 regions of 2 MiB, and what the guest ends up with.\n\n\
         pattern            batch host            p 1G  p 2M  p 4K  short  d 2M  d 4K   map unmap has 2M    4K\n",
    );
    for (pattern, entries) in patterns() {
        for batch_pages in [1, 7, 1024] {
            for (host, mut bench) in hosts() {
                table += &row(pattern, batch_pages, host, &mut bench, &entries);
            }
        }
    }
    table
}

#[test]
fn the_ledger_is_the_one_that_was_reviewed() {
    let table = table();
    if std::env::var_os("UPDATE_LEDGER").is_some() {
        std::fs::write(TABLE, &table).expect("a writable source tree");
    }
    let reviewed = std::fs::read_to_string(TABLE).expect("the checked-in table");
    let changed = table.lines().zip(reviewed.lines()).find(|(now, then)| now != then);
    assert_eq!(changed, None, "UPDATE_LEDGER=1 writes it anew; review the difference");
    assert_eq!(table.len(), reviewed.len());
}
