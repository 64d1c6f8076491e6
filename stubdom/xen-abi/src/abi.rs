//! Structures and constants of Xen's ABI, by their C names.
//!
//! Every item is what the public header says, and no more; the header is its documentation. Structures are written
//! here in Rust's spelling (`start_info` is [`StartInfo`]), fields and constants in the header's.
#![allow(
    missing_docs,
    non_upper_case_globals,
    reason = "the names are the public headers'; the headers document them"
)]

// xen.h: hypercall numbers.
pub const __HYPERVISOR_set_trap_table: u64 = 0;
pub const __HYPERVISOR_mmu_update: u64 = 1;
pub const __HYPERVISOR_memory_op: u64 = 12;
pub const __HYPERVISOR_update_va_mapping: u64 = 14;
pub const __HYPERVISOR_xen_version: u64 = 17;
pub const __HYPERVISOR_grant_table_op: u64 = 20;
pub const __HYPERVISOR_vcpu_op: u64 = 24;
pub const __HYPERVISOR_mmuext_op: u64 = 26;
pub const __HYPERVISOR_sched_op: u64 = 29;
pub const __HYPERVISOR_event_channel_op: u64 = 32;
pub const __HYPERVISOR_hvm_op: u64 = 34;
pub const __HYPERVISOR_domctl: u64 = 36;
pub const __HYPERVISOR_dm_op: u64 = 41;

// xen.h: mmu_update, mmuext_op, update_va_mapping.
pub const MMU_NORMAL_PT_UPDATE: u64 = 0;
pub const MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3;
pub const MMUEXT_TLB_FLUSH_LOCAL: u32 = 6;
pub const UVMF_INVLPG: u64 = 2;
pub const DOMID_FIRST_RESERVED: u16 = 0x7ff0;
pub const DOMID_SELF: u16 = 0x7ff0;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MmuUpdate {
    pub ptr: u64,
    pub val: u64,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MmuextOp {
    pub cmd: u32,
    pub arg1: u64,
    pub arg2: u64,
}

// xen.h: start_info.
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

// xen.h, arch-x86/xen.h: shared_info of a 64-bit guest.
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

// arch-x86/xen.h, arch-x86/xen-x86_64.h: traps and address space.
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

// memory.h.
pub const XENMEM_decrease_reservation: u64 = 1;
pub const XENMEM_current_reservation: u64 = 3;
pub const XENMEM_maximum_reservation: u64 = 4;
pub const XENMEM_populate_physmap: u64 = 6;
pub const XENMEM_add_to_physmap: u64 = 7;
pub const XENMEM_machphys_mapping: u64 = 12;
pub const XENMEM_maximum_gpfn: u64 = 14;
pub const XENMEM_remove_from_physmap: u64 = 15;
pub const XENMEM_acquire_resource: u64 = 28;
pub const XENMEM_resource_ioreq_server: u16 = 0;
pub const XENMEM_resource_grant_table: u16 = 1;
pub const XENMEM_resource_grant_table_id_shared: u32 = 0;
pub const XENMEM_resource_grant_table_id_status: u32 = 1;
pub const XENMAPSPACE_gmfn: u32 = 2;

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MemoryReservation {
    pub extent_start: u64,
    pub nr_extents: u64,
    pub extent_order: u32,
    pub mem_flags: u32,
    pub domid: u16,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AddToPhysmap {
    pub domid: u16,
    pub size: u16,
    pub space: u32,
    pub idx: u64,
    pub gpfn: u64,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RemoveFromPhysmap {
    pub domid: u16,
    pub gpfn: u64,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MemAcquireResource {
    pub domid: u16,
    pub type_: u16,
    pub id: u32,
    pub nr_frames: u32,
    pub pad: u32,
    pub frame: u64,
    pub frame_list: u64,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MachphysMapping {
    pub v_start: u64,
    pub v_end: u64,
    pub max_mfn: u64,
}

// event_channel.h.
pub const EVTCHNOP_bind_interdomain: u64 = 0;
pub const EVTCHNOP_close: u64 = 3;
pub const EVTCHNOP_send: u64 = 4;
pub const EVTCHNOP_alloc_unbound: u64 = 6;

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnAllocUnbound {
    pub dom: u16,
    pub remote_dom: u16,
    pub port: u32,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnBindInterdomain {
    pub remote_dom: u16,
    pub remote_port: u32,
    pub local_port: u32,
}

// grant_table.h.
pub const GNTTABOP_setup_table: u64 = 2;
pub const GNTTABOP_query_size: u64 = 6;
pub const GNTTAB_NR_RESERVED_ENTRIES: u32 = 8;
pub const GTF_permit_access: u16 = 1;
pub const GTF_readonly: u16 = 4;
pub const GTF_reading: u16 = 8;
pub const GTF_writing: u16 = 16;
/// Size of a `grant_entry_v1` in bytes: u16 flags, u16 domid, u32 frame.
pub const GRANT_ENTRY_V1_BYTES: usize = 8;

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GnttabSetupTable {
    pub dom: u16,
    pub nr_frames: u32,
    pub status: i16,
    pub frame_list: u64,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GnttabQuerySize {
    pub dom: u16,
    pub nr_frames: u32,
    pub max_nr_frames: u32,
    pub status: i16,
}

// sched.h.
pub const SCHEDOP_yield: u64 = 0;
pub const SCHEDOP_shutdown: u64 = 2;
pub const SCHEDOP_poll: u64 = 3;
pub const SHUTDOWN_poweroff: u32 = 0;
pub const SHUTDOWN_crash: u32 = 3;
/// Most ports of one [`SCHEDOP_poll`] (`do_poll` of Xen's scheduler).
pub const SCHEDOP_POLL_MAX_PORTS: usize = 128;

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SchedPoll {
    pub ports: u64,
    pub nr_ports: u32,
    pub timeout: u64,
}

// vcpu.h.
pub const VCPUOP_register_runstate_memory_area: u64 = 5;
pub const VCPUOP_stop_periodic_timer: u64 = 7;
pub const RUNSTATE_running: usize = 0;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct VcpuRunstateInfo {
    pub state: i32,
    pub state_entry_time: u64,
    pub time: [u64; 4],
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct VcpuRegisterRunstateMemoryArea {
    pub v: u64,
}

// version.h.
pub const XENVER_version: u64 = 0;
pub const XENVER_extraversion: u64 = 1;

// hvm/hvm_op.h, hvm/dm_op.h.
pub const HVMOP_set_param: u64 = 0;
pub const HVMOP_get_param: u64 = 1;
pub const HVMOP_get_mem_type: u64 = 15;
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

// domctl.h.
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

// io/console.h, io/xs_wire.h: the two rings.
pub const XENCONS_IN_BYTES: usize = 1024;
pub const XENCONS_OUT_BYTES: usize = 2048;
pub const XENSTORE_RING_SIZE: usize = 1024;

// elfnote.h and grant numbers of the toolstack (grant_table.h).
pub const GNTTAB_RESERVED_CONSOLE: u32 = 0;
pub const GNTTAB_RESERVED_XENSTORE: u32 = 1;
