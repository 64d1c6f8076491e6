//! The stack against another smoltcp stack, which plays dom0 or a stranger, over a wire that a test can cut.

use super::*;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use control::RELAY_ADDRESS;
use core::cell::RefCell;
use core::net::Ipv6Addr;
use smoltcp::phy::{Checksum, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::wire::Ipv6Cidr;

const STUB_MAC: [u8; 6] = [0, 0x16, 0x3e, 1, 2, 3];
const PEER_MAC: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
const SERVICE: Service = Service { greeting: [7; TOKEN_BYTES], seed: 0x0123_4567_89ab_cdef };
const MS: u64 = 1_000_000;

type Frames = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// One end of the wire.
struct End {
    comes: Frames,
    goes: Frames,
    /// As the stub does, and as its peer does not.
    is_filtered: bool,
}

struct Received(Vec<u8>);
struct Sent(Frames);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Sent {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.borrow_mut().push_back(frame);
        result
    }
}

impl Device for End {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sent)> {
        let frame = self.comes.borrow_mut().pop_front()?;
        let frame = if !self.is_filtered || filter::admits(&frame, false) { frame } else { Vec::new() };
        Some((Received(frame), Sent(Rc::clone(&self.goes))))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent> {
        Some(Sent(Rc::clone(&self.goes)))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities.checksum.tcp = if self.is_filtered { Checksum::Tx } else { Checksum::Both };
        capabilities
    }
}

/// The stub, which listens, and its peer.
struct Table {
    stub: Stack,
    stub_end: End,
    peer: Interface,
    peer_end: End,
    sockets: SocketSet<'static>,
    now_ns: u64,
}

impl Table {
    fn new(peer_address: Ipv6Addr, service: &Service) -> Self {
        let (to_stub, to_peer) = (Frames::default(), Frames::default());
        let mut stub_end = End { comes: Rc::clone(&to_stub), goes: Rc::clone(&to_peer), is_filtered: true };
        let mut peer_end = End { comes: to_peer, goes: to_stub, is_filtered: false };
        let now_ns = 5 * MS;
        let mut stub = Stack::new(Addressing::parse("ip=10.0.0.2/24").unwrap(), now_ns);
        stub.link_up(STUB_MAC, &mut stub_end, now_ns);
        stub.serve(service, &mut stub_end, now_ns);
        stub.listen(&mut stub_end, now_ns);
        let hardware = HardwareAddress::Ethernet(EthernetAddress(PEER_MAC));
        let mut peer = Interface::new(Config::new(hardware), &mut peer_end, instant(now_ns));
        peer.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::Ipv6(Ipv6Cidr::new(peer_address, 64))).unwrap();
        });
        Self { stub, stub_end, peer, peer_end, sockets: SocketSet::new(vec![]), now_ns }
    }

    /// The peer begins to connect from a port.
    fn connect(&mut self, port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
        let socket = self.sockets.add(tcp::Socket::new(buffer(), buffer()));
        let to = (address::link_local(STUB_MAC), STREAM_PORT);
        self.sockets.get_mut::<tcp::Socket<'_>>(socket).connect(self.peer.context(), to, port).unwrap();
        socket
    }

    /// Both ends run for so long.
    fn run(&mut self, ms: u64) {
        let end_ns = self.now_ns + ms * MS;
        while self.now_ns < end_ns {
            self.run_stub(1);
            self.peer.poll(instant(self.now_ns), &mut self.peer_end, &mut self.sockets);
        }
    }

    /// The peer does nothing meanwhile.
    fn run_stub(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now_ns += MS;
            self.stub.send_due(&mut self.stub_end, self.now_ns);
            self.stub.take_frames(&mut self.stub_end, self.now_ns);
        }
    }

    fn state(&self, socket: SocketHandle) -> tcp::State {
        self.sockets.get::<tcp::Socket<'_>>(socket).state()
    }

    fn received(&mut self, socket: SocketHandle) -> Vec<u8> {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(socket);
        socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap_or_default()
    }
}

#[test]
fn the_relay_is_greeted_and_its_bytes_arrive() {
    let mut table = Table::new(RELAY_ADDRESS, &SERVICE);
    let socket = table.connect(700);
    table.run(50);
    assert_eq!(table.stub.stream(), Stream::Open);
    assert_eq!(table.received(socket), SERVICE.greeting);
    table.sockets.get_mut::<tcp::Socket<'_>>(socket).send_slice(b"a stream").unwrap();
    table.run(50);
    let mut arrived = Vec::<u8>::new();
    table.stub.receive(|bytes| {
        arrived.extend(bytes);
        bytes.len()
    });
    assert_eq!(arrived, b"a stream");
}

#[test]
fn nobody_else_reaches_the_port() {
    let stranger = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
    for (address, port) in [(stranger, 700), (RELAY_ADDRESS, 1024), (RELAY_ADDRESS, 50_000)] {
        let mut table = Table::new(address, &SERVICE);
        let socket = table.connect(port);
        table.run(3000);
        assert_eq!(table.state(socket), tcp::State::SynSent, "{address} port {port}");
        assert_eq!(table.stub.peer(), None);
    }
}

#[test]
fn an_attempt_that_is_not_completed_frees_the_port_within_a_second() {
    let mut table = Table::new(RELAY_ADDRESS, &SERVICE);
    table.connect(700);
    // Until the attempt is at the stub: neighbours are sought first. The peer falls silent then.
    while table.stub.peer().is_none() {
        table.run(1);
    }
    table.sockets = SocketSet::new(vec![]);
    table.stub_end.goes.borrow_mut().clear();
    let began_ns = table.now_ns;
    while table.stub.peer().is_some() {
        let sleeps_until_ns = table.stub.deadline(table.now_ns).unwrap();
        assert!(sleeps_until_ns <= began_ns + HALF_OPEN_NS, "the stub would sleep through its own deadline");
        table.run_stub(1);
        assert!(table.now_ns <= began_ns + HALF_OPEN_NS + 10 * MS, "the attempt holds the port still");
    }
    assert_eq!(table.stub.stream(), Stream::Listening);
    table.stub_end.goes.borrow_mut().clear();
    let next = table.connect(701);
    table.run(50);
    assert_eq!(table.state(next), tcp::State::Established);
    assert_eq!(table.received(next), SERVICE.greeting);
}

#[test]
fn sequence_numbers_follow_the_seed() {
    let first = |seed| {
        let mut table = Table::new(RELAY_ADDRESS, &Service { seed, ..SERVICE });
        table.connect(700);
        while table.stub.peer().is_none() {
            table.run(1);
        }
        table.run_stub(1);
        let goes = table.stub_end.goes.borrow();
        let frame = goes.back().expect("the stub has answered");
        let packet = smoltcp::wire::Ipv6Packet::new_checked(&frame[14..]).unwrap();
        smoltcp::wire::TcpPacket::new_checked(packet.payload()).unwrap().seq_number()
    };
    assert_eq!(first(1), first(1));
    assert_ne!(first(1), first(2));
}

#[test]
fn the_greeting_goes_to_every_new_connection_once() {
    let mut table = Table::new(RELAY_ADDRESS, &SERVICE);
    for port in [700, 701] {
        let socket = table.connect(port);
        table.run(50);
        assert_eq!(table.received(socket), SERVICE.greeting);
        table.run(50);
        assert_eq!(table.received(socket), b"");
        table.stub.listen(&mut table.stub_end, table.now_ns);
        table.run(20);
        assert_eq!(table.state(socket), tcp::State::Closed);
    }
}
