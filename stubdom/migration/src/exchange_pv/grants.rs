//! The frames that a guest's grant table names.

use alloc::collections::BTreeMap;
use xen_abi::grant_entry::{Version, entries};
use xen_abi::types::{Gref, Mfn};

/// Returns the frames that valid entries of a table name, each with one of its grants.
///
/// Whether anybody has mapped them does not matter: a PV guest's entries name machine frames, so an exchanged frame would
/// be granted under a number that is no more.
pub fn granted(version: Version, table: &[u8]) -> BTreeMap<Mfn, Gref> {
    let granting = entries(version, Gref::new(0), table).filter(|(_, entry)| entry.permits_access());
    granting.map(|(gref, entry)| (Mfn::new(entry.frame), gref)).collect()
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
}
