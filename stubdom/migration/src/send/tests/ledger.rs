//! What a send costs in calls, as a checked-in table: a change of performance is a reviewable change of a file.
//!
//! `UPDATE_LEDGER=1 cargo test -p migration ledger` writes the table anew.

use super::*;
use alloc::format;
use alloc::string::String;

extern crate std;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/send/tests/ledger.txt");

/// Writes every so many pages, again and again.
fn busy(source: &mut FakeSource, nr_pages: u64, step: usize) {
    for nr in 6..60 {
        let gfns = (0..nr_pages).step_by(step).map(Gfn::new);
        source.acts.insert(nr, gfns.map(|gfn| Act::Write(gfn, nr as u64)).collect());
    }
}

fn row(guest: &str, nr_slots: usize, mode: Mode, source: &mut FakeSource) -> String {
    let tally = send(source, config(mode), usize::MAX).expect("sound");
    let shows = || {
        source.calls.iter().filter_map(|call| match call {
            SendCall::Show(nr) => Some(*nr),
            _ => None,
        })
    };
    let others = source.calls.iter().filter(|call| matches!(call, SendCall::Other(_))).count();
    let how = if mode == Mode::Suspended { "suspended" } else { "live" };
    format!(
        "{guest:<16} {how:<10} {nr_slots:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6}\n",
        tally.nr_passes,
        tally.nr_pages,
        tally.nr_last,
        tally.nr_kept,
        shows().count(),
        shows().sum::<usize>(),
        others,
    )
}

fn table() -> String {
    let mut table = String::from(
        "Calls of one send of 5 regions of 2 MiB, one every region short of a page.\n\n\
         guest            mode        slots passes  pages   last   kept   maps frames others\n",
    );
    let pages = || (0..5 * 512).filter(|gfn| gfn % 512 != 511);
    for nr_slots in [1024, 4096] {
        for (guest, step) in [("quiet", usize::MAX), ("every 64th", 64), ("every 2nd", 2)] {
            for mode in [Mode::Suspended, Mode::Live(BUSY)] {
                let mut source = FakeSource::new(pages(), nr_slots);
                busy(&mut source, 5 * 512, step);
                table += &row(guest, nr_slots, mode, &mut source);
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
