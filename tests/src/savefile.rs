//! A file that `xl save` wrote, taken apart: xl's header, libxl's records, and within one of them the libxc stream.
//!
//! **Takes** a file. **Gives** where each libxc record stands, and where each page's bytes are. **Never** reads the
//! pages themselves: a file may be larger than memory. The layouts are those of `docs/specs/libxc-migration-stream`
//! and `docs/specs/libxl-migration-stream` of Xen, and of `tools/xl/xl_saverestore.c`.
//!
//! This is a second reading of the format, on purpose not the one that the stub uses: it makes the stub's input and
//! judges its work.

use crate::error::{Doing, Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Size of a page in bytes.
pub const PAGE_BYTES: u64 = 4096;

/// Length of the libxc image header and domain header together, in bytes.
const LIBXC_HEADERS_BYTES: u64 = 24 + 16;

/// Length of a record's header, in bytes, in the libxc and in the libxl stream.
pub const RECORD_HEADER_BYTES: u64 = 8;

/// The kinds of libxc records that the harness knows by name (`xg_sr_stream_format.h`).
pub mod kind {
    /// The stream's end.
    pub const END: u32 = 0;
    /// Pages: a list of frame numbers and types, then the contents.
    pub const PAGE_DATA: u32 = 1;
    /// PV only: word width and page table levels.
    pub const X86_PV_INFO: u32 = 2;
    /// The guest's time stamp counter.
    pub const X86_TSC_INFO: u32 = 8;
    /// The guest's state as Xen saves it.
    pub const HVM_CONTEXT: u32 = 9;
    /// HVM parameters: pairs of index and value.
    pub const HVM_PARAMS: u32 = 10;
    /// From here on pages are compared, no longer written.
    pub const VERIFY: u32 = 13;
    /// Remus: a checkpoint is complete.
    pub const CHECKPOINT: u32 = 14;
    /// No more static data.
    pub const STATIC_DATA_END: u32 = 16;
    /// The guest's CPUID policy.
    pub const X86_CPUID_POLICY: u32 = 17;
    /// The guest's MSR policy.
    pub const X86_MSR_POLICY: u32 = 18;
}

/// A record of the libxc stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its type.
    pub kind: u32,
    /// Where its header stands in the file.
    pub offset: u64,
    /// Length of its body in bytes, without padding.
    pub len: u32,
}

impl Record {
    /// Where its body stands in the file.
    pub fn body(&self) -> u64 {
        self.offset + RECORD_HEADER_BYTES
    }

    /// Where the next record stands.
    pub fn end(&self) -> u64 {
        self.body() + u64::from(self.len).next_multiple_of(8)
    }
}

/// A page as a PAGE_DATA record names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Frame number in bits 0 to 51, type in bits 60 to 63.
    pub word: u64,
    /// Where its bytes stand in the file; none for a page without data.
    pub data: Option<u64>,
}

impl Page {
    /// Its frame number.
    pub fn pfn(&self) -> u64 {
        self.word & ((1 << 52) - 1)
    }
}

/// A save file and where everything in it stands.
#[derive(Debug)]
pub struct SaveFile {
    file: File,
    len: u64,
    /// Where the libxc image header stands.
    pub libxc: u64,
    /// The libxc records, END last.
    pub records: Vec<Record>,
}

