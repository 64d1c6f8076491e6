//! `memory_op`: the target's reservation and its physmap (`xen/include/public/memory.h`).
#![allow(unsafe_code, reason = "hypercalls; each block names why its call cannot touch our own memory")]

use super::raw::{address, address_mut, call};
use crate::ledger::Hypercall;
use crate::target::Target;
use xen_abi::abi::*;
use xen_abi::errno::Errno;
use xen_abi::types::{Domid, Gfn, Mfn, Order};

/// Populates extents of `order` at `gfns` of the target; returns how many, from the first, Xen could populate.
///
/// A short count is no error: Xen has no contiguous memory, the target is at `max_pages`, or a gfn is taken.
pub fn populate_physmap(target: Target, order: Order, gfns: &[Gfn]) -> Result<usize, Errno> {
    reservation(Hypercall::PopulatePhysmap, XENMEM_populate_physmap, target, order, gfns)
}

/// Takes extents of `order` at `gfns` away from the target; returns how many, from the first, are gone.
pub fn decrease_reservation(target: Target, order: Order, gfns: &[Gfn]) -> Result<usize, Errno> {
    reservation(Hypercall::DecreaseReservation, XENMEM_decrease_reservation, target, order, gfns)
}

fn reservation(kind: Hypercall, op: u64, target: Target, order: Order, gfns: &[Gfn]) -> Result<usize, Errno> {
    let arg = MemoryReservation {
        extent_start: gfns.as_ptr() as u64,
        nr_extents: gfns.len() as u64,
        extent_order: order.raw(),
        mem_flags: 0,
        domid: target.domid().raw(),
    };
    // SAFETY: Xen reads `arg` and the extent list, both alive for the call; it writes the list back only for a domain
    // that is not translated, and a target is HVM or PVH (`XEN_DOMCTL_set_target` takes no other).
    let done = unsafe { call(kind, __HYPERVISOR_memory_op, [op, address(&arg), 0, 0, 0])? };
    Ok(usize::try_from(done).unwrap_or(usize::MAX).min(gfns.len()))
}

/// Moves the page at `idx` of the target to `gpfn`, freeing what was there (`XENMAPSPACE_gmfn`).
pub fn add_to_physmap(target: Target, idx: Gfn, gpfn: Gfn) -> Result<(), Errno> {
    let arg = AddToPhysmap {
        domid: target.domid().raw(),
        size: 0,
        space: XENMAPSPACE_gmfn,
        idx: idx.raw(),
        gpfn: gpfn.raw(),
    };
    // SAFETY: Xen reads `arg`, alive for the call, and changes the target's physmap only.
    unsafe { other(XENMEM_add_to_physmap, address(&arg)) }.map(drop)
}

/// Unmaps `gfn` of the target; the page stays allocated to it, without a gfn.
pub fn remove_from_physmap(target: Target, gfn: Gfn) -> Result<(), Errno> {
    let arg = RemoveFromPhysmap { domid: target.domid().raw(), gpfn: gfn.raw() };
    // SAFETY: Xen reads `arg`, alive for the call, and changes the target's physmap only.
    unsafe { other(XENMEM_remove_from_physmap, address(&arg)) }.map(drop)
}

/// A resource of the target that has machine frames but no gfns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Frames of the grant table, version 1 or the shared part of version 2.
    GrantTableShared,
    /// Status frames of a version 2 grant table.
    GrantTableStatus,
    /// Pages of an ioreq server, by its id.
    IoreqServer(u32),
}

impl Resource {
    const fn type_and_id(self) -> (u16, u32) {
        match self {
            Self::GrantTableShared => (XENMEM_resource_grant_table, XENMEM_resource_grant_table_id_shared),
            Self::GrantTableStatus => (XENMEM_resource_grant_table, XENMEM_resource_grant_table_id_status),
            Self::IoreqServer(id) => (XENMEM_resource_ioreq_server, id),
        }
    }
}

/// Looks up the machine frames of a target's resource, from its `first` frame on, into `mfns`.
pub fn acquire_resource(
    target: Target,
    resource: Resource,
    first: u64,
    mfns: &mut [Mfn],
) -> Result<(), Errno> {
    let (type_, id) = resource.type_and_id();
    let mut arg = MemAcquireResource {
        domid: target.domid().raw(),
        type_,
        id,
        nr_frames: u32::try_from(mfns.len()).map_err(|_| Errno::EINVAL)?,
        pad: 0,
        frame: first,
        frame_list: mfns.as_mut_ptr() as u64,
    };
    // SAFETY: Xen updates `arg` and writes `nr_frames` frame numbers to `mfns`, which has that many and takes any bits.
    unsafe { other(XENMEM_acquire_resource, address_mut(&mut arg)) }.map(drop)
}

/// Returns how many frames a target's resource has.
pub fn resource_size(target: Target, resource: Resource) -> Result<u32, Errno> {
    let (type_, id) = resource.type_and_id();
    let domid = target.domid().raw();
    let mut arg = MemAcquireResource { domid, type_, id, nr_frames: 0, pad: 0, frame: 0, frame_list: 0 };
    // SAFETY: with no frame list Xen writes to `arg` alone.
    unsafe { other(XENMEM_acquire_resource, address_mut(&mut arg)) }.map(|_| arg.nr_frames)
}

/// Returns how many pages a domain owns.
pub fn current_reservation(domid: Domid) -> Result<u64, Errno> {
    by_domid(XENMEM_current_reservation, domid)
}

/// Returns how many pages a domain may own.
pub fn maximum_reservation(domid: Domid) -> Result<u64, Errno> {
    by_domid(XENMEM_maximum_reservation, domid)
}

/// Returns the highest gfn that was ever mapped in a domain.
pub fn maximum_gpfn(domid: Domid) -> Result<Gfn, Errno> {
    by_domid(XENMEM_maximum_gpfn, domid).map(Gfn::new)
}

fn by_domid(op: u64, domid: Domid) -> Result<u64, Errno> {
    let arg = domid.raw();
    // SAFETY: these operations read a domid and change nothing.
    unsafe { other(op, address(&arg)) }
}

/// Returns where the machine-to-phys table is and the highest frame number it may be asked for.
pub fn machphys_mapping() -> Result<MachphysMapping, Errno> {
    let mut arg = MachphysMapping::default();
    // SAFETY: Xen writes `arg` alone.
    unsafe { other(XENMEM_machphys_mapping, address_mut(&mut arg)) }.map(|_| arg)
}

/// Makes a `memory_op` that counts as "other".
///
/// # Safety
/// As for [`call`].
unsafe fn other(op: u64, arg: u64) -> Result<u64, Errno> {
    // SAFETY: the caller's.
    unsafe { call(Hypercall::MemoryOther, __HYPERVISOR_memory_op, [op, arg, 0, 0, 0]) }
}
