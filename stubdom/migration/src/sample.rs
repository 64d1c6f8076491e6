//! Streams for tests: a writer that can also write what no sender should, and page contents from a seed.

use crate::stream::RecordType;
use alloc::vec::Vec;
use xen_abi::types::{Gfn, PAGE_SIZE};

/// Length of both headers, in bytes.
pub const HEADERS_BYTES: usize = 40;

/// An entry of a page list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A page with contents, those of [`contents`] with this seed.
    Data(Gfn, u64),
    /// XTAB.
    Hole(Gfn),
    /// BROKEN.
    Broken(Gfn),
    /// XALLOC.
    Alloc(Gfn),
}

impl Entry {
    /// Encodes the entry as it stands in a page list.
    pub fn encode(self) -> u64 {
        match self {
            Self::Data(gfn, _) => gfn.raw(),
            Self::Broken(gfn) => gfn.raw() | 0xd << 60,
            Self::Alloc(gfn) => gfn.raw() | 0xe << 60,
            Self::Hole(gfn) => gfn.raw() | 0xf << 60,
        }
    }
}

/// Returns the contents of a page: the same for the same seed and gfn, different from any other's.
pub fn contents(gfn: Gfn, seed: u64) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    let mut word =
        gfn.raw().wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd1b5_4a32_d192_ed03) | 1;
    for chunk in page.chunks_exact_mut(8) {
        chunk.copy_from_slice(&word.to_le_bytes());
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
    }
    page
}

/// A stream in the making.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    /// What is written so far.
    pub bytes: Vec<u8>,
}

impl Writer {
    /// Writes both headers of an HVM guest's stream.
    pub fn new(version: u32) -> Self {
        let mut writer = Self::default();
        writer.bytes.extend(u64::MAX.to_be_bytes());
        writer.bytes.extend(0x5845_4e46_u32.to_be_bytes());
        writer.bytes.extend(version.to_be_bytes());
        writer.bytes.extend([0; 8]); // options, reserved
        writer.bytes.extend(2_u32.to_le_bytes());
        writer.bytes.extend(12_u16.to_le_bytes());
        writer.bytes.extend([0; 2]);
        writer.bytes.extend(4_u32.to_le_bytes());
        writer.bytes.extend(17_u32.to_le_bytes());
        writer
    }

    /// Writes a whole stream's beginning, as libxl's sender does: headers, policies, STATIC_DATA_END.
    pub fn begin() -> Self {
        let mut writer = Self::new(3);
        writer.record(RecordType::X86_CPUID_POLICY, &[0x11; 48]);
        writer.record(RecordType::X86_MSR_POLICY, &[0x22; 32]);
        writer.record(RecordType::STATIC_DATA_END, &[]);
        writer
    }

    /// Writes a whole stream's end, as libxl's sender does: TSC, context, parameters, END.
    pub fn finish(&mut self, params: &[(u64, u64)]) {
        self.record(RecordType::X86_TSC_INFO, &[0; 24]);
        self.record(RecordType::HVM_CONTEXT, &[0x33; 100]);
        self.params(params);
        self.record(RecordType::END, &[]);
    }

    /// Writes a record with its padding.
    pub fn record(&mut self, record: RecordType, body: &[u8]) {
        self.header(record, u32::try_from(body.len()).unwrap_or(u32::MAX));
        self.bytes.extend(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// Writes a record header alone.
    pub fn header(&mut self, record: RecordType, length: u32) {
        self.bytes.extend(record.raw().to_le_bytes());
        self.bytes.extend(length.to_le_bytes());
    }

    /// Writes a PAGE_DATA record.
    pub fn pages(&mut self, entries: &[Entry]) {
        let nr_data = entries.iter().filter(|entry| matches!(entry, Entry::Data(..))).count();
        let length = 8 + entries.len() * 8 + nr_data * PAGE_SIZE;
        self.header(RecordType::PAGE_DATA, u32::try_from(length).unwrap_or(u32::MAX));
        self.bytes.extend((entries.len() as u64).to_le_bytes());
        for entry in entries {
            self.bytes.extend(entry.encode().to_le_bytes());
        }
        for entry in entries {
            if let Entry::Data(gfn, seed) = *entry {
                self.bytes.extend(contents(gfn, seed));
            }
        }
    }

    /// Writes an HVM_PARAMS record of index and value pairs.
    pub fn params(&mut self, params: &[(u64, u64)]) {
        let count = (params.len() as u64).to_le_bytes();
        let pairs = params.iter().flat_map(|(index, value)| [index.to_le_bytes(), value.to_le_bytes()]);
        let body: Vec<u8> = core::iter::once(count).chain(pairs).flatten().collect();
        self.record(RecordType::HVM_PARAMS, &body);
    }
}
