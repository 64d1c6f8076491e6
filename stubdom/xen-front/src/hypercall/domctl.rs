//! `domctl`: the one sub-operation that a stub may use on its target (`xen/include/public/domctl.h`).
#![allow(unsafe_code, reason = "a hypercall; its argument lives on the stack")]

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::raw::{address_mut, call};
use crate::ledger::Hypercall;
use crate::target::Target;
use xen_abi::abi::*;
use xen_abi::errno::Errno;
use xen_abi::types::Gfn;

/// The version that Xen took last: a domctl with another one fails with `EACCES`.
static VERSION: AtomicU32 = AtomicU32::new(*XEN_DOMCTL_INTERFACE_VERSIONS.start());

/// What Xen says about a domain (`XEN_DOMCTL_getdomaininfo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// `XEN_DOMINF_*`.
    pub flags: u32,
    /// Pages it owns.
    pub tot_pages: u64,
    /// Pages it may own.
    pub max_pages: u64,
    /// Where its `shared_info` is.
    pub shared_info: Gfn,
}

/// Asks about the target.
pub fn getdomaininfo(target: Target) -> Result<DomainInfo, Errno> {
    let last = VERSION.load(Relaxed);
    let mut result = ask(target, last);
    for version in XEN_DOMCTL_INTERFACE_VERSIONS {
        if result != Err(Errno::EACCES) {
            break;
        }
        result = ask(target, version);
        VERSION.store(version, Relaxed);
    }
    result
}

fn ask(target: Target, interface_version: u32) -> Result<DomainInfo, Errno> {
    let mut arg =
        Domctl::new(XEN_DOMCTL_getdomaininfo, target.domid().raw(), &DomctlGetdomaininfo::default());
    arg.interface_version = interface_version;
    // SAFETY: Xen reads and writes `arg`, which is as large as `struct xen_domctl` and takes any bits.
    unsafe { call(Hypercall::Other, __HYPERVISOR_domctl, [address_mut(&mut arg), 0, 0, 0, 0])? };
    let info: DomctlGetdomaininfo = arg.op();
    Ok(DomainInfo {
        flags: info.flags,
        tot_pages: info.tot_pages,
        max_pages: info.max_pages,
        shared_info: Gfn::new(info.shared_info_frame),
    })
}
