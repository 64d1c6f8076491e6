//! From the stub's ring to libxl's descriptor, without looking at more than record headers.
//!
//! **Takes** the ring that the stub writes, and the descriptor that libxl handed over. **Gives** the stream, up to and
//! including the END record. **Never** writes a byte behind it, since libxl writes on there, whatever the stub says; never
//! changes the descriptor's flags, since libxl shares them; never waits for whoever reads a pipe.
//!
//! Record headers pass through private memory, so that the stub cannot move the place where the stream ends; bodies go
//! from the shared pages to the descriptor.

use crate::ffi::sys::Polled;
use crate::ffi::vchan::{InRing, Nonsense};
use crate::framing::{Framing, Place, STREAM_HEADER_BYTES, Want};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

/// Most bytes of one write: what a pipe takes at once is less, and a file's write is to end soon.
const WRITE_BYTES: usize = 1 << 20;

/// What ended the way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutletError {
    /// The descriptor takes no more.
    Sink {
        /// Where the stream was.
        place: Place,
        /// Why.
        kind: ErrorKind,
    },
    /// The stub's index makes no sense.
    Nonsense,
    /// The stub wrote on behind END.
    Trailing(Place),
    /// The stub says that it is done, and the stream is not complete.
    Early(Place),
    /// The stub asks for something before it has taken the answer to what it asked before.
    Hasty,
}

impl fmt::Display for OutletError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sink { place, kind: ErrorKind::BrokenPipe } => {
                write!(f, "whoever takes the stream is gone: it was at {place}")
            }
            Self::Sink { place, kind } => write!(f, "the stream cannot be written at {place}: {kind}"),
            Self::Nonsense => write!(f, "the stub's ring holds an index that makes no sense"),
            Self::Trailing(place) => write!(f, "the stub wrote on behind the END record, at {place}"),
            Self::Early(place) => write!(f, "the stub says it is done while the stream is at {place}"),
            Self::Hasty => write!(f, "the stub asked for more before it took the last answer"),
        }
    }
}

impl std::error::Error for OutletError {}

impl From<Nonsense> for OutletError {
    fn from(Nonsense: Nonsense) -> Self {
        Self::Nonsense
    }
}

/// The way out.
pub(crate) struct Outlet {
    sink: File,
    ring: InRing,
    framing: Framing,
    /// A header that was taken from the ring and has not gone out yet.
    header: Vec<u8>,
    nr_written: u64,
    /// Bytes taken from the ring since the stub was last told of room.
    nr_untold: usize,
    /// The descriptor took less than it was offered.
    is_blocked: bool,
}

impl Outlet {
    /// Stands between the two, with nothing moved yet.
    ///
    /// # Errors
    /// A pipe cannot be opened anew.
    pub(crate) fn new(ring: InRing, sink: OwnedFd) -> io::Result<Self> {
        let sink = unshared(File::from(sink))?;
        let (framing, header) = (Framing::new(), Vec::with_capacity(STREAM_HEADER_BYTES));
        Ok(Self { sink, ring, framing, header, nr_written: 0, nr_untold: 0, is_blocked: false })
    }

    /// How many bytes have gone out.
    pub(crate) fn nr_written(&self) -> u64 {
        self.nr_written
    }

    /// Whether the stream has gone out up to and including END.
    pub(crate) fn is_done(&self) -> bool {
        self.framing.want() == Want::Nothing && self.header.is_empty()
    }

    /// Where the stream is.
    pub(crate) fn place(&self) -> Place {
        self.framing.place()
    }

    /// Whether the stub owes the next byte; asks for an event then.
    ///
    /// # Errors
    /// The stub's index makes no sense.
    pub(crate) fn is_empty(&self) -> Result<bool, OutletError> {
        if self.nr_waiting()? > 0 {
            return Ok(false);
        }
        self.ring.request_event();
        Ok(self.nr_waiting()? == 0)
    }

