//! What can be wrong with the bytes.

use super::RecordType;
use core::fmt;
use xen_abi::types::Gfn;

/// Where in a stream something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Offset of the field from the start of the stream, in bytes.
    pub offset: u64,
    /// The record it is in; `None` in the two headers before the first record.
    pub record: Option<RecordType>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream offset {}, ", self.offset)?;
        match self.record {
            Some(record) => write!(f, "record {record}"),
            None => f.write_str("header"),
        }
    }
}

/// A fault of the stream and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Where.
    pub place: Place,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.fault)
    }
}

impl core::error::Error for Error {}

/// What is wrong with the bytes: what was expected and what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The image header does not begin with 64 one bits.
    Marker {
        /// What came.
        got: u64,
    },
    /// The image header does not say "XENF".
    Magic {
        /// What came.
        got: u32,
    },
    /// Neither version 2 nor 3.
    Version {
        /// What came.
        got: u32,
    },
    /// The sender is big-endian.
    BigEndian,
    /// The image header's options have a bit that the specification keeps reserved.
    Options {
        /// The options.
        got: u16,
    },
    /// A reserved field is not zero.
    Reserved {
        /// What came.
        got: u64,
    },
    /// The stream is of a PV guest, or of something unknown.
    GuestType {
        /// What came.
        got: u32,
    },
    /// The guest's pages are not of 4 KiB.
    PageShift {
        /// What came.
        got: u16,
    },
    /// The record's length passes what the format allows.
    TooLong {
        /// The most that is allowed, in bytes.
        limit: u32,
        /// What came.
        got: u32,
    },
    /// The record is shorter than what it must at least hold.
    TooShort {
        /// The least that it must hold, in bytes.
        least: u32,
        /// What came.
        got: u32,
    },
    /// The record's length is not the one that its type or its counts say.
    Length {
        /// What they say, in bytes.
        expected: u64,
        /// What came.
        got: u32,
    },
    /// The record's length is not a multiple of its entries' size.
    NotMultiple {
        /// Size of an entry in bytes.
        of: u32,
        /// What came.
        got: u32,
    },
    /// The pages with contents are not as many as the record's length has room for.
    PagesWithData {
        /// How many fit the length.
        expected: u32,
        /// How many are in the list; at least so many when the list was not read to its end.
        got: u32,
    },
    /// Reserved bits of an entry of a page list are set.
    PfnReserved {
        /// The whole entry.
        got: u64,
    },
    /// A page's type is none that the format knows.
    PageType {
        /// The page.
        gfn: Gfn,
        /// What came: bits 63 to 60 of the entry.
        got: u8,
    },
    /// The index of an HVM parameter passes every Xen's table.
    ParamIndex {
        /// What came.
        got: u64,
    },
    /// The bytes between a record and the next are not zero.
    Padding {
        /// What came.
        got: u8,
    },
    /// A mandatory record of a type that this receiver does not know.
    UnknownRecord,
    /// A record that belongs to PV guests.
    PvRecord,
    /// A record that only Remus and COLO send.
    CheckpointRecord,
    /// A record that no sender has written since migration v2.
    DeprecatedRecord,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Marker { got } => {
                write!(f, "expected the marker 0xffffffffffffffff, got {got:#018x}: not a libxc stream")
            }
            Self::Magic { got } => {
                write!(f, "expected 0x58454e46 (XENF), got {got:#010x}: not a libxc stream")
            }
            Self::Version { got } => write!(f, "expected version 2 or 3, got {got}"),
            Self::BigEndian => f.write_str("expected a little-endian stream, got a big-endian one"),
            Self::Options { got } => write!(f, "expected no option but byte order, got {got:#06x}"),
            Self::Reserved { got } => write!(f, "expected zero in a reserved field, got {got:#x}"),
            Self::GuestType { got: 1 } => f.write_str("expected an HVM or PVH guest (2), got a PV guest (1)"),
            Self::GuestType { got } => write!(f, "expected an HVM or PVH guest (2), got guest type {got}"),
            Self::PageShift { got } => write!(f, "expected page shift 12, got {got}"),
            Self::TooLong { limit, got } => write!(f, "expected at most {limit} bytes, got {got}"),
            Self::TooShort { least, got } => write!(f, "expected at least {least} bytes, got {got}"),
            Self::Length { expected, got } => write!(f, "expected {expected} bytes, got {got}"),
            Self::NotMultiple { of, got } => write!(f, "expected entries of {of} bytes, got {got} bytes"),
            Self::PagesWithData { expected, got } => {
                write!(f, "expected {expected} pages with contents, as the length says, got a list that names {got}")
            }
            Self::PfnReserved { got } => {
                write!(f, "expected bits 59 to 52 of a page to be zero, got {got:#018x}")
            }
            Self::PageType { gfn, got } => write!(f, "expected a type that pages have, got {got:#x} for {gfn}"),
            Self::ParamIndex { got } => write!(f, "expected an HVM parameter, got index {got}"),
            Self::Padding { got } => write!(f, "expected zero padding, got {got:#04x}"),
            Self::UnknownRecord => f.write_str("expected a kind of record that is known here, got a mandatory one that is not: the sender is newer"),
            Self::PvRecord => f.write_str("expected records of an HVM or PVH guest, got one of a PV guest"),
            Self::CheckpointRecord => f.write_str("expected a plain stream, got a checkpointed one (Remus, COLO)"),
            Self::DeprecatedRecord => {
                f.write_str("expected no deprecated record: convert the stream on its source")
            }
        }
    }
}
