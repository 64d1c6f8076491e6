use super::*;
use crate::ffi::vchan::out_ring_tests as out_ring;
use ring::Line;
use std::cell::RefCell;
use std::io::{Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

/// Headers, a page record of `nr` bytes, END.
fn stream(nr: u32) -> Vec<u8> {
    let mut stream = vec![0xff; STREAM_HEADER_BYTES];
    stream.extend_from_slice(&1u32.to_le_bytes());
    stream.extend_from_slice(&nr.to_le_bytes());
    stream.extend((0..nr.next_multiple_of(8)).map(|i| (i / 7).to_le_bytes()[0]));
    stream.extend_from_slice(&[0; 8]);
    stream
}

/// Runs a relay from `source` to a local listener; gives its result and what arrived.
fn run(source: OwnedFd) -> (Result<(), RelayError>, Vec<u8>) {
    let listener = TcpListener::bind(("::1", 0)).unwrap();
    let sink = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let receiver = thread::spawn(move || {
        let mut arrived = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut arrived).unwrap();
        arrived
    });
    let result = pump(over_tcp(source, sink));
    (result, receiver.join().unwrap())
}

fn over_tcp(source: OwnedFd, sink: TcpStream) -> Relay {
    Relay::new(source, Way::Tcp(Tcp::over(sink).unwrap()))
}

/// Moves all that can be moved; gives the first error.
fn pump(mut relay: Relay) -> Result<(), RelayError> {
    let mut result = Ok(());
    while (result.is_ok() && !relay.is_done()) || relay.nr_waiting() > 0 {
        let readable = relay.source().map_or(Polled::never(), Polled::readable);
        let writable = relay.sink();
        sys::poll(&[&readable, &writable], Duration::from_secs(10)).unwrap();
        let (fill, drain) = (readable.is_ready(), writable.is_ready());
        assert!(fill || drain, "the relay hangs at {}", relay.place());
        let drained = if drain { relay.drain() } else { Ok(()) };
        let filled = if fill && drained.is_ok() { relay.fill() } else { Ok(()) };
        result = result.and(drained).and(filled);
    }
    result
}

/// A vchan whose server has closed it.
struct Gone(Diary);

impl Line for Gone {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    fn acknowledge(&self) {}

    fn notify(&self) {}

    fn is_open(&self) -> bool {
        false
    }
}

