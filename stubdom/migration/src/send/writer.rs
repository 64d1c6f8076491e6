//! WRITER: records to bytes, the mirror of [`crate::stream`].
//!
//! **Takes** records, one after another. **Gives** the bytes that are due next: some to copy from here, or how many of the
//! contents of pages, which never pass through here. **Never** holds more than one record's head and list.
//!
//! Layout: Xen's `docs/specs/libxc-migration-stream.pandoc`, version 3, an HVM or PVH guest.

use crate::stream::{Param, RecordType, TscInfo};
use alloc::vec::Vec;
use xen_abi::types::{Gfn, PAGE_SIZE};

/// What a page list says of a gfn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// NOTAB: the page's contents follow the list.
    Data(Gfn),
    /// XTAB: no memory is there.
    Hole(Gfn),
}

impl Entry {
    /// `XEN_DOMCTL_PFINFO_XTAB`, as bits 63 to 60 of an entry.
    const XTAB: u64 = 0xf << 60;

    const fn encode(self) -> u64 {
        match self {
            Self::Data(gfn) => gfn.raw(),
            Self::Hole(gfn) => gfn.raw() | Self::XTAB,
        }
    }
}

/// What goes out next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// So many bytes of the contents of the pages in the last list, in its order.
    Contents(u64),
    /// Nothing: the next record may be written.
    Nothing,
}

/// A stream in the making.
#[derive(Debug, Default)]
pub struct Writer {
    /// Bytes of records; those below `nr_gone` have gone out.
    head: Vec<u8>,
    nr_gone: usize,
    nr_contents: u64,
    nr_bytes: u64,
}

impl Writer {
    /// Returns what goes out next.
    pub fn due(&self) -> Due<'_> {
        match &self.head[self.nr_gone..] {
            [] if self.nr_contents == 0 => Due::Nothing,
            [] => Due::Contents(self.nr_contents),
            bytes => Due::Bytes(bytes),
        }
    }

    /// Notes that the next `nr_bytes` of what is due have gone out: no more than [`Writer::due`] says.
    pub fn pass(&mut self, nr_bytes: usize) {
        self.nr_bytes += nr_bytes as u64;
        if self.nr_gone < self.head.len() {
            self.nr_gone += nr_bytes;
        } else {
            self.nr_contents -= nr_bytes as u64;
        }
        if self.nr_gone == self.head.len() {
            self.head.clear();
            self.nr_gone = 0;
        }
    }

    /// Returns how many bytes have gone out.
    pub fn nr_bytes(&self) -> u64 {
        self.nr_bytes
    }

    /// Writes both headers, for a Xen of this version.
    pub fn headers(&mut self, (major, minor): (u32, u32)) {
        // The image header is big-endian and says that all else is little-endian.
        self.head.extend(u64::MAX.to_be_bytes());
        self.head.extend(0x5845_4e46_u32.to_be_bytes()); // "XENF"
        self.head.extend(3_u32.to_be_bytes());
        self.head.extend([0; 8]); // options, reserved
        self.head.extend(2_u32.to_le_bytes()); // DHDR_TYPE_X86_HVM
        self.head.extend(12_u16.to_le_bytes()); // page shift
        self.head.extend([0; 2]);
        self.head.extend(major.to_le_bytes());
        self.head.extend(minor.to_le_bytes());
    }

    /// Writes a record with its padding; the body is shorter than 4 GiB.
    pub fn record(&mut self, record: RecordType, body: &[u8]) {
        self.begin(record, body.len() as u64);
        self.head.extend_from_slice(body);
        self.head.resize(self.head.len().next_multiple_of(8), 0);
    }

    /// Writes X86_TSC_INFO.
    pub fn tsc_info(&mut self, info: TscInfo) {
        let mut body = [0; 24];
        body[..4].copy_from_slice(&info.mode.to_le_bytes());
        body[4..8].copy_from_slice(&info.khz.to_le_bytes());
        body[8..16].copy_from_slice(&info.nsec.to_le_bytes());
        body[16..20].copy_from_slice(&info.incarnation.to_le_bytes());
        self.record(RecordType::X86_TSC_INFO, &body);
    }

    /// Writes HVM_PARAMS.
    pub fn params(&mut self, params: &[Param]) {
        self.begin(RecordType::HVM_PARAMS, 8 + params.len() as u64 * 16);
        self.head.extend((params.len() as u64).to_le_bytes()); // count, reserved
        for param in params {
            self.head.extend(u64::from(param.index).to_le_bytes());
            self.head.extend(param.value.to_le_bytes());
        }
    }

    /// Writes PAGE_DATA up to its contents, which are due then. Nothing else is due before.
    pub fn pages(&mut self, entries: &[Entry]) {
        let nr_data = entries.iter().filter(|entry| matches!(entry, Entry::Data(_))).count();
        self.nr_contents = (nr_data * PAGE_SIZE) as u64;
        self.begin(RecordType::PAGE_DATA, 8 + entries.len() as u64 * 8 + self.nr_contents);
        self.head.extend((entries.len() as u64).to_le_bytes()); // count, reserved
        self.head.extend(entries.iter().flat_map(|entry| entry.encode().to_le_bytes()));
    }

    fn begin(&mut self, record: RecordType, nr_bytes: u64) {
        // A batch of pages or a bounded blob: far below 4 GiB.
        let length = u32::try_from(nr_bytes).unwrap_or(u32::MAX);
        self.head.extend(record.raw().to_le_bytes());
        self.head.extend(length.to_le_bytes());
    }
}
