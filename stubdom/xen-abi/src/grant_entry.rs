//! Entries of a guest's grant table (`xen/include/public/grant_table.h`).
//!
//! **Takes** copies of a table's frames. **Gives** its entries. **Never** trusts one: the guest writes them, and any
//! bytes are an entry.

use crate::abi::{GRANT_ENTRY_V1_BYTES, GRANT_ENTRY_V2_BYTES, GTF_permit_access, GTF_type_mask};
use crate::types::{Gref, PAGE_SIZE};

/// Which layout the entries have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `grant_entry_v1_t`: flags, domid, 32 bits of frame.
    V1,
    /// `grant_entry_v2_t`: flags, domid, padding, 64 bits of frame.
    V2,
}

impl Version {
    /// Returns the size of an entry in bytes.
    pub const fn entry_bytes(self) -> usize {
        match self {
            Self::V1 => GRANT_ENTRY_V1_BYTES,
            Self::V2 => GRANT_ENTRY_V2_BYTES,
        }
    }

    /// Returns how many entries a frame of the table has.
    pub const fn entries_a_frame(self) -> usize {
        PAGE_SIZE / self.entry_bytes()
    }
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    flags: u16,
    /// The frame that it names: a gfn of a translated guest, a machine frame of a PV guest.
    pub frame: u64,
}

impl Entry {
    /// Tells whether the entry has any type (`GTF_type_mask`): another domain may map the frame, or hand a frame over.
    ///
    /// Whether anybody has it mapped (`GTF_reading`, `GTF_writing`) does not count.
    pub const fn is_in_force(&self) -> bool {
        self.flags & GTF_type_mask != 0
    }

    /// Tells whether another domain may map the frame (`GTF_permit_access`).
    pub const fn permits_access(&self) -> bool {
        self.flags & GTF_type_mask == GTF_permit_access
    }

    fn parse(version: Version, bytes: &[u8]) -> Option<Self> {
        let frame = match version {
            Version::V1 => u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?).into(),
            Version::V2 => u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?),
        };
        Some(Self { flags: u16::from_le_bytes(*bytes.first_chunk()?), frame })
    }
}

/// Returns the whole entries in `table`, a part of a grant table whose first entry is `first`.
pub fn entries(version: Version, first: Gref, table: &[u8]) -> impl Iterator<Item = (Gref, Entry)> {
    let parsed =
        table.chunks_exact(version.entry_bytes()).filter_map(move |bytes| Entry::parse(version, bytes));
    (first.raw()..).map(Gref::new).zip(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn an_entry_of_version_1_is_eight_bytes_with_its_frame_in_the_last_four() {
        let table =
            [[0, 0, 7, 0, 0x11, 0, 0, 0], [0x19, 0, 7, 0, 0x22, 1, 0, 0], [2, 0, 7, 0, 0x33, 0, 0, 0]];
        let read: Vec<_> = entries(Version::V1, Gref::new(512), table.as_flattened())
            .map(|(gref, entry)| (gref.raw(), entry.frame, entry.is_in_force(), entry.permits_access()))
            .collect();
        assert_eq!(read, [(512, 0x11, false, false), (513, 0x122, true, true), (514, 0x33, true, false)]);
    }

    #[test]
    fn an_entry_of_version_2_is_sixteen_bytes_with_its_frame_in_the_last_eight() {
        let table = [1, 0, 7, 0, 9, 9, 9, 9, 0x22, 1, 0, 0, 1, 0, 0, 0, 1, 0, 3];
        let read: Vec<_> = entries(Version::V2, Gref::new(0), &table).collect();
        assert_eq!(
            read,
            vec![(Gref::new(0), Entry { flags: 1, frame: 0x1_0000_0122 })],
            "and no part of one"
        );
    }
}
