//! What dom0 knows of a guest that is to be sent, and the log of its writes.
#![allow(unsafe_code, reason = "hypercalls with buffers; each block names them")]

use super::hypercalls::Buffer;
use super::xenctrl::{XenError, Xenctrl, done};
use control::TscInfo;
use xen_abi::abi::*;
use xen_abi::types::{Domid, Gfn, PAGE_SIZE};

/// Most gfns of one call (`XEN_DOMCTL_getpageframeinfo3`).
const MAX_TYPES: u64 = 1024;

/// What a gfn has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Memory of the guest's.
    Memory,
    /// None, or a page of Xen's own.
    None,
    /// Memory that has failed.
    Broken,
}

impl Backing {
    fn new(raw: u64) -> Self {
        match raw {
            raw if raw == XEN_DOMCTL_PFINFO_NOTAB => Self::Memory,
            raw if raw == XEN_DOMCTL_PFINFO_BROKEN => Self::Broken,
            _ => Self::None,
        }
    }
}

/// The CPUID and MSR policies, as they stand in a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policies {
    /// `xen_cpuid_leaf_t[]`.
    pub(crate) leaves: Vec<u8>,
    /// `xen_msr_entry_t[]`.
    pub(crate) msrs: Vec<u8>,
}

impl Xenctrl {
    /// Has Xen log which pages are written to. A log that somebody left behind, who died, is replaced.
    pub(crate) fn start_log(&self, domid: Domid) -> Result<(), XenError> {
        let start = || self.log_control(domid, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY).map(drop);
        start().or_else(|error| {
            if error.errno != libc::EINVAL {
                return Err(error);
            }
            self.end_log(domid)?;
            start()
        })
    }

    /// Ends the log.
    pub(crate) fn end_log(&self, domid: Domid) -> Result<(), XenError> {
        self.log_control(domid, XEN_DOMCTL_SHADOW_OP_OFF).map(drop)
    }

    /// How many pages the log has.
    pub(crate) fn nr_logged(&self, domid: Domid) -> Result<u64, XenError> {
        self.log_control(domid, XEN_DOMCTL_SHADOW_OP_PEEK).map(|done| done.stats.dirty_count.into())
    }

    /// An operation on the log that takes no bitmap.
    fn log_control(&self, domid: Domid, op: u32) -> Result<DomctlShadowOp, XenError> {
        let mut op = DomctlShadowOp { op, ..Default::default() };
        // SAFETY: the structure names no memory.
        let asked = unsafe { self.calls().domctl_with(XEN_DOMCTL_shadow_op, domid, &mut op) };
        done(asked, "XEN_DOMCTL_shadow_op", domid).map(|()| op)
    }

    /// What the gfns from `first` on have; at most 1,024 are looked at, those below `end`.
    pub(crate) fn backings(&self, domid: Domid, first: Gfn, end: Gfn) -> Result<Vec<Backing>, XenError> {
        let gfns: Vec<u64> = (first.raw()..end.raw().min(first.raw() + MAX_TYPES)).collect();
        let types = || {
            let mut array = Buffer::of(self.calls(), &gfns)?;
            let mut op = DomctlGetpageframeinfo3 { num: gfns.len() as u64, array: array.address() };
            // SAFETY: the array has as many entries as are announced, and lives until after the call.
            unsafe { self.calls().domctl_with(XEN_DOMCTL_getpageframeinfo3, domid, &mut op) }?;
            Ok(array.words().iter().copied().map(Backing::new).collect())
        };
        done(types(), "XEN_DOMCTL_getpageframeinfo3", domid)
    }

    /// The TSC information (`XEN_DOMCTL_gettscinfo`).
    pub(crate) fn tsc_info(&self, domid: Domid) -> Result<TscInfo, XenError> {
        let info = self.calls().domctl(XEN_DOMCTL_gettscinfo, domid, DomctlTscInfo::default());
        let DomctlTscInfo { tsc_mode, gtsc_khz, incarnation, elapsed_nsec, .. } =
            done(info, "XEN_DOMCTL_gettscinfo", domid)?;
        Ok(TscInfo { mode: tsc_mode, khz: gtsc_khz, nsec: elapsed_nsec, incarnation })
    }

