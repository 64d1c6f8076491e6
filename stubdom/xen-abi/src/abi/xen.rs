//! `xen.h`, `arch-x86/xen.h`, `arch-x86/xen-x86_64.h`.

use zerocopy::FromBytes;

// hypercall numbers.
pub const __HYPERVISOR_set_trap_table: u64 = 0;
pub const __HYPERVISOR_mmu_update: u64 = 1;
pub const __HYPERVISOR_memory_op: u64 = 12;
pub const __HYPERVISOR_multicall: u64 = 13;
pub const __HYPERVISOR_update_va_mapping: u64 = 14;
pub const __HYPERVISOR_xen_version: u64 = 17;
pub const __HYPERVISOR_grant_table_op: u64 = 20;
pub const __HYPERVISOR_vcpu_op: u64 = 24;
pub const __HYPERVISOR_mmuext_op: u64 = 26;
pub const __HYPERVISOR_sched_op: u64 = 29;
pub const __HYPERVISOR_event_channel_op: u64 = 32;
pub const __HYPERVISOR_hvm_op: u64 = 34;
pub const __HYPERVISOR_sysctl: u64 = 35;
pub const __HYPERVISOR_domctl: u64 = 36;
pub const __HYPERVISOR_dm_op: u64 = 41;

// mmu_update, mmuext_op, update_va_mapping.
pub const MMU_NORMAL_PT_UPDATE: u64 = 0;
pub const MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3;
pub const MMUEXT_PIN_L1_TABLE: u32 = 0;
pub const MMUEXT_UNPIN_TABLE: u32 = 4;
pub const MMUEXT_TLB_FLUSH_LOCAL: u32 = 6;
pub const UVMF_INVLPG: u64 = 2;
pub const DOMID_FIRST_RESERVED: u16 = 0x7ff0;
pub const DOMID_SELF: u16 = 0x7ff0;
pub const DOMID_XEN: u16 = 0x7ff2;

#[derive(Clone, Copy, Debug, Default, FromBytes)]
#[repr(C)]
pub struct MmuUpdate {
    pub ptr: u64,
    pub val: u64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes)]
#[repr(C)]
pub struct MmuextOp {
    pub cmd: u32,
    pub arg1: u64,
    pub arg2: u64,
}

// multicall.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct MulticallEntry {
    pub op: u64,
    pub result: i64,
    pub args: [u64; 6],
}

// start_info.
pub const MAX_GUEST_CMDLINE: usize = 1024;

#[derive(Clone, Copy)]
#[repr(C)]
pub struct StartInfo {
    pub magic: [u8; 32],
    pub nr_pages: u64,
    pub shared_info: u64,
    pub flags: u32,
    pub store_mfn: u64,
    pub store_evtchn: u32,
    pub console_mfn: u64,
    pub console_evtchn: u32,
    pub pt_base: u64,
    pub nr_pt_frames: u64,
    pub mfn_list: u64,
    pub mod_start: u64,
    pub mod_len: u64,
    pub cmd_line: [u8; MAX_GUEST_CMDLINE],
    pub first_p2m_pfn: u64,
    pub nr_p2m_frames: u64,
}

// shared_info of a 64-bit guest.
pub const XEN_LEGACY_MAX_VCPUS: usize = 32;
/// `EVTCHN_2L_NR_CHANNELS`: ports of the two-level event channel ABI.
pub const EVTCHN_2L_NR_CHANNELS: u32 = 4096;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VcpuTimeInfo {
    pub version: u32,
    pub pad0: u32,
    pub tsc_timestamp: u64,
    pub system_time: u64,
    pub tsc_to_system_mul: u32,
    pub tsc_shift: i8,
    pub flags: u8,
    pub pad1: [u8; 2],
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct VcpuInfo {
    pub evtchn_upcall_pending: u8,
    pub evtchn_upcall_mask: u8,
    pub evtchn_pending_sel: u64,
    /// `arch_vcpu_info`: the faulting address of the last page fault, and padding.
    pub cr2: u64,
    pub pad: u64,
    pub time: VcpuTimeInfo,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct SharedInfo {
    pub vcpu_info: [VcpuInfo; XEN_LEGACY_MAX_VCPUS],
    pub evtchn_pending: [u64; 64],
    pub evtchn_mask: [u64; 64],
    pub wc_version: u32,
    pub wc_sec: u32,
    pub wc_nsec: u32,
    pub wc_sec_hi: u32,
    pub max_pfn: u64,
    pub pfn_to_mfn_frame_list_list: u64,
    pub nmi_reason: u64,
    pub p2m_cr3: u64,
    pub p2m_vaddr: u64,
    pub p2m_generation: u64,
}

// traps and address space.
pub const FLAT_RING3_CS64: u16 = 0xe033;
pub const MACH2PHYS_VIRT_START: usize = 0xffff_8000_0000_0000;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TrapInfo {
    pub vector: u8,
    pub flags: u8,
    pub cs: u16,
    pub address: u64,
}

// vcpu_guest_context of a suspended PV guest: offsets in bytes of what is used.
/// `sizeof(vcpu_guest_context_t)`, of a 64-bit guest; that of a 32-bit one is smaller.
pub const VCPU_GUEST_CONTEXT_BYTES: usize = 5168;
pub const VCPU_GUEST_CONTEXT_RAX: usize = 600;
pub const VCPU_GUEST_CONTEXT_RDX: usize = 616;
pub const VCPU_GUEST_CONTEXT_GDT_FRAMES: usize = 4832;
pub const VCPU_GUEST_CONTEXT_GDT_ENTS: usize = 4960;
pub const VCPU_GUEST_CONTEXT_CTRLREG: usize = 4984;
/// `eax` of a 32-bit guest (`foreign/x86_32.h`).
pub const VCPU_GUEST_CONTEXT_X86_32_EAX: usize = 540;