    /// What to wait for before [`Outlet::pump`], as long as whoever reads the descriptor has to make room first.
    pub(crate) fn writable(&self) -> Polled<'_> {
        Polled::writable(self.sink.as_fd()).only_if(self.is_blocked)
    }

    /// Whether whoever reads the descriptor has to make room first.
    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Moves as much as goes at once; gives how many bytes left the ring.
    ///
    /// # Errors
    /// The stream cannot go on.
    pub(crate) fn pump(&mut self) -> Result<usize, OutletError> {
        self.is_blocked = false;
        let mut nr_moved = 0;
        // A turn's end is a look at everything else.
        while nr_moved < WRITE_BYTES && !self.is_blocked && self.nr_waiting()? > 0 {
            nr_moved += self.step()?;
        }
        Ok(nr_moved)
    }

    /// Takes what was read since, for the stub to be told of; whether it wants to be.
    pub(crate) fn take_wish(&mut self) -> bool {
        let is_much = self.nr_untold >= self.ring.len() / 4 || self.ring.nr_ready() == Ok(0);
        if self.nr_untold == 0 || !is_much {
            return false;
        }
        self.nr_untold = 0;
        self.ring.take_wish()
    }

    fn nr_waiting(&self) -> Result<usize, OutletError> {
        Ok(self.ring.nr_ready()? + self.header.len())
    }

    fn step(&mut self) -> Result<usize, OutletError> {
        if !self.header.is_empty() {
            let written = self.sink.write(&self.header);
            let nr = self.written(written)?;
            self.header.drain(..nr);
            return Ok(0);
        }
        let nr = match self.framing.want() {
            Want::Nothing => return Err(OutletError::Trailing(self.framing.place())),
            Want::Header(nr_wanted) => {
                let mut bytes = [0; STREAM_HEADER_BYTES];
                let nr = self.ring.read(&mut bytes[..nr_wanted])?;
                self.framing.header(&bytes[..nr]);
                self.header.extend_from_slice(&bytes[..nr]);
                nr
            }
            Want::Body(nr_wanted) => {
                let most = usize::try_from(nr_wanted).unwrap_or(usize::MAX).min(WRITE_BYTES);
                let written = self.ring.write_to(self.sink.as_fd(), most);
                let nr = self.written(written)?;
                self.framing.body(nr as u64);
                nr
            }
        };
        self.nr_untold += nr;
        Ok(nr)
    }

    /// Takes the result of a write: one that would wait is none.
    fn written(&mut self, result: io::Result<usize>) -> Result<usize, OutletError> {
        match result {
            Ok(nr) => {
                self.nr_written += nr as u64;
                Ok(nr)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_blocked = true;
                Ok(0)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
            Err(error) if error.kind() == ErrorKind::InvalidData => Err(OutletError::Nonsense),
            Err(error) => Err(OutletError::Sink { place: self.framing.place(), kind: error.kind() }),
        }
    }
}

/// Opens a pipe anew, so that writes to it return at once and libxl's own do not: the flag belongs to the open file. A
/// regular file never makes a writer wait for a reader.
fn unshared(sink: File) -> io::Result<File> {
    if !sink.metadata()?.file_type().is_fifo() {
        return Ok(sink);
    }
    let path = format!("/proc/self/fd/{}", sink.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::vchan::in_ring_tests::pair;
    use std::io::{PipeReader, Read};

    /// Headers, a record of 3,000 bytes, END.
    fn stream() -> Vec<u8> {
        let mut stream = vec![0xee; STREAM_HEADER_BYTES];
        stream.extend_from_slice(&[1, 0, 0, 0, 0xb8, 0x0b, 0, 0]);
        stream.extend((0..3000_u32).map(|i| (i % 251).to_le_bytes()[0]));
        stream.extend_from_slice(&[0; 8]);
        stream
    }

    fn outlet() -> (Outlet, crate::ffi::vchan::in_ring_tests::Far, PipeReader) {
        let ((ring, far), (reader, writer)) = (pair(77), io::pipe().unwrap());
        (Outlet::new(ring, writer.into()).unwrap(), far, reader)
    }

    #[test]
    fn the_stream_goes_out_however_it_is_cut() {
        for cut in [1, 7, 48, 4000] {
            let (mut outlet, far, mut reader) = outlet();
            for piece in stream().chunks(cut) {
                far.put(piece);
                while outlet.pump().unwrap() > 0 {}
            }
            assert!(outlet.is_done() && outlet.is_empty().unwrap());
            assert_eq!(outlet.nr_written(), stream().len() as u64);
            drop(outlet);
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            assert!(got == stream(), "{cut} bytes at a time");
        }
    }

    #[test]
    fn a_full_pipe_does_not_make_it_wait_and_its_flags_stay() {
        let ((ring, far), (mut reader, writer)) = (pair(0), io::pipe().unwrap());
        let theirs = writer.try_clone().unwrap();
        let mut outlet = Outlet::new(ring, writer.into()).unwrap();
        far.put(&stream()[..STREAM_HEADER_BYTES]);
        far.put(&[1, 0, 0, 0, 0, 0, 0x10, 0]); // a body of 1 MiB
        let mut nr_put = 0;
        while !outlet.is_blocked {
            far.put(&[0; 2048]);
            nr_put += 2048;
            outlet.pump().unwrap();
        }
        assert!((64 << 10..256 << 10).contains(&nr_put), "{nr_put}");
        // What libxl holds is still a pipe that waits.
        let flags = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", theirs.as_raw_fd())).unwrap();
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned();
        assert_eq!(i32::from_str_radix(&flags, 8).unwrap() & libc::O_NONBLOCK, 0);
        reader.read_exact(&mut vec![0; 60 << 10]).unwrap();
        assert!(outlet.pump().unwrap() > 0 || !outlet.is_blocked);
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error() {
        let (mut outlet, far, reader) = outlet();
        drop(reader);
        far.put(&stream());
        let error = outlet.pump().unwrap_err();
        assert!(matches!(error, OutletError::Sink { kind: ErrorKind::BrokenPipe, .. }), "{error}");
    }

    #[test]
    fn nothing_goes_out_behind_end() {
        let (mut outlet, far, mut reader) = outlet();
        far.put(&stream());
        far.put(b"more");
        assert!(matches!(outlet.pump(), Err(OutletError::Trailing(_))));
        drop(outlet);
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert!(got == stream());
    }

    #[test]
    fn a_stub_whose_index_lies_is_believed_nothing() {
        let (mut outlet, far, _reader) = outlet();
        far.lie();
        assert_eq!(outlet.pump(), Err(OutletError::Nonsense));
        assert_eq!(outlet.is_empty(), Err(OutletError::Nonsense));
    }
}