    /// The HVM context (`XEN_DOMCTL_gethvmcontext`).
    pub(crate) fn hvm_context(&self, domid: Domid) -> Result<Vec<u8>, XenError> {
        let context = || {
            // Without a buffer the call only asks for the size.
            let mut op = DomctlHvmcontext::default();
            // SAFETY: the structure names no memory.
            unsafe { self.calls().domctl_with(XEN_DOMCTL_gethvmcontext, domid, &mut op) }?;
            let mut buffer = Buffer::<u8>::new(self.calls(), op.size as usize)?;
            op.buffer = buffer.address();
            // SAFETY: the buffer has room for `size` bytes, and lives until after the call.
            unsafe { self.calls().domctl_with(XEN_DOMCTL_gethvmcontext, domid, &mut op) }?;
            Ok(buffer.words().iter().take(op.size as usize).copied().collect())
        };
        done(context(), "XEN_DOMCTL_gethvmcontext", domid)
    }

    /// The CPU policies (`XEN_DOMCTL_get_cpu_policy`).
    pub(crate) fn cpu_policies(&self, domid: Domid) -> Result<Policies, XenError> {
        let policies = || {
            // Without buffers the call only asks how many entries there can be.
            let mut most = SysctlCpuPolicy::default();
            // SAFETY: the structure names no memory.
            unsafe { self.calls().sysctl_with(XEN_SYSCTL_get_cpu_policy, &mut most) }?;
            let (nr_leaves, nr_msrs) = (most.nr_leaves, most.nr_msrs);
            let mut leaves = Buffer::<u8>::new(self.calls(), nr_leaves as usize * XEN_CPUID_LEAF_BYTES)?;
            let mut msrs = Buffer::<u8>::new(self.calls(), nr_msrs as usize * XEN_MSR_ENTRY_BYTES)?;
            let mut op = DomctlCpuPolicy {
                nr_leaves,
                nr_msrs,
                leaves: leaves.address(),
                msrs: msrs.address(),
                ..Default::default()
            };
            // SAFETY: each buffer has room for as many entries as are announced, and both live until after the call.
            unsafe { self.calls().domctl_with(XEN_DOMCTL_get_cpu_policy, domid, &mut op) }?;
            let taken =
                |bytes: &[u8], nr: u32, size| bytes.iter().take(nr as usize * size).copied().collect();
            Ok(Policies {
                leaves: taken(leaves.words(), op.nr_leaves, XEN_CPUID_LEAF_BYTES),
                msrs: taken(msrs.words(), op.nr_msrs, XEN_MSR_ENTRY_BYTES),
            })
        };
        done(policies(), "XEN_DOMCTL_get_cpu_policy", domid)
    }

    /// How many gfns are populated on demand and have no page yet.
    pub(crate) fn nr_populated_on_demand(&self, domid: Domid) -> Result<u64, XenError> {
        self.pod_target(domid).map(|target| target.pod_entries)
    }
}

/// Memory that Xen writes the log to: locked, so that no bit is lost on the way.
pub(crate) struct LogBuffer<'a> {
    xen: &'a Xenctrl,
    bitmap: Buffer<'a, u8>,
    end: Gfn,
}

impl<'a> LogBuffer<'a> {
    /// Allocates room for the gfns below `end`.
    pub(crate) fn new(xen: &'a Xenctrl, end: Gfn) -> Result<Self, XenError> {
        let failed = |errno| XenError { call: "xencall_alloc_buffer", domid: None, errno };
        let nr_bytes = end.raw().div_ceil(8).next_multiple_of(PAGE_SIZE as u64);
        let nr_bytes = usize::try_from(nr_bytes).map_err(|_| failed(libc::E2BIG))?;
        Ok(Self { xen, bitmap: Buffer::new(xen.calls(), nr_bytes).map_err(failed)?, end })
    }

    /// One past the highest gfn that there is room for.
    pub(crate) fn end(&self) -> Gfn {
        self.end
    }

    /// Takes the log, which is empty then, as a bitmap with the lowest bit first. `is_final`: the guest has stopped.
    pub(crate) fn take(&mut self, domid: Domid, is_final: bool) -> Result<&[u8], XenError> {
        // Xen 4.17 writes nothing for a guest that is dying.
        self.bitmap.words().fill(0);
        let mut op = DomctlShadowOp {
            op: XEN_DOMCTL_SHADOW_OP_CLEAN,
            mode: if is_final { XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL } else { 0 },
            dirty_bitmap: self.bitmap.address(),
            pages: self.end.raw(),
            ..Default::default()
        };
        // SAFETY: the bitmap has a bit for each gfn below `end`, and lives until after the call.
        let asked = unsafe { self.xen.calls().domctl_with(XEN_DOMCTL_shadow_op, domid, &mut op) };
        done(asked, "XEN_DOMCTL_shadow_op", domid).map(|()| &*self.bitmap.words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_has_no_type_of_its_own() {
        assert_eq!(
            [0, 0xf << 28, 0xd << 28].map(Backing::new),
            [Backing::Memory, Backing::None, Backing::Broken]
        );
    }
}
