//! Grants that come and go without a hypercall and without changing their reference.
//!
//! **Takes** a page of ours that holds no Rust value, once. **Gives** the other domain access and takes it away by one store to the grant entry.
//! **Never** says that access has ended while Xen still counts a use of it.
#![allow(unsafe_code, reason = "a handle to one entry of the grant table, which stays mapped for ever")]

use core::sync::atomic::{Ordering, fence};

use super::{Access, GrantTable};
use crate::memory::Pages;
use crate::shared_mem::SharedMem;
use xen_abi::abi::{GRANT_ENTRY_V1_BYTES, GTF_reading, GTF_writing};
use xen_abi::types::{Domid, Gref};

/// A grant entry whose domain, frame and kind of access are set; whether it permits anything changes at will.
#[derive(Debug)]
pub struct Lease {
    gref: Gref,
    entry: SharedMem,
    access: Access,
    lent: bool,
}

impl GrantTable {
    /// Prepares a grant of page `index` to `domid` that permits nothing yet; `None` if no grant is free.
    pub fn lease(&mut self, pages: &Pages, index: usize, domid: Domid, access: Access) -> Option<Lease> {
        // A v1 grant holds 32 bits of frame number: 16 TiB of machine memory.
        let frame = u32::try_from(pages.mfns().get(index)?.raw()).ok()?;
        let gref = self.free.pop()?;
        let (table, offset) = self.entry(gref)?;
        table.write(offset + 2, domid.raw());
        table.write(offset + 4, frame);
        // SAFETY: grant frames stay mapped for ever (`Memory::map_machine`), and nothing but SharedMem touches them.
        let entry = unsafe { table.part(offset, GRANT_ENTRY_V1_BYTES) };
        Some(Lease::new(gref, entry, access))
    }

    /// Ends a lease for good; gives it back while the other domain still uses it.
    ///
    /// # Errors
    /// The other domain still uses the page.
    pub fn end_lease(&mut self, mut lease: Lease) -> Result<(), Lease> {
        if !lease.take_back() {
            return Err(lease);
        }
        self.free.push(lease.gref);
        Ok(())
    }
}

impl Lease {
    /// Takes an entry whose flags are 0.
    pub(crate) const fn new(gref: Gref, entry: SharedMem, access: Access) -> Self {
        Self { gref, entry, access, lent: false }
    }

    /// Returns the reference to tell the other domain.
    pub const fn gref(&self) -> Gref {
        self.gref
    }

    /// Tells whether the other domain may use the page.
    pub const fn is_lent(&self) -> bool {
        self.lent
    }

    /// Permits access.
    pub fn lend(&mut self) {
        self.lent = true;
        fence(Ordering::Release); // what the page and the entry hold is there before the flags that show it
        self.entry.write(0, self.access.flags());
    }

    /// Ends access; false while the other domain uses the page, and then nothing changes.
    pub fn take_back(&mut self) -> bool {
        let flags: u16 = self.entry.read(0);
        let idle = flags & (GTF_reading | GTF_writing) == 0 && self.entry.replace(0, flags, 0);
        self.lent &= !idle;
        idle
    }
}
