//! The stub's network against a neighbour that sends frames of any kind.

use crate::choices::Choices;
use control::{RELAY_ADDRESS, STREAM_PORT, TOKEN_BYTES};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use std::collections::VecDeque;
use stub_net::{Addressing, Service, Stack, Stream, filter};

const MAC: [u8; 6] = [0, 0x16, 0x3e, 1, 2, 3];

/// The stub's own address, of its MAC.
const ADDRESS: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0x16, 0x3e, 0xff, 0xfe, 1, 2, 3];

/// A device whose frames have come already, and which sends nowhere.
#[derive(Default)]
struct Wire(VecDeque<Vec<u8>>);

struct Received(Vec<u8>);
struct Nowhere;

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(if filter::admits(&self.0, true) { &self.0 } else { &[] })
    }
}

impl TxToken for Nowhere {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        fill(&mut vec![0; len])
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Nowhere;

    fn receive(&mut self, _: Instant) -> Option<(Received, Nowhere)> {
        Some((Received(self.0.pop_front()?), Nowhere))
    }

    fn transmit(&mut self, _: Instant) -> Option<Nowhere> {
        Some(Nowhere)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        // The back end vouches for the checksums: so no execution is lost to a wrong one.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.icmpv4 = Checksum::Tx;
        capabilities.checksum.icmpv6 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

/// Receives frames, and waits now and then.
///
/// # Panics
/// Somebody else than the relay is connected, or an attempt holds the port for longer than it may.
pub fn network(input: &[u8]) {
    let mut choices = Choices::new(input);
    let (mut wire, mut now_ns) = (Wire::default(), 1_000_000_000);
    let mut stack = Stack::new(Addressing::Dhcp, now_ns);
    stack.link_up(MAC, &mut wire, now_ns);
    stack.serve(&Service { greeting: [7; TOKEN_BYTES], seed: 1 }, &mut wire, now_ns);
    stack.listen(&mut wire, now_ns);
    for _ in 0..choices.below(24) {
        wire.0.extend((0..choices.below(3)).map(|_| frame(&mut choices)));
        now_ns += choices.pick(&[1_000_000, 1_000_000, stub_net::HALF_OPEN_NS]).unwrap_or(0);
        stack.send_due(&mut wire, now_ns);
        stack.take_frames(&mut wire, now_ns);
        let _ = stack.deadline(now_ns);
        let nr_bytes = choices.index(100);
        stack.receive(|bytes| bytes.len().min(nr_bytes));
        assert!(stack.peer().is_none_or(|peer| peer.addr == RELAY_ADDRESS.into()), "{:?}", stack.peer());
    }
    let is_half_open = stack.stream() == Stream::Listening && stack.peer().is_some();
    for _ in 0..2 {
        now_ns += stub_net::HALF_OPEN_NS;
        stack.send_due(&mut wire, now_ns);
        stack.take_frames(&mut wire, now_ns);
    }
    assert!(!is_half_open || stack.peer().is_none(), "an attempt holds the port");
}

fn frame(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut frame = match choices.below(8) {
        0 => arp(choices),
        1 => ipv4(choices),
        2 => choices.bytes(60),
        _ => ipv6(choices),
    };
    if choices.one_in(4) {
        let at = choices.index(frame.len());
        frame[at] = choices.byte();
    }
    if choices.one_in(16) {
        frame.truncate(choices.index(frame.len()));
    }
    frame
}

fn ethernet(kind: u16, body: &[u8]) -> Vec<u8> {
    [&MAC[..], &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff], &kind.to_be_bytes(), body].concat()
}

fn arp(choices: &mut Choices<'_>) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1 + choices.byte() % 2];
    ethernet(0x0806, &[&head[..], &choices.bytes(20)].concat())
}

fn ipv4(choices: &mut Choices<'_>) -> Vec<u8> {
    let protocol = choices.pick(&[1, 6, 17, 17]).unwrap_or(1);
    let payload = match protocol {
        17 => [&[0, 67, 0, 68, 0, 248, 0, 0][..], &choices.bytes(240)].concat(),
        _ => choices.bytes(40),
    };
    let [.., high, low] = (20 + payload.len()).to_be_bytes();
    let to = [255; 4];
    let head = [0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1];
    ethernet(0x0800, &[&head[..], &to, &payload].concat())
}

fn ipv6(choices: &mut Choices<'_>) -> Vec<u8> {
    let (next, payload) = match choices.below(8) {
        0 => (58, choices.bytes(32)),
        1 => {
            let kind = 133 + choices.byte() % 5;
            (58, [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &ADDRESS, &[2, 1], &choices.bytes(6)].concat())
        }
        2 => (0, [&[6, 0, 1, 4, 0, 0, 0, 0][..], &tcp(choices)].concat()),
        3 => (choices.byte(), choices.bytes(40)),
        _ => (6, tcp(choices)),
    };
    let [.., high, low] = payload.len().to_be_bytes();
    let mut from = RELAY_ADDRESS.octets();
    if choices.one_in(4) {
        from[15] = choices.byte();
    }
    let head = [0x60, 0, 0, 0, high, low, next, 255];
    ethernet(0x86dd, &[&head[..], &from, &ADDRESS, &payload].concat())
}

/// A segment from one of two ports, with small numbers, so that some belong to the same connection.
fn tcp(choices: &mut Choices<'_>) -> Vec<u8> {
    let port = choices.pick(&[700_u16, 700, 701, 50_000]).unwrap_or(700);
    let flags = choices.pick(&[2, 2, 16, 24, 17, 4, 18]).unwrap_or_else(|| choices.byte());
    let (sequence, acknowledged) = ([0, 0, 0, choices.byte() % 4], choices.bytes(4));
    let data = choices.index(40);
    let head = [&port.to_be_bytes()[..], &STREAM_PORT.to_be_bytes(), &sequence, &acknowledged].concat();
    [&head[..], &[0x50, flags, 0x10, 0, 0, 0, 0, 0], &choices.bytes(data)].concat()
}
