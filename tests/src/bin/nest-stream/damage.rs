//! Damaged streams, each wrong in one thing.

use crate::{copy, create};
use clap::ValueEnum;
use e2e::error::{Doing, Result};
use e2e::savefile::{RECORD_HEADER_BYTES, Record, SaveFile, kind};
use std::io::Write;
use std::path::Path;

/// What can be damaged. All but `OptionalRecord` make the stream illegal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Damage {
    /// The image header's marker.
    Marker,
    /// The image header's id.
    Id,
    /// Version 1, which was never a version of this format.
    VersionOld,
    /// Version 9.
    VersionNew,
    /// The option that says big-endian.
    ByteOrder,
    /// An option bit without a meaning.
    OptionsReserved,
    /// A PV guest.
    GuestTypePv,
    /// A type of guest that does not exist.
    GuestTypeUnknown,
    /// Pages of 8 KiB.
    PageShift,
    /// PAGE_DATA eight bytes too short.
    LengthShort,
    /// PAGE_DATA eight bytes too long.
    LengthLong,
    /// PAGE_DATA longer than any record may be.
    LengthHuge,
    /// PAGE_DATA too short for its own count.
    LengthTiny,
    /// PAGE_DATA with one page more than it has.
    CountMore,
    /// PAGE_DATA with one page less than it has.
    CountLess,
    /// PAGE_DATA with four thousand million pages.
    CountHuge,
    /// PAGE_DATA without pages.
    CountZero,
    /// PAGE_DATA with its reserved field set.
    PagesReserved,
    /// A frame number with a reserved bit.
    PfnReserved,
    /// A frame number beyond any guest's memory.
    PfnBeyond,
    /// A page type that does not exist.
    PageType,
    /// No STATIC_DATA_END.
    StaticDataEndMissing,
    /// STATIC_DATA_END twice.
    StaticDataEndTwice,
    /// STATIC_DATA_END with a body.
    StaticDataEndBody,
    /// A CPUID policy that ends within a leaf.
    CpuidLength,
    /// A TSC record of 16 bytes.
    TscLength,
    /// One HVM parameter more than there are.
    ParamsCount,
    /// END with a body.
    EndBody,
    /// Another record after END.
    DataAfterEnd,
    /// A mandatory record of an unknown type.
    UnknownRecord,
    /// An optional record of an unknown type: legal, to be skipped.
    OptionalRecord,
    /// A record that only a PV guest has.
    PvRecord,
    /// A checkpoint, which a plain stream does not have.
    Checkpoint,
    /// Noise instead of the libxc stream.
    Garbage,
}

/// A change of the file: at an offset, remove bytes, put others.
struct Splice {
    at: u64,
    remove: u64,
    insert: Vec<u8>,
}

/// Every kind of damage by its name on the command line.
pub(crate) fn names() -> impl Iterator<Item = String> {
    let names = Damage::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    names.map(|name| name.get_name().to_owned())
}

/// Writes the damaged file.
pub(crate) fn write(save: &SaveFile, damage: Damage, out: &Path) -> Result<()> {
    let Splice { at, remove, insert } = splice(save, damage)?;
    let mut to = create(out)?;
    copy(save, 0, at, &mut to)?;
    to.write_all(&insert).doing("writing the damage")?;
    copy(save, at + remove, save.len(), &mut to)?;
    to.flush().doing("writing the last bytes")
}

/// Puts bytes in the place of as many others.
fn over(at: u64, bytes: &[u8]) -> Splice {
    Splice { at, remove: bytes.len() as u64, insert: bytes.to_vec() }
}

fn splice(save: &SaveFile, damage: Damage) -> Result<Splice> {
    match damage {
        Damage::Garbage => Ok(garbage(save)),
        Damage::Marker
        | Damage::Id
        | Damage::VersionOld
        | Damage::VersionNew
        | Damage::ByteOrder
        | Damage::OptionsReserved
        | Damage::GuestTypePv
        | Damage::GuestTypeUnknown
        | Damage::PageShift => Ok(header(save.libxc, damage)),
        Damage::LengthShort
        | Damage::LengthLong
        | Damage::LengthHuge
        | Damage::LengthTiny
        | Damage::CountMore
        | Damage::CountLess
        | Damage::CountHuge
        | Damage::CountZero
        | Damage::PagesReserved
        | Damage::PfnReserved
        | Damage::PfnBeyond
        | Damage::PageType => pages(save, damage),
        _ => record(save, damage),
    }
}

/// The image header is big-endian, the domain header behind it (at 24) little-endian.
fn header(libxc: u64, damage: Damage) -> Splice {
    match damage {
        Damage::Marker => over(libxc, &[0]),
        Damage::Id => over(libxc + 8, b"XENG"),
        Damage::VersionOld => over(libxc + 12, &1_u32.to_be_bytes()),
        Damage::VersionNew => over(libxc + 12, &9_u32.to_be_bytes()),
        Damage::ByteOrder => over(libxc + 16, &1_u16.to_be_bytes()),
        Damage::OptionsReserved => over(libxc + 16, &0x40_u16.to_be_bytes()),
        Damage::GuestTypePv => over(libxc + 24, &1_u32.to_le_bytes()),
        Damage::PageShift => over(libxc + 28, &13_u16.to_le_bytes()),
        _ => over(libxc + 24, &99_u32.to_le_bytes()),
    }
}

