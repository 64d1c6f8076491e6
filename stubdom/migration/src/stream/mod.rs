//! STREAM: bytes to items.
//!
//! **Takes** the bytes of a libxc migration stream, cut anywhere. **Gives** items that borrow from them: headers,
//! records by name, page lists, page contents, blobs, parameters. **Never** holds more than one page list, allocates
//! after its construction, reads past END, or panics: every length, count, reserved bit and padding byte is checked
//! here, so that the rooms to the right see only what the format allows.
//!
//! Source: `docs/specs/libxc-migration-stream`, versions 2 and 3, records of an x86 HVM guest. What must follow what
//! is the next room's affair.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

mod error;
mod gather;
mod item;
mod record;

use alloc::vec::Vec;
use xen_abi::types::{Gfn, PAGE_SIZE};

pub use error::{Error, Fault, Place};
use gather::Gather;
pub use item::{BlobKind, Headers, Item, Param, Piece, Run, TscInfo, Unbacked, Version};
pub use record::RecordType;

/// Most pages of one [`Item::Pages`].
pub const BATCH_PAGES: usize = 1024;

/// Longest body of any record, in bytes (`REC_LENGTH_MAX`).
pub const MAX_RECORD_BYTES: u32 = 128 << 20;

/// Longest CPUID or MSR policy, in bytes: ten times what the largest hosts send.
pub const MAX_POLICY_BYTES: u32 = 64 << 10;

/// Longest HVM context, in bytes: 128 vCPUs with all the XSAVE state there is come to 2 MiB.
pub const MAX_CONTEXT_BYTES: u32 = 4 << 20;

/// One past the highest `HVM_PARAM_*` index that is let through; Xen 4.17 knows 39 and judges the rest itself.
pub const MAX_PARAMS: u32 = 64;

/// Most pages with contents that one record can bring: what [`MAX_RECORD_BYTES`] has room for.
const MAX_LISTED_PAGES: usize = (MAX_RECORD_BYTES as usize - ENTRY_BYTES) / (PAGE_SIZE + ENTRY_BYTES);

const ENTRY_BYTES: usize = 8;
const PAGE_BYTES: u32 = 1 << xen_abi::types::PAGE_SHIFT;

/// Where the parser is; numbers count what is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ImageHeader,
    DomainHeader { version: Version },
    RecordHeader,
    PageCount { length: u32 },
    PageList { nr_entries: u32, nr_data: u32 },
    PagesDue { first: usize },
    Contents { next: usize, nr_bytes: u32 },
    Blob { kind: BlobKind, total: u32, nr_bytes: u32 },
    TscInfo,
    ParamCount { length: u32 },
    Params { nr_entries: u32 },
    Skip { nr_bytes: u32, padding: u32 },
    Padding { nr_bytes: u32 },
    Ended,
}

/// What one turn of the parser came to.
enum Turn<'i> {
    /// The input is used up.
    Starved,
    /// The state has moved; go on.
    Again,
    /// An item is complete.
    Give(Item<'i>),
    /// The next batch of the page list is due, from here on.
    GivePages { first: usize },
}

/// The incremental parser of one stream.
#[derive(Debug)]
pub struct Parser {
    state: State,
    gather: Gather,
    record: Option<RecordType>,
    pages: Vec<Gfn>, // pages with contents of the current record; never grows past its first capacity
    run: Option<Run>,
}

impl Parser {
    /// Makes the parser of a new stream; allocates the one page list, 256 KiB.
    pub fn new() -> Self {
        Self {
            state: State::ImageHeader,
            gather: Gather::new(),
            record: None,
            pages: Vec::with_capacity(MAX_LISTED_PAGES),
            run: None,
        }
    }

