//! A gate in a migration's stream: lets it through, and stops at the places of it where something may happen.
//!
//! **Takes** what `xl migrate` sends, in order and once. **Gives** the same bytes, and a call at each place when all
//! before it has gone out. **Never** changes a byte: what a story breaks, it breaks around the stream.

use crate::savefile::{PAGE_BYTES, kind};
use std::io::{self, BufRead, Error, Read, Write};

/// xl's header without its optional data; the length of these is its last word.
const XL_HEADER_BYTES: usize = 32 + 16;

/// libxl's stream header.
const LIBXL_HEADER_BYTES: u64 = 16;

/// libxl's records (`tools/libs/light/libxl_sr_stream_format.h`): its last, the one that the libxc stream follows, and the
/// device model's state behind a header of 8 bytes.
const LIBXL_END: u32 = 0;
const LIBXC_CONTEXT: u32 = 1;
const EMULATOR_CONTEXT: u32 = 3;

/// libxc's image header and domain header.
const LIBXC_HEADERS_BYTES: u64 = 24 + 16;

/// Which record of pages stands for "in the middle of the first pass".
const SOME_RECORDS: u64 = 3;

/// Longest list of pages in one record (`MAX_BATCH_SIZE` of Xen's sender is 1024).
const MAX_PAGES: u64 = 1 << 16;

/// A place in the stream, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Place {
    /// Before the libxc stream: nobody has been asked to restore anything.
    Context,
    /// Before the first byte of the libxc stream: the helper is running.
    Headers,
    /// In the first pass over memory.
    Memory,
    /// In the body of a record of pages.
    Page,
    /// Before the first record of the second pass.
    Precopy,
    /// Before the first record behind the last page.
    State,
    /// Before END.
    End,
    /// Behind END: the rest is libxl's own.
    After,
}

/// Counts passes over memory by the order of their frame numbers, which Xen's sender walks upwards.
#[derive(Debug, Default)]
struct Passes {
    nr_records: u64,
    nr_passes: u64,
    last: Option<u64>,
}

impl Passes {
    fn note(&mut self, first_pfn: u64) {
        self.nr_records += 1;
        if self.last.is_none_or(|last| first_pfn <= last) {
            self.nr_passes += 1;
        }
        self.last = Some(first_pfn);
    }
}

/// What passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Passes over memory.
    pub nr_passes: u64,
    /// Records of pages.
    pub nr_records: u64,
}

/// Passes everything on and calls `reached` once at each place that the stream has; `emulator` gets a copy of the device
/// model's state.
///
/// # Errors
/// Either side breaks off, or the stream is not one of xl.
pub fn pass(
    from: &mut impl BufRead,
    to: &mut impl Write,
    emulator: &mut impl Write,
    reached: impl FnMut(Place),
) -> io::Result<Passed> {
    let mut gate = Gate { from, to, reached, last: None };
    gate.head()?;
    let passed = gate.libxc()?;
    gate.libxl(emulator)?;
    gate.rest()?;
    Ok(passed)
}

struct Gate<'a, R, W, F> {
    from: &'a mut R,
    to: &'a mut W,
    reached: F,
    /// The last place reached: the places come in their order.
    last: Option<Place>,
}

