use super::*;
use crate::error::Error;
use crate::interrupt::Stop;
use std::net::{SocketAddr, TcpListener};
use std::thread;

const TOKEN: [u8; TOKEN_BYTES] = [7; TOKEN_BYTES];
const GREETING: [u8; TOKEN_BYTES] = [9; TOKEN_BYTES];

fn listener() -> (TcpListener, Door) {
    let listener = TcpListener::bind(("::1", 0)).unwrap();
    let SocketAddr::V6(stub) = listener.local_addr().unwrap() else { unreachable!("bound to ::1") };
    // Port 0 is any that is free.
    let door =
        Door { stub, relay: Ipv6Addr::LOCALHOST, relay_ports: 0..=0, greeting: GREETING, token: TOKEN };
    (listener, door)
}

fn wait(polled: &Polled<'_>, patience: Duration) -> Result<(), Error> {
    Ok(sys::poll(&[polled], patience)?)
}

/// Lets one in, says `greeting`, and gives what it says then.
fn serve(listener: &TcpListener, greeting: &[u8]) -> Vec<u8> {
    let mut arrived = Vec::new();
    let mut socket = listener.accept().unwrap().0;
    for byte in greeting {
        socket.write_all(&[*byte]).unwrap();
    }
    socket.read_to_end(&mut arrived).unwrap();
    arrived
}

#[test]
fn a_connection_opens_with_the_token_behind_the_greeting() {
    let (listener, door) = listener();
    let stub = thread::spawn(move || serve(&listener, &GREETING));
    drop(Tcp::connect(&door, HEARTBEAT * 100, wait).unwrap());
    assert_eq!(stub.join().unwrap(), TOKEN);
}

#[test]
fn who_does_not_know_the_greeting_is_sent_nothing() {
    let mut wrong = GREETING;
    wrong[TOKEN_BYTES - 1] ^= 1;
    let (listener, door) = listener();
    let impostor = thread::spawn(move || serve(&listener, &wrong));
    let result = Tcp::connect(&door, HEARTBEAT * 100, wait);
    let expected = RelayError::Impostor { address: *door.stub.ip() };
    assert!(matches!(result, Err(Error::Relay(error)) if error == expected));
    assert_eq!(impostor.join().unwrap(), b"");
}

#[test]
fn who_says_nothing_is_sent_nothing() {
    let (listener, door) = listener();
    let result = Tcp::connect(&door, AGAIN * 3, wait);
    let expected = RelayError::Connect { address: *door.stub.ip(), kind: ErrorKind::TimedOut };
    assert!(matches!(result, Err(Error::Relay(error)) if error == expected));
    assert_eq!(serve(&listener, b""), b"");
}

#[test]
fn an_end_before_the_greeting_is_tried_again() {
    let (listener, door) = listener();
    let stub = thread::spawn(move || {
        drop(listener.accept().unwrap());
        serve(&listener, &GREETING)
    });
    drop(Tcp::connect(&door, HEARTBEAT * 100, wait).unwrap());
    assert_eq!(stub.join().unwrap(), TOKEN);
}

#[test]
fn a_refusal_is_tried_again_until_the_time_is_over() {
    let (gone, door) = listener();
    drop(gone);
    let mut nr_waits = 0;
    let result = Tcp::connect(&door, AGAIN * 3, |polled, patience| {
        nr_waits += 1;
        wait(polled, patience)
    });
    let refused = RelayError::Connect { address: *door.stub.ip(), kind: ErrorKind::ConnectionRefused };
    assert!(matches!(result, Err(Error::Relay(error)) if error == refused));
    assert!(nr_waits >= 2, "{nr_waits}");
}

#[test]
fn an_interrupt_ends_every_wait() {
    let (gone, refusing) = listener();
    drop(gone);
    let (listener, silent) = listener();
    for (door, nr_before) in [(&silent, 0), (&silent, 1), (&refusing, 0), (&refusing, 1)] {
        let mut left = nr_before;
        let result = Tcp::connect(door, HEARTBEAT * 1000, |polled, patience| {
            if left == 0 {
                return Err(Error::Stop(Stop::ParentGone));
            }
            left -= 1;
            wait(polled, patience)
        });
        assert!(matches!(result, Err(Error::Stop(Stop::ParentGone))), "{nr_before} waits before");
    }
    drop(listener);
}
