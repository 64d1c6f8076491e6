//! `sysctl.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Interface versions with the same layout of all that is here: 0x15 of Xen 4.17 to 4.20, 0x16 of 4.21 and 4.22.
pub const XEN_SYSCTL_INTERFACE_VERSIONS: core::ops::RangeInclusive<u32> = 0x15..=0x16;

pub const XEN_SYSCTL_physinfo: u32 = 3;
pub const XEN_SYSCTL_getdomaininfolist: u32 = 6;
pub const XEN_SYSCTL_availheap: u32 = 9;
pub const XEN_SYSCTL_page_offline_op: u32 = 14;
pub const XEN_SYSCTL_get_cpu_policy: u32 = 29;

pub const sysctl_page_offline: u32 = 1;
pub const sysctl_page_online: u32 = 2;
pub const sysctl_query_page_offline: u32 = 3;

pub const PG_OFFLINE_STATUS_OFFLINED: u32 = 1 << 1;
pub const PG_OFFLINE_STATUS_OFFLINE_PENDING: u32 = 1 << 3;
pub const PG_OFFLINE_STATUS_BROKEN: u32 = 1 << 4;
pub const PG_OFFLINE_OFFLINED: u32 = 1 << 1;
pub const PG_OFFLINE_XENPAGE: u32 = 1 << 8;
pub const PG_OFFLINE_NOT_CONV_RAM: u32 = 1 << 11;
pub const PG_OFFLINE_OWNED: u32 = 1 << 12;
pub const PG_OFFLINE_OWNER_SHIFT: u32 = 16;

/// `struct xen_sysctl`; its union is [`Sysctl::u`], which one of the structures below begins.
#[derive(Clone, Copy, Debug, Default, FromBytes)]
#[repr(C)]
pub struct Sysctl {
    pub cmd: u32,
    pub interface_version: u32,
    pub u: [u64; 16],
}

impl Sysctl {
    /// Makes an operation whose interface version is still to be set.
    pub fn new<Op: IntoBytes + Immutable>(cmd: u32, op: &Op) -> Self {
        Self { cmd, u: super::union_of(op), ..Self::default() }
    }

    /// Returns the union as the structure of the operation.
    pub fn op<Op: FromBytes>(&self) -> Op {
        super::in_union(&self.u)
    }
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SysctlPhysinfo {
    pub threads_per_core: u32,
    pub cores_per_socket: u32,
    pub nr_cpus: u32,
    pub max_cpu_id: u32,
    pub nr_nodes: u32,
    pub max_node_id: u32,
    pub cpu_khz: u32,
    pub capabilities: u32,
    pub arch_capabilities: u32,
    pub pad: u32,
    pub total_pages: u64,
    pub free_pages: u64,
    pub scrub_pages: u64,
    pub outstanding_pages: u64,
    pub max_mfn: u64,
    pub hw_cap: [u32; 8],
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SysctlPageOfflineOp {
    pub cmd: u32,
    pub start: u32,
    pub end: u32,
    pub pad: u32,
    pub status: u64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SysctlGetdomaininfolist {
    pub first_domain: u16,
    pub pad0: u16,
    pub max_domains: u32,
    pub buffer: u64,
    pub num_domains: u32,
    pub pad1: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SysctlAvailheap {
    pub min_bitwidth: u32,
    pub max_bitwidth: u32,
    pub node: i32,
    pub pad: u32,
    pub avail_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SysctlCpuPolicy {
    pub index: u32,
    pub nr_leaves: u32,
    pub nr_msrs: u32,
    pub rsvd: u32,
    pub leaves: u64,
    pub msrs: u64,
}
