//! Grants: pages of ours that another domain may map or copy (`xen/include/public/grant_table.h`, version 1).

use alloc::vec::Vec;

use crate::hypercall::grant_table;
use crate::memory::{self, Memory};
use crate::shared_mem::SharedMem;
use xen_abi::abi::{GNTTAB_NR_RESERVED_ENTRIES, GRANT_ENTRY_V1_BYTES, GTF_permit_access, GTF_readonly};
use xen_abi::errno::Errno;
use xen_abi::types::{Gref, Mfn, PAGE_SIZE};

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
