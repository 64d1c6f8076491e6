//! Reading a guest's grant table (`xen/include/public/grant_table.h`).
//!
//! The bytes are the guest's own and any value may stand there.

use alloc::collections::BTreeMap;
use xen_abi::types::{Gref, Mfn};

/// `GTF_type_mask`.
const GTF_TYPE_MASK: u16 = 3;
/// `GTF_permit_access`: the entry names a frame.
const GTF_PERMIT_ACCESS: u16 = 1;

/// How the entries look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `grant_entry_v1_t`: 8 bytes.
    V1,
    /// `grant_entry_v2_t`: 16 bytes.
    V2,
}

/// Returns the frames that valid entries of a table name, each with one of its grants.
///
/// Whether anybody has mapped them does not matter: a PV guest's entries name machine frames, so an exchanged frame would
/// be granted under a number that is no more.
pub fn granted(version: Version, table: &[u8]) -> BTreeMap<Mfn, Gref> {
    let size = if version == Version::V1 { 8 } else { 16 };
    let entries = table.chunks_exact(size).zip(0..).map(|(entry, gref)| (entry, Gref::new(gref)));
    entries.filter_map(|(entry, gref)| frame(version, entry).map(|mfn| (mfn, gref))).collect()
}

fn frame(version: Version, entry: &[u8]) -> Option<Mfn> {
    let flags = u16::from_le_bytes(*entry.first_chunk()?);
    if flags & GTF_TYPE_MASK != GTF_PERMIT_ACCESS {
        return None;
    }
    Some(Mfn::new(match version {
        Version::V1 => u32::from_le_bytes(*entry.get(4..)?.first_chunk()?).into(),
        Version::V2 => u64::from_le_bytes(*entry.get(8..)?.first_chunk()?),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_that_permit_access_name_frames() {
        let v1 = [
            [0, 0, 7, 0, 0x11, 0, 0, 0],    // GTF_invalid
            [1, 0, 7, 0, 0x22, 1, 0, 0],    // GTF_permit_access
            [2, 0, 7, 0, 0x33, 0, 0, 0],    // GTF_accept_transfer: no frame yet
            [0x19, 0, 0, 0, 0x44, 0, 0, 0], // and mapped by somebody
        ];
        let granted = granted(Version::V1, v1.as_flattened());
        let expected = [(Mfn::new(0x122), Gref::new(1)), (Mfn::new(0x44), Gref::new(3))];
        assert_eq!(granted, expected.into());
    }

    #[test]
    fn an_entry_of_version_two_names_its_frame_in_eight_bytes() {
        let v2 = [1, 0, 7, 0, 9, 9, 9, 9, 0x22, 1, 0, 0, 1, 0, 0, 0, 1, 0, 3];
        let expected = [(Mfn::new(0x1_0000_0122), Gref::new(0))];
        assert_eq!(granted(Version::V2, &v2), expected.into());
    }
}
