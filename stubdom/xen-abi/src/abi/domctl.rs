//! `domctl.h`.

pub const XEN_DOMCTL_getdomaininfo: u32 = 5;

/// `struct xen_domctl_getdomaininfo` up to the fields used here; the same from interface version 0x15 to 0x18.
#[derive(Clone, Copy, Debug, Default)]
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
    /// The rest of the 128-byte union.
    pub rest: [u64; 8],
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Domctl {
    pub cmd: u32,
    pub interface_version: u32,
    pub domain: u16,
    pub pad: [u16; 3],
    pub getdomaininfo: DomctlGetdomaininfo,
}
