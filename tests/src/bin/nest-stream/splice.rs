//! Changes of a save file: at an offset, bytes go and others come.

use e2e::error::{Error, Result};
use e2e::savefile::{RECORD_HEADER_BYTES, Record, SaveFile, kind};

/// Types of pages without contents, as they stand in bits 63 to 60.
const TYPE_ALLOC: u64 = 0xe << 60;
const TYPE_HOLE: u64 = 0xf << 60;

/// One change.
pub(crate) struct Splice {
    /// Where in the file.
    pub(crate) at: u64,
    /// How many bytes go.
    pub(crate) remove: u64,
    /// What comes.
    pub(crate) insert: Vec<u8>,
}

impl Splice {
    /// Puts bytes in the place of as many others.
    pub(crate) fn over(at: u64, bytes: &[u8]) -> Self {
        Self { at, remove: bytes.len() as u64, insert: bytes.to_vec() }
    }

    /// Puts bytes between others.
    pub(crate) fn insert(at: u64, insert: Vec<u8>) -> Self {
        Self { at, remove: 0, insert }
    }
}

/// Another version in the image header.
pub(crate) fn version(libxc: u64, version: u32) -> Splice {
    Splice::over(libxc + 12, &version.to_be_bytes())
}

/// The second PAGE_DATA record, or the first where there is one only.
pub(crate) fn second_pages(save: &SaveFile) -> Result<Record> {
    let mut records = save.records.iter().filter(|record| record.kind == kind::PAGE_DATA);
    match (records.next(), records.next()) {
        (Some(_), Some(second)) => Ok(*second),
        _ => save.first(kind::PAGE_DATA),
    }
}

/// The bytes of a record, with its header and padding.
pub(crate) fn whole(save: &SaveFile, record: &Record) -> Result<Vec<u8>> {
    save.bytes(record.offset, record.end() - record.offset)
}

/// A record whose body is zeroes.
pub(crate) fn plain(kind: u32, len: u32) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.resize(bytes.len() + len.next_multiple_of(8) as usize, 0);
    bytes
}

/// A record whose body is zeroes and whose padding ends with a one.
pub(crate) fn padded(kind: u32, len: u32) -> Vec<u8> {
    let mut bytes = plain(kind, len);
    bytes.pop();
    bytes.push(1);
    bytes
}

/// PAGE_DATA of pages without contents: all that they are is their words.
fn unbacked(words: &[u64]) -> Vec<u8> {
    // PANIC: never; a script gives a few words.
    let len = 8 * (u32::try_from(words.len()).expect("a few words") + 1);
    let mut bytes = kind::PAGE_DATA.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend((words.len() as u64).to_le_bytes());
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

/// PAGE_DATA that makes holes of pages.
pub(crate) fn holes(pfns: impl Iterator<Item = u64>) -> Vec<u8> {
    unbacked(&pfns.map(|pfn| pfn | TYPE_HOLE).collect::<Vec<_>>())
}

/// PAGE_DATA of pages that are to be there, whatever is in them.
pub(crate) fn allocated(first: u64, count: u32) -> Vec<u8> {
    unbacked(&(first..first + u64::from(count)).map(|pfn| pfn | TYPE_ALLOC).collect::<Vec<_>>())
}

/// PAGE_DATA that makes a hole of the first page with contents of the second PAGE_DATA record.
pub(crate) fn hole(save: &SaveFile) -> Result<Vec<u8>> {
    let pages = save.pages(&second_pages(save)?)?;
    let page = pages.iter().find(|page| page.data.is_some());
    let page = page.ok_or_else(|| Error::new("looking for a page with contents", "there is none"))?;
    Ok(holes(std::iter::once(page.pfn())))
}

/// VERIFY and the second PAGE_DATA record once more; it ends with a page's contents.
pub(crate) fn verify(save: &SaveFile) -> Result<Vec<u8>> {
    let mut records = plain(kind::VERIFY, 0);
    records.extend(whole(save, &second_pages(save)?)?);
    Ok(records)
}

/// The record goes.
pub(crate) fn remove(record: &Record) -> Splice {
    Splice { at: record.offset, remove: record.end() - record.offset, insert: Vec::new() }
}

/// The same kind of record with a body of zeroes.
pub(crate) fn replace(record: &Record, len: u32) -> Splice {
    Splice { insert: plain(record.kind, len), ..remove(record) }
}

/// The same record without its last bytes.
pub(crate) fn shorten(save: &SaveFile, record: &Record, by: u32) -> Result<Splice> {
    let len = record.len.saturating_sub(by);
    let mut insert = plain(record.kind, 0);
    insert[4..8].copy_from_slice(&len.to_le_bytes());
    insert.extend(save.bytes(record.body(), len.into())?);
    insert.resize(insert.len().next_multiple_of(8), 0);
    Ok(Splice { insert, ..remove(record) })
}

/// The same record with so many zeroes behind; its length and theirs are multiples of 8.
pub(crate) fn lengthen(record: &Record, by: u32) -> Vec<Splice> {
    let length = Splice::over(record.offset + 4, &(record.len + by).to_le_bytes());
    vec![length, Splice::insert(record.end(), vec![0; by as usize])]
}

/// Noise in the place of the whole libxc stream.
pub(crate) fn garbage(save: &SaveFile) -> Splice {
    let range = save.libxc_range();
    let noise = (0..RECORD_HEADER_BYTES * 512).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8);
    Splice { at: range.start, remove: range.end - range.start, insert: noise.collect() }
}
