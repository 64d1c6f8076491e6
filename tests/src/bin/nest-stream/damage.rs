//! Damaged streams, each wrong in one thing; and a few that only look so, and are legal.

use crate::splice::Splice;
use crate::{copy, create, splice};
use clap::ValueEnum;
use e2e::error::{Doing, Result};
use e2e::savefile::{SaveFile, kind};
use std::io::Write;
use std::path::Path;

/// What can be damaged. Those that a comment calls legal must be restored, all others refused.
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
    /// The image header's reserved bytes.
    ImageReserved,
    /// A PV guest.
    GuestTypePv,
    /// A type of guest that does not exist.
    GuestTypeUnknown,
    /// Pages of 8 KiB.
    PageShift,
    /// The domain header's reserved bytes.
    DomainReserved,
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
    /// The first frame number that no guest can have.
    PfnAtEnd,
    /// A page type that does not exist.
    PageType,
    /// 1024 pages more than the guest has, without contents.
    TooManyPages,
    /// No STATIC_DATA_END.
    StaticDataEndMissing,
    /// STATIC_DATA_END twice.
    StaticDataEndTwice,
    /// STATIC_DATA_END with a body.
    StaticDataEndBody,
    /// STATIC_DATA_END in a stream of version 2, which has none.
    StaticDataEndInV2,
    /// A CPUID policy behind STATIC_DATA_END.
    PolicyLate,
    /// A CPUID policy that ends within a leaf.
    CpuidLength,
    /// An MSR policy that ends within an entry.
    MsrLength,
    /// A TSC record of 16 bytes.
    TscLength,
    /// The TSC record's reserved field.
    TscReserved,
    /// One HVM parameter more than there are.
    ParamsCount,
    /// HVM_PARAMS with its reserved field set.
    ParamsReserved,
    /// An HVM parameter that passes every Xen's table.
    ParamIndex,
    /// HVM_CONTEXT without a body.
    ContextEmpty,
    /// HVM_CONTEXT longer than any guest's.
    ContextLong,
    /// No HVM_CONTEXT.
    ContextMissing,
    /// HVM_CONTEXT twice.
    ContextTwice,
    /// A record whose padding is not zero.
    Padding,
    /// END with a body.
    EndBody,
    /// Another record after END.
    DataAfterEnd,
    /// A mandatory record of an unknown type.
    UnknownRecord,
    /// A record that only a PV guest has.
    PvRecord,
    /// A checkpoint, which a plain stream does not have.
    Checkpoint,
    /// Noise instead of the libxc stream.
    Garbage,
    /// An optional record of an unknown type: legal, to be skipped.
    OptionalRecord,
    /// A stream of version 2: legal, as Xen 4.13 and older send it.
    Version2,
    /// HVM_PARAMS before HVM_CONTEXT: legal, the order that the specification wants.
    ParamsFirst,
    /// VERIFY, then pages that came before: legal, what a sender does to try itself.
    Verify,
    /// VERIFY, then pages that came before, one of them with another byte: legal, and worth a warning.
    VerifyDiffers,
    /// A page that becomes a hole after its contents have come: legal.
    HoleLater,
}

/// Every kind of damage by its name on the command line.
pub(crate) fn names() -> impl Iterator<Item = String> {
    let names = Damage::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    names.map(|name| name.get_name().to_owned())
}

/// Writes the damaged file; gives the offset of the damage in the libxc stream.
pub(crate) fn write(save: &SaveFile, damage: Damage, out: &Path) -> Result<u64> {
    let mut splices = splices(save, damage)?;
    splices.sort_by_key(|splice| splice.at);
    let mut to = create(out)?;
    let mut at = 0;
    for splice in &splices {
        copy(save, at, splice.at, &mut to)?;
        to.write_all(&splice.insert).doing("writing the damage")?;
        at = splice.at + splice.remove;
    }
    copy(save, at, save.len(), &mut to)?;
    to.flush().doing("writing the last bytes")?;
    Ok(splices.first().map_or(0, |splice| splice.at - save.libxc))
}