/// Damages to the second PAGE_DATA record (the first where there is one only), so that something was received before.
fn pages(save: &SaveFile, damage: Damage) -> Result<Splice> {
    let mut records = save.records.iter().filter(|record| record.kind == kind::PAGE_DATA);
    let record = match (records.next(), records.next()) {
        (Some(_), Some(second)) => *second,
        _ => save.first(kind::PAGE_DATA)?,
    };
    let named = save.pages(&record)?;
    let count = u32::try_from(named.len()).doing("counting pages")?;
    let first = named.first().map_or(0, |page| page.word);
    let (length_at, count_at, word_at) = (record.offset + 4, record.body(), record.body() + 8);
    Ok(match damage {
        Damage::LengthShort => over(length_at, &(record.len - 8).to_le_bytes()),
        Damage::LengthLong => over(length_at, &(record.len + 8).to_le_bytes()),
        Damage::LengthHuge => over(length_at, &0x7fff_fff8_u32.to_le_bytes()),
        Damage::LengthTiny => over(length_at, &4_u32.to_le_bytes()),
        Damage::CountMore => over(count_at, &(count + 1).to_le_bytes()),
        Damage::CountLess => over(count_at, &count.saturating_sub(1).to_le_bytes()),
        Damage::CountHuge => over(count_at, &u32::MAX.to_le_bytes()),
        Damage::CountZero => over(count_at, &0_u32.to_le_bytes()),
        Damage::PagesReserved => over(count_at + 4, &1_u32.to_le_bytes()),
        Damage::PfnReserved => over(word_at, &(first | 1 << 55).to_le_bytes()),
        Damage::PfnBeyond => over(word_at, &(first | 1 << 45).to_le_bytes()),
        _ => over(word_at, &(first & !(0xf << 60) | 5 << 60).to_le_bytes()),
    })
}

fn record(save: &SaveFile, damage: Damage) -> Result<Splice> {
    let at = |record: &Record| record.offset;
    let static_end = save.first(kind::STATIC_DATA_END)?;
    let end = save.first(kind::END)?;
    let insert = |at, kind, len| Splice { at, remove: 0, insert: plain_record(kind, len) };
    Ok(match damage {
        Damage::StaticDataEndMissing => {
            Splice { at: at(&static_end), remove: static_end.end() - at(&static_end), insert: Vec::new() }
        }
        Damage::StaticDataEndTwice => insert(static_end.end(), kind::STATIC_DATA_END, 0),
        Damage::StaticDataEndBody => replace(&static_end, 8),
        Damage::CpuidLength => shorten(save, &save.first(kind::X86_CPUID_POLICY)?, 8)?,
        Damage::TscLength => shorten(save, &save.first(kind::X86_TSC_INFO)?, 8)?,
        Damage::ParamsCount => {
            let params = save.first(kind::HVM_PARAMS)?;
            let count = u32::try_from(save.hvm_params()?.len()).doing("counting parameters")?;
            over(params.body(), &(count + 1).to_le_bytes())
        }
        Damage::EndBody => replace(&end, 8),
        Damage::DataAfterEnd => insert(end.end(), kind::X86_TSC_INFO, 24),
        Damage::UnknownRecord => insert(static_end.end(), 0x7e, 16),
        Damage::OptionalRecord => insert(static_end.end(), 0x8000_007e, 16),
        Damage::PvRecord => insert(static_end.end(), kind::X86_PV_INFO, 8),
        _ => insert(end.offset, kind::CHECKPOINT, 0),
    })
}

/// A record whose body is zeroes.
fn plain_record(kind: u32, len: u32) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.resize(bytes.len() + len.next_multiple_of(8) as usize, 0);
    bytes
}

/// The same kind of record with a body of zeroes.
fn replace(record: &Record, len: u32) -> Splice {
    Splice { at: record.offset, remove: record.end() - record.offset, insert: plain_record(record.kind, len) }
}

/// The same record without its last bytes.
fn shorten(save: &SaveFile, record: &Record, by: u32) -> Result<Splice> {
    let len = record.len.saturating_sub(by);
    let mut insert = plain_record(record.kind, 0);
    insert[4..8].copy_from_slice(&len.to_le_bytes());
    insert.extend(save.bytes(record.body(), len.into())?);
    insert.resize(insert.len().next_multiple_of(8), 0);
    Ok(Splice { at: record.offset, remove: record.end() - record.offset, insert })
}

fn garbage(save: &SaveFile) -> Splice {
    let range = save.libxc_range();
    let noise = (0..RECORD_HEADER_BYTES * 512).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8);
    Splice { at: range.start, remove: range.end - range.start, insert: noise.collect() }
}
