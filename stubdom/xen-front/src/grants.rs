//! Grants: pages of ours that another domain may map or copy (`xen/include/public/grant_table.h`, version 1).

use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::sync::atomic::{Ordering, fence};

use crate::abi::{
    GNTTAB_NR_RESERVED_ENTRIES, GRANT_ENTRY_V1_BYTES, GTF_permit_access, GTF_reading, GTF_readonly,
    GTF_writing,
};
use crate::errno::Errno;
use crate::hypercall::grant_table;
use crate::memory::{self, Memory, Page};
use crate::shared_mem::SharedMem;
use crate::types::{Domid, Gref, Mfn, PAGE_SIZE};
use zerocopy::{Immutable, IntoBytes};

mod lease;

pub use lease::Lease;

const ENTRIES_PER_FRAME: usize = PAGE_SIZE / GRANT_ENTRY_V1_BYTES;

/// What the other domain may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

impl Access {
    const fn flags(self) -> u16 {
        match self {
            Self::ReadOnly => GTF_permit_access | GTF_readonly,
            Self::ReadWrite => GTF_permit_access,
        }
    }
}

/// Why the table could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Xen refused.
    Refused(Errno),
    /// The table's frames could not be mapped.
    Memory(memory::Error),
}

/// Our grant table.
pub struct GrantTable {
    frames: Vec<SharedMem>,
    free: Vec<Gref>,
}

impl GrantTable {
    /// Sets the table up with `nr_frames` frames: 512 grants each, less the 8 reserved ones. Once in a domain's life.
    pub fn new(memory: &mut Memory, nr_frames: usize) -> Result<Self, Error> {
        let mut mfns: Vec<Mfn> = (0..nr_frames).map(|_| Mfn::new(0)).collect();
        grant_table::setup_table(&mut mfns).map_err(Error::Refused)?;
        let frames: Result<Vec<_>, _> = mfns.iter().map(|&mfn| memory.map_machine(mfn)).collect();
        let nr_entries = u32::try_from(nr_frames * ENTRIES_PER_FRAME).unwrap_or(u32::MAX);
        let free = (GNTTAB_NR_RESERVED_ENTRIES..nr_entries).rev().map(Gref::new).collect();
        Ok(Self { frames: frames.map_err(Error::Memory)?, free })
    }

    /// Lets `domid` access `page`; gives the page back if no grant is free.
    pub fn grant(&mut self, page: Page, domid: Domid, access: Access) -> Result<Granted, Page> {
        let Some(gref) = self.free.pop() else { return Err(page) };
        let Some((frame, offset)) = self.entry(gref) else { return Err(page) };
        // A v1 grant holds 32 bits of frame number: 16 TiB of machine memory.
        let Ok(mfn) = u32::try_from(page.mfn().raw()) else { return Err(page) };
        frame.write(offset + 2, domid.raw());
        frame.write(offset + 4, mfn);
        fence(Ordering::Release); // the flags last: they make the entry valid
        frame.write(offset, access.flags());
        Ok(Granted { page: ManuallyDrop::new(page), gref })
    }

    /// Ends the access and gives the page back, unless the other domain still has it mapped.
    pub fn end_access(&mut self, granted: Granted) -> Result<Page, Granted> {
        let Some((frame, offset)) = self.entry(granted.gref) else { return Err(granted) };
        loop {
            let flags = frame.read::<u16>(offset);
            if flags & (GTF_reading | GTF_writing) != 0 {
                return Err(granted);
            }
            if frame.replace(offset, flags, 0) {
                break;
            }
        }
        self.free.push(granted.gref);
        Ok(ManuallyDrop::into_inner(granted.page))
    }

    /// Returns how many pages can still be granted.
    pub fn nr_free(&self) -> usize {
        self.free.len()
    }

    fn entry(&mut self, gref: Gref) -> Option<(&mut SharedMem, usize)> {
        let index = gref.raw() as usize;
        let frame = self.frames.get_mut(index / ENTRIES_PER_FRAME)?;
        Some((frame, index % ENTRIES_PER_FRAME * GRANT_ENTRY_V1_BYTES))
    }
}

/// A page that another domain may access. Dropping it leaks the page: the other end may still use it.
#[derive(Debug)]
pub struct Granted {
    page: ManuallyDrop<Page>,
    gref: Gref,
}

impl Granted {
    /// Returns the reference to tell the other domain.
    pub const fn gref(&self) -> Gref {
        self.gref
    }

    /// Copies `bytes` to `offset` of the page.
    pub fn copy_in(&mut self, offset: usize, bytes: &[u8]) {
        self.page.copy_in(offset, bytes);
    }

    /// Writes a value at `offset` bytes of the page.
    pub fn write<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) {
        self.page.write(offset, value);
    }
}

impl Deref for Granted {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.page
    }
}
