//! The target's grant table, as the exchange reads it.
//!
//! **Takes** copies of frames of the table. **Gives** the first entry that keeps one of some pages where it is. **Never**
//! trusts an entry: the guest writes it, and may be writing it now.

use core::ops::Range;
use xen_abi::grant_entry::{Version, entries};
use xen_abi::types::{Gfn, Gref};

/// Finds an entry in a frame of the table, the first of which is `first`, that is in force and names one of `pages`.
///
/// Whether anybody has it mapped (`GTF_reading`, `GTF_writing`) does not count: a back end runs on while the guest stands
/// still, and may map the page or copy into it (`GNTTABOP_copy`, which sets these flags for microseconds) at any moment.
/// What is not in force cannot come into force while the guest stands.
pub fn find_granted(version: Version, first: Gref, frame: &[u8], pages: &Range<Gfn>) -> Option<(Gfn, Gref)> {
    let in_force = entries(version, first, frame).filter(|(_, entry)| entry.is_in_force());
    in_force.map(|(gref, entry)| (Gfn::new(entry.frame), gref)).find(|(gfn, _)| pages.contains(gfn))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: Range<Gfn> = Gfn::new(0x1000)..Gfn::new(0x1010);

    fn v1(flags: u16, frame: u32) -> [u8; 8] {
        let mut entry = [0; 8];
        entry[..2].copy_from_slice(&flags.to_le_bytes());
        entry[4..].copy_from_slice(&frame.to_le_bytes());
        entry
    }

    #[test]
    fn every_entry_in_force_counts_mapped_or_not_read_only_or_not() {
        let find = |flags| {
            find_granted(Version::V1, Gref::new(512), &[v1(0, 0), v1(flags, 0x1003)].concat(), &PAGES)
        };
        assert_eq!(find(1), Some((Gfn::new(0x1003), Gref::new(513))), "nobody has it mapped");
        assert_eq!(find(1 | 1 << 2), Some((Gfn::new(0x1003), Gref::new(513))), "read-only");
        assert_eq!(find(1 | 1 << 3), Some((Gfn::new(0x1003), Gref::new(513))));
        assert_eq!(find(1 | 1 << 4), Some((Gfn::new(0x1003), Gref::new(513))));
        assert_eq!(find(1 << 4), None, "an entry not in force");
    }

    #[test]
    fn entries_of_other_pages_do_not_count() {
        let table = [v1(1 | 1 << 4, 0xfff), v1(1 | 1 << 4, 0x1010), v1(1 | 1 << 4, 0x1000)].concat();
        let found = find_granted(Version::V1, Gref::new(0), &table, &PAGES);
        assert_eq!(found, Some((Gfn::new(0x1000), Gref::new(2))));
    }

    #[test]
    fn in_version_2_every_entry_in_force_counts() {
        let mut entry = [0; 16];
        entry[0] = 1;
        entry[8..].copy_from_slice(&0x1005_u64.to_le_bytes());
        let find = |entry: &[u8]| find_granted(Version::V2, Gref::new(0), entry, &PAGES);
        assert_eq!(find(&entry), Some((Gfn::new(0x1005), Gref::new(0))));
        entry[0] = 0;
        assert_eq!(find(&entry), None);
    }
}
