//! `version.h`.

pub const XENVER_version: u64 = 0;
pub const XENVER_extraversion: u64 = 1;
/// Size of a `xen_extraversion_t` in bytes.
pub const XEN_EXTRAVERSION_LEN: usize = 16;
