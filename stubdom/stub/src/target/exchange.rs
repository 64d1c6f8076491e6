//! What an exchange needs of Xen beyond a reception.

use super::{NR_GRANT_FRAMES, TargetXen, in_window};
use alloc::vec;
use alloc::vec::Vec;
use migration::exchange::grants::find_granted;
use migration::xen::{Access, Errno, PageType, XenExchange};
use xen_abi::grant_entry::Version;
use xen_abi::types::{Gfn, Gref, Mfn, PAGE_SIZE};
use xen_front::hypercall::hvm::{self, MemType};
use xen_front::hypercall::memory::{self, Resource};
use xen_front::hypercall::{dm_op, grant_table};
use xen_front::window;

/// Frames of a table of version 2, 256 entries each, to one of its status, 2,048 words (`grant_to_status_frames`).
const SHARED_A_STATUS_FRAME: usize = 8;

impl TargetXen {
    /// Maps frames of the target's grant table, `first` and as many as there is room for; gives how many.
    fn map_grant_table(&mut self, first: usize, end: usize) -> Result<usize, Errno> {
        let mut mfns = [Mfn::new(0); NR_GRANT_FRAMES];
        let mut errors = [0; NR_GRANT_FRAMES];
        let nr_frames = end.saturating_sub(first).min(NR_GRANT_FRAMES);
        let (mfns, errors) = (&mut mfns[..nr_frames], &mut errors[..nr_frames]);
        memory::acquire_resource(self.target, Resource::GrantTableShared, first as u64, mfns)?;
        self.grants.map_mfns(window::Access::Read, mfns, errors);
        errors.iter().find(|error| **error != 0).map_or(Ok(nr_frames), |error| Err(Errno::new(*error)))
    }

    /// Names each frame of the grant table, which has `nr_frames`, and of its status.
    pub(super) fn each_grant_frame(&self, nr_frames: u32, mut name: impl FnMut(Mfn)) -> Result<(), Errno> {
        let nr_frames = usize::try_from(nr_frames).unwrap_or(usize::MAX);
        self.each_of(Resource::GrantTableShared, nr_frames, &mut name)?;
        match self.grant_version() {
            Version::V1 => Ok(()),
            Version::V2 => {
                self.each_of(Resource::GrantTableStatus, nr_frames.div_ceil(SHARED_A_STATUS_FRAME), &mut name)
            }
        }
    }

    /// Names the first `nr_frames` frames of a resource; asks for no more, since Xen would make them.
    fn each_of(&self, resource: Resource, nr_frames: usize, name: &mut impl FnMut(Mfn)) -> Result<(), Errno> {
        let mut mfns = [Mfn::new(0); NR_GRANT_FRAMES];
        for first in (0..nr_frames).step_by(NR_GRANT_FRAMES) {
            let mfns = &mut mfns[..NR_GRANT_FRAMES.min(nr_frames - first)];
            memory::acquire_resource(self.target, resource, first as u64, mfns)?;
            mfns.iter().copied().for_each(&mut *name);
        }
        Ok(())
    }

    /// Tells which layout the target has chosen: only version 2 has status frames.
    fn grant_version(&self) -> Version {
        let mut status = [Mfn::new(0)];
        match memory::acquire_resource(self.target, Resource::GrantTableStatus, 0, &mut status) {
            Ok(()) => Version::V2,
            Err(_) => Version::V1,
        }
    }
}

impl XenExchange for TargetXen {
    fn map_at(&mut self, first: usize, access: Access, gfns: &[Gfn], errors: &mut [i32]) {
        self.burn();
        self.window.map_at(first, in_window(access), gfns, errors);
    }

    fn unmap_at(&mut self, slot: usize) {
        self.burn();
        self.window.unmap_at(slot);
    }

    fn copy(&mut self, from: usize, to: usize) {
        self.window.copy_frame(from, to);
    }

    fn read(&self, slot: usize, page: &mut [u8; PAGE_SIZE]) {
        self.window.read(slot, 0, page);
    }

    fn equal(&self, left: usize, right: usize) -> bool {
        self.window.frames_match(left, right)
    }

    fn gfn(&self, mfn: Mfn) -> Option<Gfn> {
        self.machine_to_phys?.gfn(mfn)
    }

    fn retain_orphans(&mut self, frames: &mut Vec<Mfn>) {
        let mut errors = vec![0; frames.len()];
        self.window.map_mfns(window::Access::Read, frames, &mut errors);
        self.window.unmap();
        let mut errors = errors.into_iter();
        frames.retain(|mfn| errors.next() == Some(0) && self.gfn(*mfn).is_none());
    }

    fn move_page(&mut self, from: Gfn, to: Gfn) -> Result<(), Errno> {
        self.burn();
        memory::add_to_physmap(self.target, from, to)
    }

    fn page_type(&mut self, gfn: Gfn) -> Result<PageType, Errno> {
        self.burn();
        Ok(match hvm::get_mem_type(self.target, gfn)? {
            MemType::RamRw => PageType::Ram,
            MemType::RamRo => PageType::ReadOnly,
            MemType::MmioDm => PageType::None,
            MemType::IoreqServer => PageType::Ioreq,
        })
    }

    fn set_read_only(&mut self, gfn: Gfn) -> Result<(), Errno> {
        self.burn();
        dm_op::set_mem_type(self.target, MemType::RamRo, gfn, 1)
    }

    fn note_modified(&mut self, first: Gfn, nr_frames: u64) -> Result<(), Errno> {
        self.burn();
        let nr_frames = u32::try_from(nr_frames).map_err(|_| Errno::E2BIG)?;
        dm_op::modified_memory(self.target, first, nr_frames)
    }

    fn param(&mut self, index: u32) -> Result<u64, Errno> {
        self.burn();
        hvm::get_param(self.target, index)
    }

    fn grant_in_force(&mut self, first: Gfn, nr_frames: u64) -> Result<Option<(Gfn, Gref)>, Errno> {
        self.burn();
        let pages = first..first.checked_add(nr_frames).ok_or(Errno::EINVAL)?;
        let version = self.grant_version();
        let (nr_frames, _) = grant_table::query_size_of(self.target)?;
        let end = usize::try_from(nr_frames).unwrap_or(usize::MAX);
        let mut frame = vec![0; PAGE_SIZE];
        let mut found = None;
        for first in (0..end).step_by(NR_GRANT_FRAMES) {
            for slot in 0..self.map_grant_table(first, end)? {
                self.grants.read(slot, 0, &mut frame);
                let gref = (first + slot).saturating_mul(version.entries_a_frame());
                let gref = Gref::new(u32::try_from(gref).unwrap_or(u32::MAX));
                found = found.or_else(|| find_granted(version, gref, &frame, &pages));
            }
        }
        self.grants.unmap();
        Ok(found)
    }

    // A look that changes nothing: no place for the fuse.
    fn is_grant_table(&mut self, mfn: Mfn) -> Result<bool, Errno> {
        let (nr_frames, _) = grant_table::query_size_of(self.target)?;
        let mut is_found = false;
        self.each_grant_frame(nr_frames, |frame| is_found |= frame == mfn)?;
        Ok(is_found)
    }
}
