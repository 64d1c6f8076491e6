//! Grant tables: what a guest writes there itself.

use crate::choices::Choices;
use migration::exchange::grants::find_granted;
use migration::exchange_pv::grants::granted;
use xen_abi::grant_entry::Version;
use xen_abi::types::{Gfn, Gref};

/// Reads a table of any bytes, in both versions.
///
/// # Panics
/// A page is named that was not asked for.
pub fn tables(input: &[u8]) {
    let mut choices = Choices::new(input);
    let mut table = vec![0; 4096];
    for _ in 0..choices.below(200) {
        let at = choices.index(table.len() / 8) * 8;
        let entry = [1, 0, choices.byte(), 0, choices.byte() % 4, 0, 0, 0];
        table[at..at + 8].copy_from_slice(&if choices.one_in(4) {
            choices.number().to_le_bytes()
        } else {
            entry
        });
    }
    table.truncate(4096 - choices.index(9));
    let first = choices.below(4);
    let pages = Gfn::new(first)..Gfn::new(first + choices.below(4));
    for version in [Version::V1, Version::V2] {
        let found = find_granted(version, Gref::new(0), &table, &pages);
        assert!(found.is_none_or(|(gfn, _)| pages.contains(&gfn)), "{found:?}, asked for {pages:?}");
        let _ = granted(version, &table);
    }
}