fn splices(save: &SaveFile, damage: Damage) -> Result<Vec<Splice>> {
    match damage {
        Damage::Garbage => Ok(vec![splice::garbage(save)]),
        Damage::Marker
        | Damage::Id
        | Damage::VersionOld
        | Damage::VersionNew
        | Damage::ByteOrder
        | Damage::OptionsReserved
        | Damage::ImageReserved
        | Damage::GuestTypePv
        | Damage::GuestTypeUnknown
        | Damage::PageShift
        | Damage::DomainReserved => Ok(vec![header(save.libxc, damage)]),
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
        | Damage::PfnAtEnd
        | Damage::PageType => Ok(vec![pages(save, damage)?]),
        Damage::CpuidLength
        | Damage::MsrLength
        | Damage::TscLength
        | Damage::TscReserved
        | Damage::ParamsCount
        | Damage::ParamsReserved
        | Damage::ParamIndex
        | Damage::ContextEmpty
        | Damage::ContextLong
        | Damage::ContextMissing
        | Damage::ContextTwice => state(save, damage),
        _ => order(save, damage),
    }
}

/// The image header is big-endian, the domain header behind it (at 24) little-endian.
fn header(libxc: u64, damage: Damage) -> Splice {
    match damage {
        Damage::Marker => Splice::over(libxc, &[0]),
        Damage::Id => Splice::over(libxc + 8, b"XENG"),
        Damage::VersionOld => splice::version(libxc, 1),
        Damage::VersionNew => splice::version(libxc, 9),
        Damage::ByteOrder => Splice::over(libxc + 16, &1_u16.to_be_bytes()),
        Damage::OptionsReserved => Splice::over(libxc + 16, &0x40_u16.to_be_bytes()),
        Damage::ImageReserved => Splice::over(libxc + 20, &[1]),
        Damage::GuestTypePv => Splice::over(libxc + 24, &1_u32.to_le_bytes()),
        Damage::PageShift => Splice::over(libxc + 28, &13_u16.to_le_bytes()),
        Damage::DomainReserved => Splice::over(libxc + 30, &1_u16.to_le_bytes()),
        _ => Splice::over(libxc + 24, &99_u32.to_le_bytes()),
    }
}

/// Damages to the second PAGE_DATA record, so that something was received before.
fn pages(save: &SaveFile, damage: Damage) -> Result<Splice> {
    let record = splice::second_pages(save)?;
    let named = save.pages(&record)?;
    let count = u32::try_from(named.len()).doing("counting pages")?;
    let first = named.first().map_or(0, |page| page.word);
    let (length_at, count_at, word_at) = (record.offset + 4, record.body(), record.body() + 8);
    Ok(match damage {
        Damage::LengthShort => Splice::over(length_at, &(record.len - 8).to_le_bytes()),
        Damage::LengthLong => Splice::over(length_at, &(record.len + 8).to_le_bytes()),
        Damage::LengthHuge => Splice::over(length_at, &0x7fff_fff8_u32.to_le_bytes()),
        Damage::LengthTiny => Splice::over(length_at, &4_u32.to_le_bytes()),
        Damage::CountMore => Splice::over(count_at, &(count + 1).to_le_bytes()),
        Damage::CountLess => Splice::over(count_at, &count.saturating_sub(1).to_le_bytes()),
        Damage::CountHuge => Splice::over(count_at, &u32::MAX.to_le_bytes()),
        Damage::CountZero => Splice::over(count_at, &0_u32.to_le_bytes()),
        Damage::PagesReserved => Splice::over(count_at + 4, &1_u32.to_le_bytes()),
        Damage::PfnReserved => Splice::over(word_at, &(first | 1 << 55).to_le_bytes()),
        Damage::PfnBeyond => Splice::over(word_at, &(first | 1 << 45).to_le_bytes()),
        Damage::PfnAtEnd => Splice::over(word_at, &(1_u64 << 36).to_le_bytes()),
        _ => Splice::over(word_at, &(first & !(0xf << 60) | 5 << 60).to_le_bytes()),
    })
}