    /// Returns the next item of `input` and moves `input` past what it took; `None` when it took all of it, or when
    /// the stream has ended.
    ///
    /// # Errors
    /// The first fault. The stream cannot be read on after it.
    pub fn next<'p, 'i: 'p>(&'p mut self, input: &mut &'i [u8]) -> Result<Option<Item<'p>>, Error> {
        loop {
            match self.turn(input)? {
                Turn::Starved => return Ok(None),
                Turn::Again => {}
                Turn::Give(item) => return Ok(Some(item)),
                Turn::GivePages { first } => return Ok(Some(Item::Pages(self.batch(first)))),
            }
        }
    }

    /// Returns where the next byte stands.
    pub fn place(&self) -> Place {
        Place { offset: self.gather.nr_taken(), record: self.record }
    }

    /// Returns how many of the next bytes are page contents, so that [`Parser::pass`] may count them unseen.
    pub fn contents_due(&self) -> u32 {
        if let State::Contents { nr_bytes, .. } = self.state { nr_bytes } else { 0 }
    }

    /// Counts contents that went another way, at most as many as are due; gives how many that is.
    pub fn pass(&mut self, nr_bytes: u32) -> u32 {
        let State::Contents { next, nr_bytes: due } = self.state else { return 0 };
        let nr_passed = nr_bytes.min(due);
        self.gather.pass(nr_passed);
        self.state = State::Contents { next, nr_bytes: due.saturating_sub(nr_passed) };
        nr_passed
    }