impl<R: BufRead, W: Write, F: FnMut(Place)> Gate<'_, R, W, F> {
    /// Up to the libxc stream.
    fn head(&mut self) -> io::Result<()> {
        let header: [u8; XL_HEADER_BYTES] = self.take()?;
        if !header.starts_with(b"Xen saved domain, xl format") {
            return Err(Error::other("the stream does not begin like one of xl"));
        }
        self.to.write_all(&header)?;
        self.copy(u64::from(word(&header, XL_HEADER_BYTES - 4)) + LIBXL_HEADER_BYTES)?;
        loop {
            let header: [u8; 8] = self.take()?;
            if word(&header, 0) == LIBXC_CONTEXT {
                self.reach(Place::Context)?;
                self.to.write_all(&header)?;
                return self.reach(Place::Headers);
            }
            self.to.write_all(&header)?;
            self.copy(padded(word(&header, 4)))?;
        }
    }

    /// The libxc stream.
    fn libxc(&mut self) -> io::Result<Passed> {
        let mut passes = Passes::default();
        self.copy(LIBXC_HEADERS_BYTES)?;
        loop {
            let header: [u8; 8] = self.take()?;
            let (kind, len) = (word(&header, 0), word(&header, 4));
            match kind {
                kind::PAGE_DATA => self.pages(header, &mut passes)?,
                kind::END => {
                    self.reach(Place::End)?;
                    self.to.write_all(&header)?;
                    self.copy(padded(len))?;
                    self.reach(Place::After)?;
                    let Passes { nr_records, nr_passes, .. } = passes;
                    return Ok(Passed { nr_passes, nr_records });
                }
                _ => {
                    if passes.nr_records > 0 {
                        self.reach(Place::State)?;
                    }
                    self.to.write_all(&header)?;
                    self.copy(padded(len))?;
                }
            }
        }
    }

    /// A record of pages, whose first words tell which.
    fn pages(&mut self, header: [u8; 8], passes: &mut Passes) -> io::Result<()> {
        let opening: [u8; 16] = self.take()?;
        let (count, first) = (u64::from(word(&opening, 0)), word(&opening, 8));
        if count > MAX_PAGES {
            return Err(Error::other(format!("a record of {count} pages")));
        }
        let before = passes.nr_passes;
        passes.note(u64::from(first));
        if passes.nr_records == SOME_RECORDS {
            self.reach(Place::Memory)?;
        }
        if before == 1 && passes.nr_passes == 2 {
            self.reach(Place::Precopy)?;
        }
        self.to.write_all(&header)?;
        self.to.write_all(&opening)?;
        let rest = padded(word(&header, 4)).saturating_sub(opening.len() as u64);
        let list = ((count - count.min(1)) * 8).min(rest);
        self.copy(list)?;
        let part = (rest - list).min(PAGE_BYTES / 2);
        self.copy(part)?;
        if passes.nr_records == SOME_RECORDS {
            self.reach(Place::Page)?;
        }
        self.copy(rest - list - part)
    }

    fn reach(&mut self, here: Place) -> io::Result<()> {
        if self.last < Some(here) {
            self.last = Some(here);
            self.to.flush()?;
            (self.reached)(here);
        }
        Ok(())
    }

    /// libxl's records behind END.
    fn libxl(&mut self, emulator: &mut impl Write) -> io::Result<()> {
        loop {
            self.to.flush()?;
            if self.from.fill_buf()?.is_empty() {
                return Ok(()); // broken off
            }
            let header: [u8; 8] = self.take()?;
            let (kind, len) = (word(&header, 0), word(&header, 4));
            self.to.write_all(&header)?;
            match kind {
                LIBXL_END => return Ok(()),
                EMULATOR_CONTEXT if len >= 8 => self.emulator(len, emulator)?,
                _ => self.copy(padded(len))?,
            }
        }
    }

    fn emulator(&mut self, len: u32, emulator: &mut impl Write) -> io::Result<()> {
        self.copy(8)?;
        let state = u64::from(len) - 8;
        let mut both = Both(&mut *self.to, emulator);
        match io::copy(&mut self.from.take(state), &mut both)? {
            copied if copied == state => self.copy(padded(len) - u64::from(len)),
            copied => {
                Err(Error::other(format!("the device model's state ends {} bytes early", state - copied)))
            }
        }
    }

    /// Everything behind, as it comes: libxl and xl wait for answers in between.
    fn rest(&mut self) -> io::Result<()> {
        loop {
            self.to.flush()?;
            let piece = self.from.fill_buf()?;
            if piece.is_empty() {
                return Ok(());
            }
            self.to.write_all(piece)?;
            let len = piece.len();
            self.from.consume(len);
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        // Nothing may wait here for what the other end is to see first.
        if self.from.fill_buf()?.len() < N {
            self.to.flush()?;
        }
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn copy(&mut self, len: u64) -> io::Result<()> {
        match io::copy(&mut self.from.take(len), self.to)? {
            copied if copied == len => Ok(()),
            copied => Err(Error::other(format!("the stream ends {} bytes early", len - copied))),
        }
    }
}

/// Writes the same to two.
struct Both<'a, A, B>(&'a mut A, &'a mut B);

impl<A: Write, B: Write> Write for Both<'_, A, B> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        self.1.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        self.1.flush()
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn padded(len: u32) -> u64 {
    u64::from(len).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// The device model's.
    const STATE: &[u8] = b"QEMU's state";

    fn record(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    /// One page with its bytes.
    fn page(pfn: u64) -> Vec<u8> {
        let mut body: Vec<u8> = [1, pfn].iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
        body.extend([7; 4096]);
        record(kind::PAGE_DATA, &body)
    }

    /// Headers, nine records of pages, one more of a second pass, state, END, and libxl's tail.
    fn stream() -> Vec<u8> {
        let mut bytes = b"Xen saved domain, xl format\n \0 \r".to_vec();
        [0x0102_0304_u32, 3, 0, 8].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend([7; 8 + 16]);
        bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([8; 40]);
        bytes.extend(record(kind::STATIC_DATA_END, &[]));
        (1..10).for_each(|pfn| bytes.extend(page(pfn)));
        bytes.extend(page(5));
        bytes.extend(record(kind::HVM_PARAMS, &[9; 13]));
        bytes.extend(record(kind::END, &[]));
        bytes.extend(record(2, &[4; 20]));
        bytes.extend(record(EMULATOR_CONTEXT, &[[2, 0, 0, 0, 0, 0, 0, 0].as_slice(), STATE].concat()));
        bytes.extend(record(LIBXL_END, &[]));
        bytes.extend([6; 9]); // xl's own
        bytes
    }

    /// Bytes that had passed when the deed was done, and what had passed in the end.
    fn at(place: Place) -> usize {
        let stream = stream();
        let passed = RefCell::new(Vec::new());
        let mut seen = Vec::new();
        let mut to = Tap(&passed);
        let mut emulator = Vec::new();
        let result = pass(&mut &stream[..], &mut to, &mut emulator, |here| {
            if here == place {
                seen.push(passed.borrow().len());
            }
        });
        assert_eq!(result.unwrap(), Passed { nr_passes: 2, nr_records: 10 });
        assert_eq!(*passed.borrow(), stream);
        assert_eq!(emulator, STATE);
        assert_eq!(seen.len(), 1);
        seen[0]
    }

    struct Tap<'a>(&'a RefCell<Vec<u8>>);

    impl Write for Tap<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_place_is_where_it_says() {
        let (page, head) = (page(1).len(), 48 + 8 + 16);
        let pages = head + 8 + 40 + 8;
        assert_eq!(at(Place::Context), head);
        assert_eq!(at(Place::Headers), head + 8);
        assert_eq!(at(Place::Memory), pages + 2 * page);
        assert_eq!(at(Place::Page), pages + 2 * page + 8 + 16 + 2048);
        assert_eq!(at(Place::Precopy), pages + 9 * page);
        assert_eq!(at(Place::State), pages + 10 * page);
        assert_eq!(at(Place::End), pages + 10 * page + 24);
        assert_eq!(at(Place::After), pages + 10 * page + 32);
    }

    #[test]
    fn a_stream_that_ends_early_is_told() {
        let stream = stream();
        let cut = &stream[..stream.len() / 2];
        assert!(pass(&mut &cut[..], &mut Vec::new(), &mut io::sink(), |_| ()).is_err());
        assert!(pass(&mut &[0_u8; 100][..], &mut Vec::new(), &mut io::sink(), |_| ()).is_err());
    }
}