/// Damages to one record of the guest's state or policies.
fn state(save: &SaveFile, damage: Damage) -> Result<Vec<Splice>> {
    let tsc = save.first(kind::X86_TSC_INFO)?;
    let params = save.first(kind::HVM_PARAMS)?;
    let context = save.first(kind::HVM_CONTEXT)?;
    Ok(match damage {
        Damage::CpuidLength => vec![splice::shorten(save, &save.first(kind::X86_CPUID_POLICY)?, 8)?],
        Damage::MsrLength => splice::lengthen(&save.first(kind::X86_MSR_POLICY)?, 8),
        Damage::TscLength => vec![splice::shorten(save, &tsc, 8)?],
        Damage::TscReserved => vec![Splice::over(tsc.body() + 20, &1_u32.to_le_bytes())],
        Damage::ParamsCount => {
            let count = u32::try_from(save.hvm_params()?.len()).doing("counting parameters")?;
            vec![Splice::over(params.body(), &(count + 1).to_le_bytes())]
        }
        Damage::ParamsReserved => vec![Splice::over(params.body() + 4, &1_u32.to_le_bytes())],
        Damage::ParamIndex => vec![Splice::over(params.body() + 8, &64_u64.to_le_bytes())],
        Damage::ContextEmpty => vec![splice::replace(&context, 0)],
        Damage::ContextLong => vec![Splice::over(context.offset + 4, &((4_u32 << 20) + 8).to_le_bytes())],
        Damage::ContextMissing => vec![splice::remove(&context)],
        _ => vec![Splice::insert(context.end(), splice::whole(save, &context)?)],
    })
}

/// Records that come twice, too late, too early, not at all, or should not be there.
fn order(save: &SaveFile, damage: Damage) -> Result<Vec<Splice>> {
    let static_end = save.first(kind::STATIC_DATA_END)?;
    let (end, state) = (save.first(kind::END)?, save.first(kind::X86_TSC_INFO)?);
    let insert = |at, kind, len| vec![Splice::insert(at, splice::plain(kind, len))];
    Ok(match damage {
        Damage::TooManyPages => vec![Splice::insert(state.offset, splice::allocated(0x10_0000, 1024))],
        Damage::StaticDataEndMissing => vec![splice::remove(&static_end)],
        Damage::StaticDataEndTwice => insert(static_end.end(), kind::STATIC_DATA_END, 0),
        Damage::StaticDataEndBody => vec![splice::replace(&static_end, 8)],
        Damage::StaticDataEndInV2 => vec![splice::version(save.libxc, 2)],
        Damage::PolicyLate => {
            let policy = splice::whole(save, &save.first(kind::X86_CPUID_POLICY)?)?;
            vec![Splice::insert(static_end.end(), policy)]
        }
        Damage::Padding => vec![Splice::insert(static_end.end(), splice::padded(0x8000_007e, 12))],
        Damage::EndBody => vec![splice::replace(&end, 8)],
        Damage::DataAfterEnd => insert(end.end(), kind::X86_TSC_INFO, 24),
        Damage::UnknownRecord => insert(static_end.end(), 0x7e, 16),
        Damage::PvRecord => insert(static_end.end(), kind::X86_PV_INFO, 8),
        Damage::OptionalRecord => insert(static_end.end(), 0x8000_007e, 16),
        Damage::Version2 => vec![splice::version(save.libxc, 2), splice::remove(&static_end)],
        Damage::ParamsFirst => {
            let (context, params) = (save.first(kind::HVM_CONTEXT)?, save.first(kind::HVM_PARAMS)?);
            vec![Splice::insert(context.offset, splice::whole(save, &params)?), splice::remove(&params)]
        }
        Damage::Verify => vec![Splice::insert(state.offset, splice::verify(save)?)],
        Damage::VerifyDiffers => {
            let mut records = splice::verify(save)?;
            records.iter_mut().next_back().into_iter().for_each(|byte| *byte = !*byte);
            vec![Splice::insert(state.offset, records)]
        }
        Damage::HoleLater => vec![Splice::insert(state.offset, splice::hole(save)?)],
        _ => insert(end.offset, kind::CHECKPOINT, 0),
    })
}
