//! `memory.h`.

use zerocopy::FromBytes;

pub const XENMEM_decrease_reservation: u64 = 1;
pub const XENMEM_maximum_ram_page: u64 = 2;
pub const XENMEM_current_reservation: u64 = 3;
pub const XENMEM_maximum_reservation: u64 = 4;
pub const XENMEM_machphys_mfn_list: u64 = 5;
pub const XENMEM_populate_physmap: u64 = 6;
pub const XENMEM_add_to_physmap: u64 = 7;
pub const XENMEM_machine_memory_map: u64 = 10;
pub const XENMEM_exchange: u64 = 11;
pub const XENMEM_machphys_mapping: u64 = 12;
pub const XENMEM_maximum_gpfn: u64 = 14;
pub const XENMEM_remove_from_physmap: u64 = 15;
pub const XENMEM_get_pod_target: u64 = 17;
pub const XENMEM_acquire_resource: u64 = 28;
pub const XENMEM_resource_ioreq_server: u16 = 0;
pub const XENMEM_resource_grant_table: u16 = 1;
pub const XENMEM_resource_grant_table_id_shared: u32 = 0;
pub const XENMEM_resource_grant_table_id_status: u32 = 1;
pub const XENMAPSPACE_gmfn: u32 = 2;

#[derive(Clone, Copy, Debug, FromBytes)]
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

#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct MemoryExchange {
    pub in_: MemoryReservation,
    pub out: MemoryReservation,
    pub nr_exchanged: u64,
}

#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct MachphysMfnList {
    pub max_extents: u32,
    pub extent_start: u64,
    pub nr_extents: u32,
}

#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct MemoryMap {
    pub nr_entries: u32,
    pub buffer: u64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes)]
#[repr(C)]
pub struct PodTarget {
    pub target_pages: u64,
    pub tot_pages: u64,
    pub pod_cache_pages: u64,
    pub pod_entries: u64,
    pub domid: u16,
}

/// `struct e820entry`, which every BIOS and `xenctrl.h` spell alike; no public header of Xen's has it.
#[derive(Clone, Copy, Debug, Default, FromBytes)]
#[repr(C, packed)]
pub struct E820Entry {
    pub addr: u64,
    pub size: u64,
    pub type_: u32,
}

pub const E820_RAM: u32 = 1;
