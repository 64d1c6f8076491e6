//! `grant_table_op` on the caller's own table, and what it may ask of a target's (`xen/include/public/grant_table.h`).
#![allow(unsafe_code, reason = "hypercalls; their arguments live on the stack")]

use super::raw::{address_mut, call};
use crate::ledger::Hypercall;
use crate::target::Target;
use xen_abi::abi::*;
use xen_abi::errno::Errno;
use xen_abi::types::Mfn;

/// Sets our own grant table up with `mfns.len()` frames and names their machine frames.
pub fn setup_table(mfns: &mut [Mfn]) -> Result<(), Errno> {
    let nr_frames = u32::try_from(mfns.len()).map_err(|_| Errno::EINVAL)?;
    let frame_list = mfns.as_mut_ptr() as u64;
    let mut arg = GnttabSetupTable { dom: DOMID_SELF, nr_frames, status: 0, frame_list };
    op(GNTTABOP_setup_table, &mut arg)?;
    status(arg.status)
}

/// Returns the frames our table has and the most it may have.
pub fn query_size() -> Result<(u32, u32), Errno> {
    size_of_table(DOMID_SELF)
}

/// Returns the frames that the target's table has and the most it may have.
pub fn query_size_of(target: Target) -> Result<(u32, u32), Errno> {
    size_of_table(target.domid().raw())
}

fn size_of_table(dom: u16) -> Result<(u32, u32), Errno> {
    let mut arg = GnttabQuerySize { dom, nr_frames: 0, max_nr_frames: 0, status: 0 };
    op(GNTTABOP_query_size, &mut arg)?;
    status(arg.status)?;
    Ok((arg.nr_frames, arg.max_nr_frames))
}

/// Takes a `GNTST_*` code: every failure is `EINVAL` here, no caller tells them apart.
fn status(code: i16) -> Result<(), Errno> {
    if code == 0 { Ok(()) } else { Err(Errno::EINVAL) }
}

fn op<T>(cmd: u64, arg: &mut T) -> Result<(), Errno> {
    let args = [cmd, address_mut(arg), 1, 0, 0];
    // SAFETY: every caller passes one structure of the kind that `cmd` takes, and a frame list as long as it says.
    unsafe { call(Hypercall::Other, __HYPERVISOR_grant_table_op, args) }.map(drop)
}