impl SaveFile {
    /// Opens a file and finds its records.
    ///
    /// # Errors
    /// It is not a save file of an HVM or PVH guest.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).doing(format!("opening {}", path.display()))?;
        let len = file.metadata().doing("measuring the save file")?.len();
        let mut save = Self { file, len, libxc: 0, records: Vec::new() };
        save.libxc = save.find_libxc()?;
        save.records = save.find_records()?;
        Ok(save)
    }

    /// Where the libxc stream stands in the file, from its headers to its END.
    pub fn libxc_range(&self) -> Range<u64> {
        self.libxc..self.records.last().map_or(self.libxc, Record::end)
    }

    /// Length of the file in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it; a save file that opened never is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the first libxc record stands.
    pub fn first_record(&self) -> u64 {
        self.libxc + LIBXC_HEADERS_BYTES
    }

    /// The first record of a kind.
    ///
    /// # Errors
    /// There is none.
    pub fn first(&self, kind: u32) -> Result<Record> {
        let found = self.records.iter().find(|record| record.kind == kind);
        found
            .copied()
            .ok_or_else(|| Error::new("reading the save file", format!("no record of type {kind:#x}")))
    }

    /// The pages that a PAGE_DATA record names.
    ///
    /// # Errors
    /// The record's own lengths do not agree.
    pub fn pages(&self, record: &Record) -> Result<Vec<Page>> {
        let count = u64::from(self.u32(record.body())?);
        let words = self.bytes(record.body() + 8, count * 8)?;
        let mut data = record.body() + 8 + count * 8;
        let mut pages = Vec::new();
        for word in words.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
        {
            let has_data = !matches!(word >> 60, 0xd..=0xf);
            pages.push(Page { word, data: has_data.then_some(data) });
            data += if has_data { PAGE_BYTES } else { 0 };
        }
        let expected = record.body() + u64::from(record.len);
        if data == expected {
            Ok(pages)
        } else {
            Err(Error::new("reading PAGE_DATA", format!("ends at {data}, not {expected}")))
        }
    }

    /// Each page that the stream names: where its last contents stand, none for a hole. The last word counts: a page that
    /// becomes a hole after its contents have come must be gone (the packaged receiver would keep it). Behind VERIFY nothing
    /// is written any more.
    ///
    /// # Errors
    /// As [`SaveFile::pages`].
    pub fn last_versions(&self) -> Result<BTreeMap<u64, Option<u64>>> {
        let mut last = BTreeMap::new();
        let written = self.records.iter().take_while(|record| record.kind != kind::VERIFY);
        for record in written.filter(|record| record.kind == kind::PAGE_DATA) {
            last.extend(self.pages(record)?.iter().map(|page| (page.pfn(), page.data)));
        }
        Ok(last)
    }

    /// The body of the first record of a kind.
    ///
    /// # Errors
    /// There is none.
    pub fn body_of(&self, kind: u32) -> Result<Vec<u8>> {
        let record = self.first(kind)?;
        self.bytes(record.body(), record.len.into())
    }

    /// The HVM parameters: index and value.
    ///
    /// # Errors
    /// There is no such record.
    pub fn hvm_params(&self) -> Result<Vec<(u64, u64)>> {
        let record = self.first(kind::HVM_PARAMS)?;
        let count = u64::from(self.u32(record.body())?);
        (0..count)
            .map(|entry| {
                let at = record.body() + 8 + entry * 16;
                Ok((self.u64(at)?, self.u64(at + 8)?))
            })
            .collect()
    }

    /// Bytes of the file.
    ///
    /// # Errors
    /// They lie beyond its end.
    pub fn bytes(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let place = format!("reading {len} bytes at {offset} of the save file");
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::new(place, format!("it has {} bytes", self.len)));
        }
        let mut bytes = vec![0; usize::try_from(len).doing(&place)?];
        self.file.read_exact_at(&mut bytes, offset).doing(place)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        let bytes = self.bytes(offset, N as u64)?;
        bytes.try_into().map_err(|_| Error::new("reading the save file", "short read"))
    }

    fn u32(&self, offset: u64) -> Result<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: u64) -> Result<u64> {
        self.array(offset).map(u64::from_le_bytes)
    }

    /// Goes through xl's header and libxl's records to the libxc stream.
    fn find_libxc(&self) -> Result<u64> {
        const XL_HEADER_BYTES: u64 = 32 + 16;
        const LIBXL_HEADER_BYTES: u64 = 16;
        const LIBXC_CONTEXT: u32 = 1;
        if !self.bytes(0, 32)?.starts_with(b"Xen saved domain, xl format") {
            return Err(Error::new("reading the save file", "it does not begin like one of xl"));
        }
        let mut at = XL_HEADER_BYTES + u64::from(self.u32(44)?) + LIBXL_HEADER_BYTES;
        while self.u32(at)? != LIBXC_CONTEXT {
            at += RECORD_HEADER_BYTES + u64::from(self.u32(at + 4)?).next_multiple_of(8);
        }
        let libxc = at + RECORD_HEADER_BYTES;
        match self.array(libxc + 8)? {
            [b'X', b'E', b'N', b'F'] => Ok(libxc),
            other => Err(Error::new("looking for the libxc stream", format!("it begins with {other:?}"))),
        }
    }

    fn find_records(&self) -> Result<Vec<Record>> {
        let mut records: Vec<Record> = Vec::new();
        let mut at = self.first_record();
        while records.last().is_none_or(|record| record.kind != kind::END) {
            let record = Record { kind: self.u32(at)?, offset: at, len: self.u32(at + 4)? };
            at = record.end();
            records.push(record);
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// Writes a small save file: static data end, pages 5, 6 and 7 (6 is a hole), parameters, end, libxl's tail.
    fn sample(name: &str) -> PathBuf {
        let mut file = b"Xen saved domain, xl format\n \0 \r".to_vec();
        for word in [0x0102_0304_u32, 3, 0, 8] {
            file.extend(word.to_le_bytes());
        }
        file.extend([4, 0, 0, 0, b'{', b'}', 0, 0]);
        file.extend([b'L', b'i', b'b', b'x', b'l', b'F', b'm', b't', 0, 0, 0, 2, 0, 0, 0, 0]);
        file.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        file.extend([0xff; 8]);
        file.extend([b'X', b'E', b'N', b'F', 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
        file.extend([2, 0, 0, 0, 12, 0, 0, 0, 4, 0, 0, 0, 17, 0, 0, 0]);
        record(&mut file, kind::STATIC_DATA_END, &[]);
        record(&mut file, kind::PAGE_DATA, &page_data());
        let params: Vec<u8> = [1_u64, 1, 0xfeffc].iter().flat_map(|value| value.to_le_bytes()).collect();
        record(&mut file, kind::HVM_PARAMS, &params);
        record(&mut file, kind::END, &[]);
        file.extend([0; 8]);
        let path = std::env::temp_dir().join(format!("e2e-{}-{name}", std::process::id()));
        std::fs::write(&path, file).unwrap();
        path
    }

    fn page_data() -> Vec<u8> {
        let words = [3_u64, 5, 6 | 0xf << 60, 7];
        let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        body.extend([0x55; 4096]);
        body.extend([0x77; 4096]);
        body
    }

    fn record(file: &mut Vec<u8>, kind: u32, body: &[u8]) {
        file.extend(kind.to_le_bytes());
        file.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        file.extend(body);
        file.resize(file.len().next_multiple_of(8), 0);
    }

    #[test]
    fn records_and_pages_are_found() {
        let path = sample("found");
        let save = SaveFile::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        let kinds: Vec<u32> = save.records.iter().map(|record| record.kind).collect();
        assert_eq!(kinds, [kind::STATIC_DATA_END, kind::PAGE_DATA, kind::HVM_PARAMS, kind::END]);
        assert_eq!(save.libxc_range().end + 8, save.len());
        let pages = save.pages(&save.records[1]).unwrap();
        let told: Vec<_> = pages.iter().map(|page| (page.pfn(), page.data.is_some())).collect();
        assert_eq!(told, [(5, true), (6, false), (7, true)]);
        assert_eq!(save.bytes(pages[2].data.unwrap(), 2).unwrap(), [0x77, 0x77]);
        assert_eq!(save.hvm_params().unwrap(), [(1, 0xfeffc)]);
    }

    #[test]
    fn what_is_no_save_file_is_refused() {
        let path = std::env::temp_dir().join(format!("e2e-{}-none", std::process::id()));
        std::fs::write(&path, [7; 100]).unwrap();
        assert!(SaveFile::open(&path).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
