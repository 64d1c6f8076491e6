//! `xen_version` (`xen/include/public/version.h`).
#![allow(unsafe_code, reason = "a hypercall without memory effects")]

use super::raw::call;
use crate::ledger::Hypercall;
use xen_abi::abi::*;
use xen_abi::errno::Errno;

/// Returns Xen's version, major and minor.
pub fn version() -> Result<(u16, u16), Errno> {
    // SAFETY: `XENVER_version` takes no pointer.
    let raw = unsafe { call(Hypercall::Other, __HYPERVISOR_xen_version, [XENVER_version, 0, 0, 0, 0])? };
    let [minor, major] = split(raw);
    Ok((major, minor))
}

const fn split(raw: u64) -> [u16; 2] {
    let [b0, b1, b2, b3, ..] = raw.to_le_bytes();
    [u16::from_le_bytes([b0, b1]), u16::from_le_bytes([b2, b3])]
}
