//! `errno.h`: Xen's numbers are Linux's.

use super::Row;
use crate::errno::NAMES;
use std::string::String;
use std::vec::Vec;

pub(super) fn rows() -> Vec<Row> {
    NAMES.iter().map(|(raw, name)| (String::from(*name), raw.unsigned_abs().into())).collect()
}
