//! The real implementor of [`migration::xen::Xen`]: hypercalls on the stub's target, and the window.

mod exchange;
mod send;
mod stages;

pub(crate) use stages::Stages;

use control::Stage;
use migration::xen::{self, Access, EXCHANGE_FRAMES, Errno};
use xen_abi::abi::{GRANT_ENTRY_V1_BYTES, GTF_permit_access};
use xen_abi::types::{Domid, Gfn, Gref, Mfn, Order};
use xen_front::clock::Clock;
use xen_front::hypercall::hvm;
use xen_front::hypercall::memory::{self, Resource};
use xen_front::m2p::MachineToPhys;
use xen_front::memory::{Error, Memory};
use xen_front::shared_mem::SharedMem;
use xen_front::target::Target;
use xen_front::window::{self, Window};

/// Frames of the target's grant table that are looked at at once: as many as Xen allows by default (`gnttab_max_frames`).
const NR_GRANT_FRAMES: usize = 64;

/// The target, and the window onto its frames.
pub(crate) struct TargetXen {
    target: Target,
    window: Window,
    grants: Window,
    /// The window of sends, once there was one.
    sending: Option<Window>,
    machine_to_phys: Option<MachineToPhys>,
    /// Calls until a panic: a test of what a dying stub leaves.
    fuse: Option<u32>,
    /// Where the time goes.
    pub(crate) stages: Stages,
}

impl TargetXen {
    pub(crate) fn new(memory: &mut Memory, target: Target, clock: Clock) -> Result<Self, Error> {
        let window = Window::new(memory, target, EXCHANGE_FRAMES)?;
        let grants = Window::new(memory, target, NR_GRANT_FRAMES)?;
        let machine_to_phys = MachineToPhys::new();
        if let Err(errno) = &machine_to_phys {
            log::warn!("no machine-to-phys table: {errno}");
        }
        let stages = Stages::new(clock);
        let machine_to_phys = machine_to_phys.ok();
        Ok(Self { target, window, grants, sending: None, machine_to_phys, fuse: None, stages })
    }

    /// Has the call to Xen after `nr_calls` more panic instead.
    pub(crate) fn set_fuse(&mut self, nr_calls: Option<u32>) {
        self.fuse = nr_calls;
    }

    /// Counts a call to Xen.
    fn burn(&mut self) {
        match &mut self.fuse {
            None => {}
            Some(0) => panic!("the fuse that stubctl set has burnt down"),
            Some(nr_left) => *nr_left -= 1,
        }
    }

    /// The domain itself.
    pub(crate) fn target(&self) -> Target {
        self.target
    }

    /// [`Xen::fill`](xen::Xen::fill) from memory that is shared with dom0.
    pub(crate) fn fill_shared(
        &mut self,
        slot: usize,
        offset: usize,
        from: &SharedMem,
        at: usize,
        len: usize,
    ) {
        let Self { window, stages, .. } = self;
        stages.time(Stage::Copy, || window.write_shared(slot, offset, from, at, len));
    }

    /// Shows machine frame `mfn` alone in the window.
    fn map_mfn(&mut self, mfn: Mfn) -> Result<(), Errno> {
        let mut errors = [0];
        self.window.map_mfns(window::Access::Write, &[mfn], &mut errors);
        if errors[0] == 0 { Ok(()) } else { Err(Errno::new(errors[0])) }
    }
}

impl xen::Xen for TargetXen {
    fn populate_physmap(&mut self, order: Order, extents: &[Gfn]) -> usize {
        self.burn();
        let target = self.target;
        self.stages.time(Stage::Populate, || memory::populate_physmap(target, order, extents).unwrap_or(0))
    }

    fn decrease_reservation(&mut self, order: Order, extents: &[Gfn]) -> usize {
        self.burn();
        let target = self.target;
        self.stages
            .time(Stage::Populate, || memory::decrease_reservation(target, order, extents).unwrap_or(0))
    }

    fn map(&mut self, access: Access, gfns: &[Gfn], errors: &mut [i32]) {
        self.burn();
        let Self { window, stages, .. } = self;
        stages.time(Stage::Map, || window.map(in_window(access), gfns, errors));
    }

    fn unmap(&mut self) {
        self.burn();
        let Self { window, stages, .. } = self;
        stages.time(Stage::Map, || window.unmap());
    }

    fn fill(&mut self, slot: usize, offset: usize, bytes: &[u8]) {
        let Self { window, stages, .. } = self;
        stages.time(Stage::Copy, || window.write(slot, offset, bytes));
    }

    fn matches(&self, slot: usize, offset: usize, bytes: &[u8]) -> bool {
        self.window.matches(slot, offset, bytes)
    }

    fn zero(&mut self, slot: usize) {
        self.window.zero(slot);
    }

    fn mfn(&self, slot: usize) -> Option<Mfn> {
        self.window.mfn(slot)
    }

    fn set_param(&mut self, index: u32, value: u64) -> Result<(), Errno> {
        hvm::set_param(self.target, index, value)
    }

    fn seed_grant(&mut self, gref: Gref, domid: Domid, frame: Gfn) -> Result<(), Errno> {
        let mut table = [Mfn::new(0)];
        memory::acquire_resource(self.target, Resource::GrantTableShared, 0, &mut table)?;
        // A version 1 entry holds 32 bits of frame number.
        let frame = u32::try_from(frame.raw()).map_err(|_| Errno::EINVAL)?;
        self.map_mfn(table[0])?;
        let offset = gref.raw() as usize * GRANT_ENTRY_V1_BYTES;
        // The flags last: they make the entry valid.
        self.window.write(0, offset + 4, &frame.to_le_bytes());
        self.window.write(0, offset + 2, &domid.raw().to_le_bytes());
        self.window.write(0, offset, &GTF_permit_access.to_le_bytes());
        self.window.unmap();
        Ok(())
    }

    fn current_reservation(&mut self) -> Result<u64, Errno> {
        memory::current_reservation(self.target.domid())
    }
}

fn in_window(access: Access) -> window::Access {
    match access {
        Access::Read => window::Access::Read,
        Access::Write => window::Access::Write,
    }
}
