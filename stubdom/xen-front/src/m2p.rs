//! The machine-to-phys table: from a machine frame to the frame of its owner, in one load.

use crate::hypercall::memory;
use crate::traps::probe_load;
use xen_abi::errno::Errno;
use xen_abi::types::{Gfn, Mfn};

/// Values that stand for "no frame" (`INVALID_M2P_ENTRY`) and for a shared frame (`SHARED_M2P_ENTRY`).
const NO_FRAME: core::ops::RangeInclusive<u64> = u64::MAX - 1..=u64::MAX;

/// The table, which Xen maps for every PV guest (`XENMEM_machphys_mapping`).
#[derive(Clone, Copy, Debug)]
pub struct MachineToPhys {
    start: usize,
    max_mfn: Mfn,
}

impl MachineToPhys {
    /// Asks Xen where the table is.
    ///
    /// # Errors
    /// What Xen returned.
    pub fn new() -> Result<Self, Errno> {
        let mapping = memory::machphys_mapping()?;
        let start = usize::try_from(mapping.v_start).map_err(|_| Errno::EFAULT)?;
        Ok(Self { start, max_mfn: Mfn::new(mapping.max_mfn) })
    }

    /// Looks up which frame of its owner `mfn` is; `None` for a frame outside the host's memory, in a hole of the
    /// table, or without an owner's frame.
    ///
    /// The table does *not* say who the owner is, and a guest's frame may be moved by others at any time: confirm the
    /// answer by mapping the gfn and reading the frame back.
    pub fn gfn(&self, mfn: Mfn) -> Option<Gfn> {
        if mfn > self.max_mfn {
            return None;
        }
        let offset = usize::try_from(mfn.raw()).ok()?.checked_mul(size_of::<u64>())?;
        let raw = probe_load(self.start.checked_add(offset)?)?;
        (!NO_FRAME.contains(&raw)).then_some(Gfn::new(raw))
    }
}