    /// Tells whether the END record has been taken.
    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    fn turn<'i>(&mut self, input: &mut &'i [u8]) -> Result<Turn<'i>, Error> {
        match self.state {
            State::ImageHeader => self.image_header(input),
            State::DomainHeader { version } => self.domain_header(version, input),
            State::RecordHeader => self.record_header(input),
            State::PageCount { length } => self.page_count(length, input),
            State::PageList { nr_entries, nr_data } => self.page_list(nr_entries, nr_data, input),
            State::PagesDue { first } => Ok(self.pages_due(first)),
            State::Contents { next, nr_bytes } => Ok(self.contents(next, nr_bytes, input)),
            State::Blob { kind, total, nr_bytes } => Ok(self.blob(kind, total, nr_bytes, input)),
            State::TscInfo => self.tsc_info(input),
            State::ParamCount { length } => self.param_count(length, input),
            State::Params { nr_entries } => self.params(nr_entries, input),
            State::Skip { nr_bytes, padding } => Ok(self.skip(nr_bytes, padding, input)),
            State::Padding { nr_bytes } => self.padding(nr_bytes, input),
            State::Ended => Ok(Turn::Starved),
        }
    }

    fn image_header<'i>(&mut self, input: &mut &'i [u8]) -> Result<Turn<'i>, Error> {
        let Some(field) = self.gather.field::<24>(input) else { return Ok(Turn::Starved) };
        let [m0, m1, m2, m3, m4, m5, m6, m7, i0, i1, i2, i3, v0, v1, v2, v3, o0, o1, reserved @ ..] = field;
        let marker = u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
        let magic = u32::from_be_bytes([i0, i1, i2, i3]);
        let options = u16::from_be_bytes([o0, o1]);
        self.ensure(marker == u64::MAX, 24, Fault::Marker { got: marker })?;
        self.ensure(magic == MAGIC, 16, Fault::Magic { got: magic })?;
        let version = match u32::from_be_bytes([v0, v1, v2, v3]) {
            2 => Version::V2,
            3 => Version::V3,
            got => return Err(self.fault(12, Fault::Version { got })),
        };
        self.ensure(options & OPTION_BIG_ENDIAN == 0, 8, Fault::BigEndian)?;
        self.ensure(options == 0, 8, Fault::Options { got: options })?;
        let [r0, r1, r2, r3, r4, r5] = reserved;
        let reserved = u64::from_be_bytes([0, 0, r0, r1, r2, r3, r4, r5]);
        self.ensure(reserved == 0, 6, Fault::Reserved { got: reserved })?;
        Ok(self.go(State::DomainHeader { version }))
    }

    fn domain_header<'i>(&mut self, version: Version, input: &mut &'i [u8]) -> Result<Turn<'i>, Error> {
        let Some(field) = self.gather.field::<16>(input) else { return Ok(Turn::Starved) };
        let [t0, t1, t2, t3, s0, s1, r0, r1, a0, a1, a2, a3, i0, i1, i2, i3] = field;
        let guest = u32::from_le_bytes([t0, t1, t2, t3]);
        let shift = u16::from_le_bytes([s0, s1]);
        let reserved = u16::from_le_bytes([r0, r1]);
        self.ensure(guest == GUEST_HVM, 16, Fault::GuestType { got: guest })?;
        self.ensure(u32::from(shift) == xen_abi::types::PAGE_SHIFT, 12, Fault::PageShift { got: shift })?;
        self.ensure(reserved == 0, 10, Fault::Reserved { got: reserved.into() })?;
        let xen = (u32::from_le_bytes([a0, a1, a2, a3]), u32::from_le_bytes([i0, i1, i2, i3]));
        self.state = State::RecordHeader;
        Ok(Turn::Give(Item::Headers(Headers { version, xen })))
    }

    fn record_header<'i>(&mut self, input: &mut &'i [u8]) -> Result<Turn<'i>, Error> {
        let Some([t0, t1, t2, t3, l0, l1, l2, l3]) = self.gather.field::<8>(input) else {
            return Ok(Turn::Starved);
        };
        let record = RecordType::new(u32::from_le_bytes([t0, t1, t2, t3]));
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        self.record = Some(record);
        self.state = body(record, length).map_err(|fault| self.fault(RECORD_HEADER_BYTES, fault))?;
        Ok(Turn::Give(Item::Record(record)))
    }

    fn page_count<'i>(&mut self, length: u32, input: &mut &'i [u8]) -> Result<Turn<'i>, Error> {
        let Some(field) = self.gather.field::<8>(input) else { return Ok(Turn::Starved) };
        let nr_entries = self.count_field(field)?;
        let data_bytes = self.after_entries(length, nr_entries, 8)?;
        let nr_data = data_bytes / PAGE_BYTES;
        let whole = data_bytes.is_multiple_of(PAGE_BYTES);
        self.ensure(whole, 8, Fault::NotMultiple { of: PAGE_BYTES, got: data_bytes })?;
        self.pages.clear();
        Ok(self.go(State::PageList { nr_entries, nr_data }))
    }

    /// Reads entries until the input or the list ends or a run without contents is complete.
    fn page_list<'i>(
        &mut self,
        nr_entries: u32,
        nr_data: u32,
        input: &mut &'i [u8],
    ) -> Result<Turn<'i>, Error> {
        let mut nr_entries = nr_entries;
        while nr_entries > 0 {
            let Some(field) = self.gather.field::<ENTRY_BYTES>(input) else {
                self.state = State::PageList { nr_entries, nr_data };
                return Ok(Turn::Starved);
            };
            nr_entries = nr_entries.saturating_sub(1);
            if let Some(run) = self.entry(u64::from_le_bytes(field), nr_data)? {
                self.state = State::PageList { nr_entries, nr_data };
                return Ok(Turn::Give(Item::Run(run)));
            }
        }
        if let Some(run) = self.run.take() {
            self.state = State::PageList { nr_entries, nr_data };
            return Ok(Turn::Give(Item::Run(run)));
        }
        let nr_listed = self.nr_listed();
        self.ensure(nr_listed == nr_data, 0, Fault::PagesWithData { expected: nr_data, got: nr_listed })?;
        Ok(self.go(State::PagesDue { first: 0 }))
    }

    /// Sorts one entry into the list or the current run; returns the run before it when that has ended.
    fn entry(&mut self, entry: u64, nr_data: u32) -> Result<Option<Run>, Error> {
        self.ensure(entry & PFN_RESERVED == 0, ENTRY_BYTES, Fault::PfnReserved { got: entry })?;
        let gfn = Gfn::new(entry & PFN_MASK);
        let kind = match page_type(entry) {
            // Only PV guests have page tables (1 to 4, pinned from 9 on); their contents are as good as any.
            0..=4 | 9..=0xc => return self.list(gfn, nr_data).map(|()| None),
            0xd => Unbacked::Broken,
            0xe => Unbacked::Alloc,
            0xf => Unbacked::Hole,
            got => return Err(self.fault(ENTRY_BYTES, Fault::PageType { gfn, got })),
        };
        if let Some(run) = &mut self.run
            && run.kind == kind
            && run.first.checked_add(run.nr_frames) == Some(gfn)
        {
            run.nr_frames = run.nr_frames.saturating_add(1);
            return Ok(None);
        }
        Ok(self.run.replace(Run { kind, first: gfn, nr_frames: 1 }))
    }

    fn list(&mut self, gfn: Gfn, nr_data: u32) -> Result<(), Error> {
        let got = self.nr_listed().saturating_add(1);
        self.ensure(got <= nr_data, ENTRY_BYTES, Fault::PagesWithData { expected: nr_data, got })?;
        self.pages.push(gfn);
        Ok(())
    }

    fn pages_due<'i>(&mut self, first: usize) -> Turn<'i> {
        let nr_pages = self.batch(first).len();
        if nr_pages == 0 {
            return self.go(State::RecordHeader);
        }
        // At most BATCH_PAGES pages: far below 4 GiB.
        let nr_bytes = u32::try_from(nr_pages.saturating_mul(PAGE_SIZE)).unwrap_or(u32::MAX);
        self.state = State::Contents { next: first.saturating_add(nr_pages), nr_bytes };
        Turn::GivePages { first }
    }

    fn contents<'i>(&mut self, next: usize, nr_bytes: u32, input: &mut &'i [u8]) -> Turn<'i> {
        if nr_bytes == 0 {
            return self.go(State::PagesDue { first: next });
        }
        let Some(bytes) = self.gather.some(nr_bytes, input) else { return Turn::Starved };
        self.state = State::Contents { next, nr_bytes: rest(nr_bytes, bytes) };
        Turn::Give(Item::Contents(bytes))
    }

    fn blob<'i>(&mut self, kind: BlobKind, total: u32, nr_bytes: u32, input: &mut &'i [u8]) -> Turn<'i> {
        if nr_bytes == 0 {
            return self.go(padding_after(total));
        }
        let Some(bytes) = self.gather.some(nr_bytes, input) else { return Turn::Starved };
        self.state = State::Blob { kind, total, nr_bytes: rest(nr_bytes, bytes) };
        Turn::Give(Item::Piece(Piece { kind, total, offset: total.saturating_sub(nr_bytes), bytes }))
    }

    fn tsc_info<'i>(&mut self, input: &mut &'i [u8]) -> Result<Turn<'i>, Error> {
        let Some(field) = self.gather.field::<24>(input) else { return Ok(Turn::Starved) };
        let [m0, m1, m2, m3, k0, k1, k2, k3, n0, n1, n2, n3, n4, n5, n6, n7, tail @ ..] = field;
        let [i0, i1, i2, i3, r0, r1, r2, r3] = tail;
        let reserved = u32::from_le_bytes([r0, r1, r2, r3]);
        self.ensure(reserved == 0, 4, Fault::Reserved { got: reserved.into() })?;
        self.state = State::RecordHeader;
        Ok(Turn::Give(Item::TscInfo(TscInfo {
            mode: u32::from_le_bytes([m0, m1, m2, m3]),
            khz: u32::from_le_bytes([k0, k1, k2, k3]),
            nsec: u64::from_le_bytes([n0, n1, n2, n3, n4, n5, n6, n7]),
            incarnation: u32::from_le_bytes([i0, i1, i2, i3]),
        })))
    }

    fn param_count<'i>(&mut self, length: u32, input: &mut &'i [u8]) -> Result<Turn<'i>, Error> {
        let Some(field) = self.gather.field::<8>(input) else { return Ok(Turn::Starved) };
        let nr_entries = self.count_field(field)?;
        let left = self.after_entries(length, nr_entries, PARAM_BYTES)?;
        let expected = u64::from(length).saturating_sub(left.into());
        self.ensure(left == 0, 8, Fault::Length { expected, got: length })?;
        Ok(self.go(State::Params { nr_entries }))
    }

    fn params<'i>(&mut self, nr_entries: u32, input: &mut &'i [u8]) -> Result<Turn<'i>, Error> {
        if nr_entries == 0 {
            return Ok(self.go(State::RecordHeader));
        }
        let Some(field) = self.gather.field::<16>(input) else { return Ok(Turn::Starved) };
        let [i0, i1, i2, i3, i4, i5, i6, i7, v @ ..] = field;
        let got = u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7]);
        let index = u32::try_from(got).unwrap_or(u32::MAX);
        self.ensure(index < MAX_PARAMS, 16, Fault::ParamIndex { got })?;
        self.state = State::Params { nr_entries: nr_entries.saturating_sub(1) };
        Ok(Turn::Give(Item::Param(Param { index, value: u64::from_le_bytes(v) })))
    }

    fn skip<'i>(&mut self, nr_bytes: u32, padding: u32, input: &mut &'i [u8]) -> Turn<'i> {
        if nr_bytes == 0 {
            return self.go(State::Padding { nr_bytes: padding });
        }
        let Some(bytes) = self.gather.some(nr_bytes, input) else { return Turn::Starved };
        self.go(State::Skip { nr_bytes: rest(nr_bytes, bytes), padding })
    }

    fn padding<'i>(&mut self, nr_bytes: u32, input: &mut &'i [u8]) -> Result<Turn<'i>, Error> {
        if nr_bytes == 0 {
            return Ok(self.go(State::RecordHeader));
        }
        let Some([got]) = self.gather.field::<1>(input) else { return Ok(Turn::Starved) };
        self.ensure(got == 0, 1, Fault::Padding { got })?;
        Ok(self.go(State::Padding { nr_bytes: nr_bytes.saturating_sub(1) }))
    }

    fn go<'i>(&mut self, state: State) -> Turn<'i> {
        self.state = state;
        Turn::Again
    }

    fn batch(&self, first: usize) -> &[Gfn] {
        let rest = self.pages.get(first..).unwrap_or_default();
        rest.get(..BATCH_PAGES).unwrap_or(rest)
    }

    fn nr_listed(&self) -> u32 {
        u32::try_from(self.pages.len()).unwrap_or(u32::MAX)
    }

    /// Takes a count that is followed by a reserved word.
    fn count_field(&self, field: [u8; 8]) -> Result<u32, Error> {
        let [c0, c1, c2, c3, r0, r1, r2, r3] = field;
        let reserved = u32::from_le_bytes([r0, r1, r2, r3]);
        self.ensure(reserved == 0, 4, Fault::Reserved { got: reserved.into() })?;
        Ok(u32::from_le_bytes([c0, c1, c2, c3]))
    }

    /// Returns how many bytes of a record of `length` remain after its count and so many entries.
    fn after_entries(&self, length: u32, nr_entries: u32, entry_bytes: u64) -> Result<u32, Error> {
        let expected = u64::from(nr_entries).saturating_mul(entry_bytes).saturating_add(8);
        let left = u64::from(length).checked_sub(expected).and_then(|left| u32::try_from(left).ok());
        left.ok_or_else(|| self.fault(8, Fault::Length { expected, got: length }))
    }

    fn ensure(&self, sound: bool, back: usize, fault: Fault) -> Result<(), Error> {
        if sound { Ok(()) } else { Err(self.fault(back, fault)) }
    }

    /// Makes the error of a field that began `back` bytes ago.
    fn fault(&self, back: usize, fault: Fault) -> Error {
        let offset = self.gather.nr_taken().saturating_sub(back as u64);
        Error { place: Place { offset, record: self.record }, fault }
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

const MAGIC: u32 = 0x5845_4e46; // "XENF"
const OPTION_BIG_ENDIAN: u16 = 1;
const GUEST_HVM: u32 = 2;
const RECORD_HEADER_BYTES: usize = 8;
const PARAM_BYTES: u64 = 16;
const CPUID_LEAF_BYTES: u32 = 24; // sizeof(xen_cpuid_leaf_t)
const MSR_ENTRY_BYTES: u32 = 16; // sizeof(xen_msr_entry_t)

const PFN_MASK: u64 = (1 << 52) - 1;
const PFN_RESERVED: u64 = 0xff << 52;

/// Returns bits 63 to 60 of a page list's entry.
const fn page_type(entry: u64) -> u8 {
    entry.to_be_bytes()[0] >> 4
}

/// Returns what is still to come of `nr_bytes` after `bytes`, which are no more.
fn rest(nr_bytes: u32, bytes: &[u8]) -> u32 {
    nr_bytes.saturating_sub(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
}

const fn padding_after(length: u32) -> State {
    State::Padding { nr_bytes: length.wrapping_neg() % 8 }
}

/// Says how the body of a record is read, from its type and length alone.
fn body(record: RecordType, length: u32) -> Result<State, Fault> {
    at_most(MAX_RECORD_BYTES, length)?;
    match record {
        RecordType::END => exactly(0, length).map(|()| State::Ended),
        RecordType::VERIFY | RecordType::STATIC_DATA_END => exactly(0, length).map(|()| State::RecordHeader),
        RecordType::PAGE_DATA => at_least(8, length).map(|()| State::PageCount { length }),
        RecordType::X86_TSC_INFO => exactly(24, length).map(|()| State::TscInfo),
        RecordType::HVM_PARAMS => at_least(8, length).map(|()| State::ParamCount { length }),
        RecordType::HVM_CONTEXT => blob(BlobKind::HvmContext, 1, MAX_CONTEXT_BYTES, length),
        RecordType::X86_CPUID_POLICY => {
            blob(BlobKind::CpuidPolicy, CPUID_LEAF_BYTES, MAX_POLICY_BYTES, length)
        }
        RecordType::X86_MSR_POLICY => blob(BlobKind::MsrPolicy, MSR_ENTRY_BYTES, MAX_POLICY_BYTES, length),
        RecordType::CHECKPOINT | RecordType::CHECKPOINT_DIRTY_PFN_LIST => Err(Fault::CheckpointRecord),
        RecordType::TOOLSTACK => Err(Fault::DeprecatedRecord),
        _ if record.name().is_some() => Err(Fault::PvRecord),
        _ if record.is_optional() => Ok(State::Skip { nr_bytes: length, padding: length.wrapping_neg() % 8 }),
        _ => Err(Fault::UnknownRecord),
    }
}

fn blob(kind: BlobKind, entry_bytes: u32, limit: u32, total: u32) -> Result<State, Fault> {
    at_most(limit, total)?;
    at_least(entry_bytes, total)?;
    if total.is_multiple_of(entry_bytes) {
        Ok(State::Blob { kind, total, nr_bytes: total })
    } else {
        Err(Fault::NotMultiple { of: entry_bytes, got: total })
    }
}

fn exactly(expected: u32, got: u32) -> Result<(), Fault> {
    if got == expected { Ok(()) } else { Err(Fault::Length { expected: expected.into(), got }) }
}

fn at_least(least: u32, got: u32) -> Result<(), Fault> {
    if got >= least { Ok(()) } else { Err(Fault::TooShort { least, got }) }
}

fn at_most(limit: u32, got: u32) -> Result<(), Fault> {
    if got <= limit { Ok(()) } else { Err(Fault::TooLong { limit, got }) }
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    reason = "a test may panic: that is how it fails"
)]
mod tests;
