//! `domctl.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Interface versions with the same layout of all that is here: 0x15 of Xen 4.17, 0x16 of 4.18, 0x17 of 4.19 to 4.21,
/// 0x18 of 4.22. Xen refuses any other than its own with `EACCES`.
pub const XEN_DOMCTL_INTERFACE_VERSIONS: core::ops::RangeInclusive<u32> = 0x15..=0x18;

pub const XEN_DOMCTL_pausedomain: u32 = 3;
pub const XEN_DOMCTL_unpausedomain: u32 = 4;
pub const XEN_DOMCTL_getdomaininfo: u32 = 5;
pub const XEN_DOMCTL_setvcpuaffinity: u32 = 9;
pub const XEN_DOMCTL_shadow_op: u32 = 10;
pub const XEN_DOMCTL_max_mem: u32 = 11;
pub const XEN_DOMCTL_setvcpucontext: u32 = 12;
pub const XEN_DOMCTL_getvcpucontext: u32 = 13;
pub const XEN_DOMCTL_getvcpuaffinity: u32 = 25;
pub const XEN_DOMCTL_resumedomain: u32 = 27;
pub const XEN_DOMCTL_subscribe: u32 = 29;
pub const XEN_DOMCTL_gethvmcontext: u32 = 33;
pub const XEN_DOMCTL_sethvmcontext: u32 = 34;
pub const XEN_DOMCTL_get_address_size: u32 = 36;
pub const XEN_DOMCTL_set_target: u32 = 46;
pub const XEN_DOMCTL_vm_event_op: u32 = 56;
pub const XEN_DOMCTL_gettscinfo: u32 = 59;
pub const XEN_DOMCTL_settscinfo: u32 = 60;
pub const XEN_DOMCTL_getpageframeinfo3: u32 = 61;
pub const XEN_DOMCTL_get_cpu_policy: u32 = 82;
pub const XEN_DOMCTL_set_cpu_policy: u32 = 83;

pub const XEN_DOMINF_dying: u32 = 1 << 0;
pub const XEN_DOMINF_hvm_guest: u32 = 1 << 1;
pub const XEN_DOMINF_shutdown: u32 = 1 << 2;
pub const XEN_DOMINF_paused: u32 = 1 << 3;
pub const XEN_DOMINF_shutdownmask: u32 = 255;
pub const XEN_DOMINF_shutdownshift: u32 = 16;
pub const XEN_VCPUAFFINITY_HARD: u32 = 1;
pub const XEN_VM_EVENT_RESUME: u32 = 2;
pub const XEN_DOMCTL_VM_EVENT_OP_MONITOR: u32 = 2;
pub const XEN_DOMCTL_SHADOW_OP_OFF: u32 = 0;
pub const XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY: u32 = 2;
pub const XEN_DOMCTL_SHADOW_OP_CLEAN: u32 = 11;
pub const XEN_DOMCTL_SHADOW_OP_PEEK: u32 = 12;
/// The guest has stopped, so frames that Xen itself has mapped count too.
pub const XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL: u32 = 1;
pub const XEN_DOMCTL_PFINFO_LTAB_SHIFT: u32 = 28;
pub const XEN_DOMCTL_PFINFO_NOTAB: u64 = 0;
pub const XEN_DOMCTL_PFINFO_LPINTAB: u64 = 1 << 31;
/// From this type on a frame is not the guest's, or no memory at all.
pub const XEN_DOMCTL_PFINFO_BROKEN: u64 = 0xd << 28;

/// Size of a `xen_cpuid_leaf_t` in bytes.
pub const XEN_CPUID_LEAF_BYTES: usize = 24;
/// Size of a `xen_msr_entry_t` in bytes.
pub const XEN_MSR_ENTRY_BYTES: usize = 16;

/// `struct xen_domctl`; its union is [`Domctl::u`], which one of the structures below begins.
#[derive(Clone, Copy, Debug, Default, FromBytes)]
#[repr(C)]
pub struct Domctl {
    pub cmd: u32,
    pub interface_version: u32,
    pub domain: u16,
    pub pad: [u16; 3],
    pub u: [u64; 16],
}

impl Domctl {
    /// Makes an operation whose interface version is still to be set.
    pub fn new<Op: IntoBytes + Immutable>(cmd: u32, domain: u16, op: &Op) -> Self {
        Self { cmd, domain, u: super::union_of(op), ..Self::default() }
    }

    /// Returns the union as the structure of the operation.
    pub fn op<Op: FromBytes>(&self) -> Op {
        super::in_union(&self.u)
    }
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DomctlGetdomaininfo {
    pub domain: u16,
    pub pad1: u16,
    pub flags: u32,
    pub tot_pages: u64,
    pub max_pages: u64,
    pub outstanding_pages: u64,
    pub shr_pages: u64,
    pub paged_pages: u64,
    pub shared_info_frame: u64,
    pub cpu_time: u64,
    pub nr_online_vcpus: u32,
    pub max_vcpu_id: u32,
    pub ssidref: u32,
    pub handle: [u8; 16],
    pub cpupool: u32,
    pub gpaddr_bits: u8,
    pub pad2: [u8; 7],
    pub arch_config: [u32; 2],
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct XenctlBitmap {
    pub bitmap: u64,
    pub nr_bits: u32,
    pub pad: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlVcpuaffinity {
    pub vcpu: u32,
    pub flags: u32,
    pub cpumap_hard: XenctlBitmap,
    pub cpumap_soft: XenctlBitmap,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlMaxMem {
    pub max_memkb: u64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlVcpucontext {
    pub vcpu: u32,
    pub pad: u32,
    pub ctxt: u64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlSubscribe {
    pub port: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlHvmcontext {
    pub size: u32,
    pub pad: u32,
    pub buffer: u64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlAddressSize {
    pub size: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlSetTarget {
    pub target: u16,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlTscInfo {
    pub tsc_mode: u32,
    pub gtsc_khz: u32,
    pub incarnation: u32,
    pub pad: u32,
    pub elapsed_nsec: u64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlGetpageframeinfo3 {
    pub num: u64,
    pub array: u64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlCpuPolicy {
    pub nr_leaves: u32,
    pub nr_msrs: u32,
    pub leaves: u64,
    pub msrs: u64,
    pub err_leaf: u32,
    pub err_subleaf: u32,
    pub err_msr: u32,
    pub pad: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlVmEventOp {
    pub op: u32,
    pub mode: u32,
    pub u: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlShadowOpStats {
    pub fault_count: u32,
    pub dirty_count: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DomctlShadowOp {
    pub op: u32,
    pub mode: u32,
    pub mb: u32,
    pub pad: u32,
    pub dirty_bitmap: u64,
    pub pages: u64,
    pub stats: DomctlShadowOpStats,
}
