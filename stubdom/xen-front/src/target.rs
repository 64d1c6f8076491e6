//! The one domain that a stub has rights over.

use core::fmt;

use crate::hypercall::mmu;
use xen_abi::errno::Errno;
use xen_abi::types::Domid;

/// A living domain other than the caller: what is done to it cannot touch the caller's own memory.
///
/// Holding one does *not* prove any right over it: `XEN_DOMCTL_set_target` gives the rights, and only for an HVM or PVH
/// domain; without it every call fails with `EPERM`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Target(Domid);

impl Target {
    /// Asks Xen whether `domid` is another, living domain.
    pub fn new(domid: Domid) -> Result<Self, Errno> {
        if domid.is_reserved() {
            return Err(Errno::EINVAL);
        }
        mmu::is_foreign(domid)?;
        Ok(Self(domid))
    }

    /// Returns its domain identifier.
    pub const fn domid(self) -> Domid {
        self.0
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