/// A vchan's events, written down in order.
struct Diary(Rc<RefCell<Vec<&'static str>>>, io::PipeReader);

impl Line for Diary {
    fn fd(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }

    fn acknowledge(&self) {}

    fn notify(&self) {
        self.0.borrow_mut().push("told");
    }

    fn is_open(&self) -> bool {
        true
    }
}

impl Drop for Diary {
    fn drop(&mut self) {
        self.0.borrow_mut().push("closed");
    }
}

/// A relay whose stub takes nothing of what waits for it.
pub(crate) fn untaken() -> Relay {
    let (mut out, _server) = out_ring::pair(0);
    out.write(b"token").unwrap();
    let line = Diary(Rc::default(), io::pipe().unwrap().0);
    Relay::new(file(&stream(100)).into(), Way::Ring(Ring::over(out, Box::new(line))))
}

fn file(bytes: &[u8]) -> std::fs::File {
    let name = format!("stubctl-relay-{}-{:?}", std::process::id(), thread::current().id());
    let path = std::env::temp_dir().join(name);
    let mut file =
        std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

#[test]
fn a_file_is_read_up_to_end_and_no_further() {
    let sent = stream(5_000_003);
    let mut bytes = sent.clone();
    bytes.extend_from_slice(b"the records of libxl");
    let mut ours = file(&bytes);
    let (result, arrived) = run(ours.try_clone().unwrap().into());
    assert_eq!(result, Ok(()));
    assert!(arrived == sent);
    assert_eq!(ours.stream_position().unwrap(), sent.len() as u64);
}

#[test]
fn a_socket_is_read_up_to_end_and_no_further() {
    let sent = stream(300_001);
    let (mut far, near) = UnixStream::pair().unwrap();
    let mut rest = near.try_clone().unwrap();
    let mut bytes = sent.clone();
    bytes.extend_from_slice(b"libxl");
    let writer = thread::spawn(move || far.write_all(&bytes).unwrap());
    let (result, arrived) = run(near.into());
    writer.join().unwrap();
    assert_eq!(result, Ok(()));
    assert!(arrived == sent);
    let mut tail = Vec::new();
    rest.read_to_end(&mut tail).unwrap();
    assert_eq!(tail, b"libxl");
}

#[test]
fn a_pipe_that_trickles_is_read_up_to_end() {
    let sent = stream(37);
    let (reader, mut writer) = io::pipe().unwrap();
    let bytes = sent.clone();
    let trickle = thread::spawn(move || {
        for byte in bytes {
            writer.write_all(&[byte]).unwrap();
        }
    });
    let (result, arrived) = run(reader.into());
    trickle.join().unwrap();
    assert_eq!((result, arrived), (Ok(()), sent));
}

#[test]
fn a_truncated_file_says_where_it_ends() {
    let sent = stream(100);
    let (result, arrived) = run(file(&sent[..60]).into());
    let place = Place { offset: 60, start: 40, kind: Some(1), missing: 92 };
    assert_eq!(result, Err(RelayError::Ended(place)));
    assert!(arrived == sent[..60]);
    let text = RelayError::Ended(place).to_string();
    assert!(text.contains("offset 60, in record PAGE_DATA at 40 (92 bytes of it missing)"), "{text}");
}

#[test]
fn a_connection_ends_behind_the_last_byte_of_a_stream_that_was_cut() {
    let sent = stream(5_000_000);
    for len in [0, 1, 39, 40, 47, 48, 70_000, 4_700_001] {
        let (result, arrived) = run(file(&sent[..len]).into());
        assert!(matches!(result, Err(RelayError::Ended(place)) if place.offset == len as u64), "{result:?}");
        assert!(arrived == sent[..len], "{} bytes of {len}", arrived.len());
    }
}

#[test]
fn a_ring_is_closed_behind_the_last_byte_of_a_stream_that_was_cut() {
    let mut sent = stream(700);
    // A record of 208 MB, as garbage may look: its header is all that the stub needs to see.
    sent[44..48].copy_from_slice(&208_523_057_u32.to_le_bytes());
    for len in [0, 1, 39, 40, 47, 48, 700] {
        let (out, far) = out_ring::pair(0);
        let diary = Rc::new(RefCell::new(Vec::new()));
        let line = Diary(Rc::clone(&diary), io::pipe().unwrap().0);
        let mut relay = Relay::new(file(&sent[..len]).into(), Way::Ring(Ring::over(out, Box::new(line))));
        let error = core::iter::repeat_with(|| relay.fill()).find_map(Result::err);
        assert!(matches!(error, Some(RelayError::Ended(place)) if place.offset == len as u64), "{error:?}");
        assert_eq!(*diary.borrow(), ["closed"]);
        assert!(far.take() == sent[..len]);
        assert!(relay.source().is_none() && relay.nr_waiting() == 0 && !relay.is_done());
    }
}

#[test]
fn a_way_that_the_stub_has_closed_is_not_waited_on_any_more() {
    let (near, _far) = UnixStream::pair().unwrap();
    let (mut out, _server) = out_ring::pair(0);
    out.write(b"token").unwrap();
    let diary = Rc::new(RefCell::new(Vec::new()));
    let line = Gone(Diary(Rc::clone(&diary), io::pipe().unwrap().0));
    let mut relay = Relay::new(near.into(), Way::Ring(Ring::over(out, Box::new(line))));
    let error = relay.drain();
    assert!(matches!(error, Err(RelayError::Sink { kind: ErrorKind::BrokenPipe, .. })), "{error:?}");
    assert_eq!((*diary.borrow()).as_slice(), ["closed"]);
    assert!(relay.source().is_none());
    let writable = relay.sink();
    sys::poll(&[&writable], Duration::ZERO).unwrap();
    assert!(!writable.is_ready());
}

#[test]
fn a_stub_that_hangs_up_ends_the_relay() {
    let (near, far) = UnixStream::pair().unwrap();
    let listener = TcpListener::bind(("::1", 0)).unwrap();
    let sink = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    drop(listener.accept().unwrap());
    let mut writer = far.try_clone().unwrap();
    let feeder = thread::spawn(move || while writer.write_all(&[0xff; 4096]).is_ok() {});
    let result = pump(over_tcp(near.into(), sink));
    far.shutdown(std::net::Shutdown::Both).unwrap();
    feeder.join().unwrap();
    assert!(matches!(result, Err(RelayError::Sink { .. })), "{result:?}");
}
