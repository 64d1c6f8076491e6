//! `version.h`.

pub const XENVER_version: u64 = 0;
pub const XENVER_extraversion: u64 = 1;
