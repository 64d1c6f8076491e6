//! `grant_table.h`.

use zerocopy::FromBytes;

pub const GNTTABOP_setup_table: u64 = 2;
pub const GNTTABOP_query_size: u64 = 6;
pub const GNTTABOP_get_version: u64 = 10;
pub const GNTST_okay: i16 = 0;
pub const GNTTAB_NR_RESERVED_ENTRIES: u32 = 8;
pub const GTF_type_mask: u16 = 3;
pub const GTF_permit_access: u16 = 1;
pub const GTF_readonly: u16 = 4;
pub const GTF_reading: u16 = 8;
pub const GTF_writing: u16 = 16;
/// Size of a `grant_entry_v1` in bytes: u16 flags, u16 domid, u32 frame.
pub const GRANT_ENTRY_V1_BYTES: usize = 8;
/// Size of a `grant_entry_v2` in bytes: u16 flags, u16 domid, u32 padding, u64 frame.
pub const GRANT_ENTRY_V2_BYTES: usize = 16;

#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct GnttabSetupTable {
    pub dom: u16,
    pub nr_frames: u32,
    pub status: i16,
    pub frame_list: u64,
}

#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct GnttabQuerySize {
    pub dom: u16,
    pub nr_frames: u32,
    pub max_nr_frames: u32,
    pub status: i16,
}

pub const GNTTAB_RESERVED_CONSOLE: u32 = 0;
pub const GNTTAB_RESERVED_XENSTORE: u32 = 1;

#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct GnttabGetVersion {
    pub dom: u16,
    pub pad: u16,
    pub version: u32,
}
