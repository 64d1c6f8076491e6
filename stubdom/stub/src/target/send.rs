//! What a send needs of Xen: a window that stays, and which pages are Xen's own.

use super::TargetXen;
use alloc::vec::Vec;
use control::Stage;
use migration::xen::Errno;
use xen_abi::types::Gfn;
use xen_front::hypercall::{domctl, grant_table, hvm};
use xen_front::memory::{Error, Memory};
use xen_front::shared_mem::SharedMem;
use xen_front::window::{Access, Window};

/// Slots of the window: 128 MiB of the guest stay mapped from pass to pass. Their page tables take 256 KiB.
const NR_SLOTS: usize = 1 << 15;

impl TargetXen {
    /// Gets ready to send: makes the window, if there is none yet.
    ///
    /// # Errors
    /// Pages or addresses have run out.
    pub(crate) fn open_send_window(&mut self, memory: &mut Memory) -> Result<(), Error> {
        if self.sending.is_none() {
            self.sending = Some(Window::new(memory, self.target, NR_SLOTS)?);
        }
        Ok(())
    }

    /// Tells whether a gfn can be looked up by its frame.
    pub(crate) fn has_machine_to_phys(&self) -> bool {
        self.machine_to_phys.is_some()
    }

    pub(crate) fn nr_slots(&self) -> usize {
        NR_SLOTS
    }

    pub(crate) fn show(&mut self, slots: &[(usize, Gfn)], errors: &mut [i32]) {
        self.burn();
        let Self { sending, stages, .. } = self;
        let window = opened(sending);
        stages.time(Stage::Map, || window.map_each(Access::Read, slots, errors));
    }

    pub(crate) fn gfn_at(&self, slot: usize) -> Option<Gfn> {
        self.machine_to_phys?.gfn(self.sending.as_ref()?.mfn(slot)?)
    }

    pub(crate) fn release(&mut self) {
        if let Some(window) = &mut self.sending {
            window.unmap();
        }
    }

    /// Copies bytes of the window to memory that is shared with dom0.
    pub(crate) fn copy_shared(
        &mut self,
        slot: usize,
        offset: usize,
        to: &mut SharedMem,
        at: usize,
        len: usize,
    ) {
        let Self { sending, stages, .. } = self;
        let window = opened(sending);
        stages.time(Stage::Copy, || window.read_shared(slot, offset, to, at, len));
    }

    /// Finds `shared_info`, the grant table and its status frames.
    pub(crate) fn special_pages(&mut self, found: &mut Vec<Gfn>) -> Result<(), Errno> {
        let table = self.machine_to_phys.ok_or(Errno::ENOSYS)?;
        found.push(domctl::getdomaininfo(self.target)?.shared_info);
        let (nr_frames, _) = grant_table::query_size_of(self.target)?;
        self.each_grant_frame(nr_frames, |mfn| found.extend(table.gfn(mfn)))
    }

    pub(crate) fn hvm_param(&mut self, index: u32) -> Result<u64, Errno> {
        hvm::get_param(self.target, index)
    }
}

/// The window of a send, which is opened before one begins.
fn opened(window: &mut Option<Window>) -> &mut Window {
    // PANIC: `Stub::begin_send` has opened it.
    window.as_mut().expect("a send without a window")
}
