//! `hvm/hvm_op.h`, `hvm/dm_op.h`, `hvm/params.h`.

use zerocopy::FromBytes;

pub const HVMOP_set_param: u64 = 0;
pub const HVMOP_get_param: u64 = 1;
pub const HVMOP_get_mem_type: u64 = 15;
pub const HVMOP_altp2m: u64 = 25;
pub const HVMOP_ALTP2M_INTERFACE_VERSION: u32 = 1;
pub const HVMOP_altp2m_get_domain_state: u32 = 1;
pub const HVMMEM_ram_rw: u16 = 0;
pub const HVMMEM_ram_ro: u16 = 1;
pub const HVMMEM_mmio_dm: u16 = 2;
pub const HVMMEM_ioreq_server: u16 = 4;
pub const XEN_DMOP_modified_memory: u32 = 11;
pub const XEN_DMOP_set_mem_type: u32 = 12;

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HvmParam {
    pub domid: u16,
    pub pad: u16,
    pub index: u32,
    pub value: u64,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HvmGetMemType {
    pub domid: u16,
    pub mem_type: u16,
    pub pad: [u16; 2],
    pub pfn: u64,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DmOpBuf {
    pub h: u64,
    pub size: u64,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DmOpModifiedMemory {
    pub op: u32,
    pub op_pad: u32,
    pub nr_extents: u32,
    pub opaque: u32,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DmOpModifiedMemoryExtent {
    pub nr: u32,
    pub pad: u32,
    pub first_pfn: u64,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DmOpSetMemType {
    pub op: u32,
    pub op_pad: u32,
    pub nr: u32,
    pub mem_type: u16,
    pub pad: u16,
    pub first_pfn: u64,
}

pub const HVM_PARAM_STORE_PFN: u32 = 1;
pub const HVM_PARAM_STORE_EVTCHN: u32 = 2;
pub const HVM_PARAM_PAE_ENABLED: u32 = 4;
pub const HVM_PARAM_IOREQ_PFN: u32 = 5;
pub const HVM_PARAM_BUFIOREQ_PFN: u32 = 6;
pub const HVM_PARAM_VIRIDIAN: u32 = 9;
pub const HVM_PARAM_IDENT_PT: u32 = 12;
pub const HVM_PARAM_CONSOLE_PFN: u32 = 17;
pub const HVM_PARAM_CONSOLE_EVTCHN: u32 = 18;
pub const HVM_PARAM_ACPI_IOPORTS_LOCATION: u32 = 19;
pub const HVM_PARAM_PAGING_RING_PFN: u32 = 27;
pub const HVM_PARAM_MONITOR_RING_PFN: u32 = 28;
pub const HVM_PARAM_SHARING_RING_PFN: u32 = 29;
pub const HVM_PARAM_IOREQ_SERVER_PFN: u32 = 32;
pub const HVM_PARAM_NR_IOREQ_SERVER_PAGES: u32 = 33;
pub const HVM_PARAM_VM_GENERATION_ID_ADDR: u32 = 34;
pub const HVM_PARAM_X87_FIP_WIDTH: u32 = 36;
pub const HVM_PARAM_VM86_TSS_SIZED: u32 = 37;
pub const HVM_PARAM_MCA_CAP: u32 = 38;

#[derive(Clone, Copy, Debug, Default, FromBytes)]
#[repr(C)]
pub struct HvmAltp2mOp {
    pub version: u32,
    pub cmd: u32,
    pub domain: u16,
    pub pad1: u16,
    pub pad2: u32,
    /// The union; of `domain_state` the lowest byte of the first word.
    pub u: [u64; 8],
}
