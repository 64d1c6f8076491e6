use super::*;
use std::io::{Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
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

fn pump(mut relay: Relay) -> Result<(), RelayError> {
    while !relay.is_done() {
        let readable = relay.source().map_or(Polled::never(), Polled::readable);
        let writable = relay.sink();
        sys::poll(&[&readable, &writable], Duration::from_secs(10)).unwrap();
        let (fill, drain) = (readable.is_ready(), writable.is_ready());
        assert!(fill || drain, "the relay hangs at {}", relay.place());
        if drain {
            relay.drain()?;
        }
        if fill {
            relay.fill()?;
        }
    }
    Ok(())
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
    assert!(arrived.len() <= 60);
    let text = RelayError::Ended(place).to_string();
    assert!(
        text.contains("offset 0x3c, in the record of type 0x1 at 0x28 (92 bytes of it missing)"),
        "{text}"
    );
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
