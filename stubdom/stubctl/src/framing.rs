//! Where a libxc stream ends: record headers only, bodies uncounted for.
//!
//! **Takes** how many bytes of the stream passed, and the bytes of headers. **Gives** what comes next: a header of so
//! many bytes, a body of so many, or the end. **Never** judges: whether a header makes sense is the stub's business.
//!
//! libxl goes on reading the same descriptor after the helper, so the relay must stop exactly behind the END record.
//! Layout: 24-byte image header, 16-byte domain header, then records of u32 type, u32 length (little-endian), body,
//! padding to 8 (Xen's `docs/specs/libxc-migration-stream.pandoc`).

/// Image header and domain header, together.
pub(crate) const STREAM_HEADER_BYTES: usize = 24 + 16;
const RECORD_HEADER_BYTES: usize = 8;
const REC_TYPE_END: u32 = 0;

/// What the stream wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// So many more bytes of a header; they must be shown to [`Framing::header`].
    Header(usize),
    /// So many more bytes of a body; they may pass unseen.
    Body(u64),
    /// Nothing: the END record has passed.
    Nothing,
}

/// The record that is passing, for error texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Bytes of the stream that passed.
    pub(crate) offset: u64,
    /// Where the current record (or the stream header) starts.
    pub(crate) start: u64,
    /// Its type; `None` in the stream header or in a record header.
    pub(crate) kind: Option<u32>,
    /// How many bytes of it are missing.
    pub(crate) missing: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    StreamHeader,
    RecordHeader,
    Body { kind: u32, left: u64 },
    End,
}

/// Follows a stream.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    /// The header as far as it came; `nr_header` bytes are filled.
    header: [u8; STREAM_HEADER_BYTES],
    nr_header: usize,
    offset: u64,
    start: u64,
}

impl Framing {
    /// At the first byte of a stream.
    pub(crate) fn new() -> Self {
        Self {
            state: State::StreamHeader,
            header: [0; STREAM_HEADER_BYTES],
            nr_header: 0,
            offset: 0,
            start: 0,
        }
    }

    /// What comes next.
    pub(crate) fn want(&self) -> Want {
        match self.state {
            State::StreamHeader => Want::Header(STREAM_HEADER_BYTES - self.nr_header),
            State::RecordHeader => Want::Header(RECORD_HEADER_BYTES - self.nr_header),
            State::Body { left, .. } => Want::Body(left),
            State::End => Want::Nothing,
        }
    }

    /// Where the stream is.
    pub(crate) fn place(&self) -> Place {
        let (kind, missing) = match (self.state, self.want()) {
            (State::Body { kind, left }, _) => (Some(kind), left),
            (_, Want::Header(missing)) => (None, missing as u64),
            _ => (None, 0),
        };
        Place { offset: self.offset, start: self.start, kind, missing }
    }

    /// Takes bytes of a header: at most as many as [`Want::Header`] says; more are ignored.
    pub(crate) fn header(&mut self, bytes: &[u8]) {
        let Want::Header(missing) = self.want() else { return };
        let bytes = &bytes[..bytes.len().min(missing)];
        self.header[self.nr_header..self.nr_header + bytes.len()].copy_from_slice(bytes);
        self.nr_header += bytes.len();
        self.offset += bytes.len() as u64;
        if bytes.len() == missing {
            self.end_of_header();
        }
    }

    /// Says that so many bytes of the body passed; at most as many as [`Want::Body`] says.
    pub(crate) fn body(&mut self, nr_bytes: u64) {
        let State::Body { kind, left } = self.state else { return };
        let nr_bytes = nr_bytes.min(left);
        self.offset += nr_bytes;
        self.state = State::Body { kind, left: left - nr_bytes };
        if nr_bytes == left {
            self.end_of_body(kind);
        }
    }

    fn end_of_header(&mut self) {
        self.nr_header = 0;
        if self.state == State::StreamHeader {
            self.begin_record();
            return;
        }
        let [k0, k1, k2, k3, l0, l1, l2, l3, ..] = self.header;
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        let len = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
        self.state = State::Body { kind, left: len.next_multiple_of(8) };
        if len == 0 {
            self.end_of_body(kind);
        }
    }

    fn end_of_body(&mut self, kind: u32) {
        if kind == REC_TYPE_END {
            self.state = State::End;
        } else {
            self.begin_record();
        }
    }

    fn begin_record(&mut self) {
        self.state = State::RecordHeader;
        self.start = self.offset;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers, a record of type 1 with 5 bytes and padding, an empty record, END, then libxl's own bytes.
    fn stream() -> Vec<u8> {
        let mut stream = vec![0xff; STREAM_HEADER_BYTES];
        stream.extend_from_slice(b"\x01\0\0\0\x05\0\0\0hello\0\0\0");
        stream.extend_from_slice(b"\x10\0\0\0\0\0\0\0");
        stream.extend_from_slice(b"\0\0\0\0\0\0\0\0");
        stream
    }

    /// Feeds at most `cut` bytes a time; gives how many were taken.
    fn run(bytes: &[u8], cut: usize) -> (usize, Framing) {
        let (mut framing, mut nr_taken) = (Framing::new(), 0);
        while nr_taken < bytes.len() {
            let rest = &bytes[nr_taken..];
            nr_taken += match framing.want() {
                Want::Header(want) => {
                    let nr = want.min(cut).min(rest.len());
                    framing.header(&rest[..nr]);
                    nr
                }
                Want::Body(want) => {
                    let nr = usize::try_from(want).unwrap().min(cut).min(rest.len());
                    framing.body(nr as u64);
                    nr
                }
                Want::Nothing => break,
            };
        }
        (nr_taken, framing)
    }

    #[test]
    fn it_stops_behind_end_whatever_the_cuts() {
        let mut bytes = stream();
        let end = bytes.len();
        bytes.extend_from_slice(b"\x02\0\0\0\x08\0\0\0libxl goes on");
        for cut in 1..=bytes.len() {
            let (nr_taken, framing) = run(&bytes, cut);
            assert_eq!(nr_taken, end, "cut {cut}");
            assert_eq!(framing.want(), Want::Nothing);
        }
    }

    #[test]
    fn a_stream_cut_short_knows_its_record() {
        let bytes = stream();
        let (_, framing) = run(&bytes[..STREAM_HEADER_BYTES + 8 + 3], 7);
        let place = Place { offset: 51, start: 40, kind: Some(1), missing: 5 };
        assert_eq!(framing.place(), place);
        let (_, framing) = run(&bytes[..STREAM_HEADER_BYTES + 16 + 2], 64);
        assert_eq!(framing.place(), Place { offset: 58, start: 56, kind: None, missing: 6 });
    }

    #[test]
    fn the_longest_length_does_not_overflow() {
        let mut framing = Framing::new();
        framing.header(&[0; STREAM_HEADER_BYTES]);
        framing.header(&[0xff; RECORD_HEADER_BYTES]);
        assert_eq!(framing.want(), Want::Body(0x1_0000_0000));
    }

    #[test]
    fn an_end_record_with_a_body_ends_behind_it() {
        let mut framing = Framing::new();
        framing.header(&[0; STREAM_HEADER_BYTES]);
        framing.header(b"\0\0\0\0\x03\0\0\0");
        assert_eq!(framing.want(), Want::Body(8));
        framing.body(8);
        assert_eq!(framing.want(), Want::Nothing);
    }
}
