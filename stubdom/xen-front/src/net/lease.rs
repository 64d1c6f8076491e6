//! A grant that comes and goes without a hypercall and without changing its reference.

use crate::shared_mem::SharedMem;
use crate::types::Gref;

/// `GTF_permit_access` (`xen/include/public/grant_table.h`).
const GTF_PERMIT_ACCESS: u16 = 1;
/// `GTF_reading` and `GTF_writing`: Xen sets them while the other domain uses the grant.
const GTF_IN_USE: u16 = 8 | 16;

/// A version 1 grant entry whose domain and frame are set for good; only its flags change.
#[derive(Debug)]
pub(super) struct Lease {
    gref: Gref,
    entry: SharedMem,
    lent: bool,
}

impl Lease {
    /// Takes an entry (8 bytes of the grant table) that permits nothing yet.
    pub(super) const fn new(gref: Gref, entry: SharedMem) -> Self {
        Self { gref, entry, lent: false }
    }

    pub(super) const fn gref(&self) -> Gref {
        self.gref
    }

    pub(super) const fn is_lent(&self) -> bool {
        self.lent
    }

    /// Permits access.
    pub(super) fn lend(&mut self) {
        self.lent = true;
        self.entry.write(0, GTF_PERMIT_ACCESS);
    }

    /// Ends access; false while the other domain uses the grant, which then goes on.
    pub(super) fn take_back(&mut self) -> bool {
        let flags: u16 = self.entry.read(0);
        let idle = flags & GTF_IN_USE == 0 && self.entry.replace(0, flags, 0);
        self.lent &= !idle;
        idle
    }
}
