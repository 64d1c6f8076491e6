//! The stub's IP stack: smoltcp over any device, and the one TCP connection that carries a stream.
//!
//! **Takes** frames of a device that has asked [`filter::admits`], a seed that nobody can guess, and the time. **Gives** the
//! bytes of the stream, borrowed from the socket's buffer, and the time until which the stub may sleep. **Never** serves two
//! connections: while one is open, others are refused by reset. **Never** lets an attempt that its peer does not complete
//! keep the port for longer than [`HALF_OPEN_NS`].
//!
//! The stack has its link-local IPv6 address always, made from the MAC address (EUI-64), and a static address or one
//! from DHCP. It exists from the first time a link comes up; a link that goes and comes back keeps the open connection.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod address;
pub mod filter;

pub use address::Addressing;

use alloc::vec;
use control::{STREAM_PORT, TOKEN_BYTES};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::Device;
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint};

/// Receive buffer, and so window, of the stream's connection: 16 aggregates.
const RECEIVE_BYTES: usize = 1 << 20;

/// Send buffer: the stub says nothing on this connection but its greeting.
const SEND_BYTES: usize = 256;

/// Frames taken before the stack answers and the stream's bytes are looked at: one window of aggregates.
const INGRESS_BATCH: usize = 16;

/// A peer that is silent for this long is gone; it is asked for a sign of life in between.
const PEER_TIMEOUT: Duration = Duration::from_secs(60);
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long a peer may take to complete the connection that it began, in nanoseconds: the next in line waits for it.
pub const HALF_OPEN_NS: u64 = 1_000_000_000;

/// How often a connection is looked at while its link is down, in nanoseconds.
const DOWN_POLL_NS: u64 = 1_000_000_000;

/// DHCP asks ever more rarely while nobody answers: as long again as it has asked so far, within these bounds.
const DISCOVER_MIN: Duration = Duration::from_secs(4);
const DISCOVER_MAX: Duration = Duration::from_secs(600);

/// What has become of the stream's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Nobody may connect.
    Closed,
    /// The next one may connect.
    Listening,
    /// Somebody is connected; bytes may be there.
    Open,
    /// The peer has closed or is gone, and every byte that came has been taken.
    Ended,
}

/// What the stack needs to serve one stream.
#[derive(Clone, Copy)]
pub struct Service {
    /// What the stub sends first on a connection: who listens there proves by it that it is the stub.
    pub greeting: [u8; TOKEN_BYTES],
    /// Where the sequence numbers come from: drawn by dom0, which has randomness.
    pub seed: u64,
}

/// The network stack and the stream's connection.
pub struct Stack {
    addressing: Addressing,
    started: Instant,
    seed: u64,
    interface: Option<Interface>,
    sockets: SocketSet<'static>,
    stream: SocketHandle,
    dhcp: Option<SocketHandle>,
    greeting: [u8; TOKEN_BYTES],
    /// Somebody may connect or is connected.
    is_open: bool,
    /// The greeting is on its way.
    is_greeted: bool,
    /// When an attempt is given up that its peer has not completed by then, in nanoseconds.
    complete_by_ns: Option<u64>,
    /// Frames have come in since the stack last looked for something to say.
    is_pending: bool,
}

impl Stack {
    /// Makes the stack, without a link.
    pub fn new(addressing: Addressing, now_ns: u64) -> Self {
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY, SocketStorage::EMPTY]);
        let receive = tcp::SocketBuffer::new(vec![0; RECEIVE_BYTES]);
        let mut socket = tcp::Socket::new(receive, tcp::SocketBuffer::new(vec![0; SEND_BYTES]));
        socket.set_timeout(Some(PEER_TIMEOUT));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        // One acknowledgement a batch comes of polling already: a delay would only add a timer.
        socket.set_ack_delay(None);
        let stream = sockets.add(socket);
        let dhcp = (addressing == Addressing::Dhcp).then(|| sockets.add(dhcpv4::Socket::new()));
        Self {
            addressing,
            started: instant(now_ns),
            seed: 0,
            interface: None,
            sockets,
            stream,
            dhcp,
            greeting: [0; TOKEN_BYTES],
            is_open: false,
            is_greeted: false,
            complete_by_ns: None,
            is_pending: false,
        }
    }

    /// Takes a link that has come up, for the first time or again, perhaps with another MAC address.
    pub fn link_up(&mut self, mac: [u8; 6], device: &mut impl Device, now_ns: u64) {
        let hardware = HardwareAddress::Ethernet(EthernetAddress(mac));
        let seed = self.seed;
        let interface = self.interface.get_or_insert_with(|| {
            let mut config = Config::new(hardware);
            config.random_seed = seed;
            Interface::new(config, device, instant(now_ns))
        });
        interface.set_hardware_addr(hardware);
        self.addressing.apply(interface, mac);
        if let Some(dhcp) = self.dhcp {
            self.sockets.get_mut::<dhcpv4::Socket>(dhcp).reset();
        }
    }

    /// Sends what is due. Call it before [`Stack::take_frames`], and both again when [`Stack::deadline`] says so.
    pub fn send_due(&mut self, device: &mut impl Device, now_ns: u64) {
        if let Some(interface) = &mut self.interface {
            interface.poll_egress(instant(now_ns), device, &mut self.sockets);
        }
    }

    /// Takes a batch of frames.
    pub fn take_frames(&mut self, device: &mut impl Device, now_ns: u64) {
        let now = instant(now_ns);
        let Some(interface) = &mut self.interface else { return };
        interface.poll_maintenance(now);
        let taken = |_: &usize| {
            interface.poll_ingress_single(now, device, &mut self.sockets) != PollIngressSingleResult::None
        };
        self.is_pending = (0..INGRESS_BATCH).take_while(taken).count() > 0;
        self.greet();
        self.follow_half_open(device, now_ns);
        self.follow_dhcp(now);
    }

    /// Until when the stub may sleep if frames can flow, in nanoseconds; `None`: until an event.
    pub fn deadline(&mut self, now_ns: u64) -> Option<u64> {
        if self.is_pending {
            return Some(now_ns);
        }
        let at = self.interface.as_mut()?.poll_at(instant(now_ns), &self.sockets);
        let at_ns = at.map(|at| u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000));
        at_ns.into_iter().chain(self.complete_by_ns).min().map(|at_ns| at_ns.max(now_ns))
    }

    /// The same while no frame can be sent: no timer is worth a wake-up but the one that gives an open connection up.
    pub fn deadline_without_link(&mut self, now_ns: u64) -> Option<u64> {
        let in_ns = if self.is_pending { 0 } else { DOWN_POLL_NS };
        (self.is_pending || self.stream() == Stream::Open).then(|| now_ns.saturating_add(in_ns))
    }

    /// Makes ready for a stream: [`Stack::listen`] lets whoever comes see the greeting, and no sequence number can be guessed
    /// from here on. Whatever is open now is forgotten.
    pub fn serve(&mut self, service: &Service, device: &mut impl Device, now_ns: u64) {
        (self.greeting, self.seed) = (service.greeting, service.seed);
        // smoltcp takes its seed at the beginning only.
        if let Some(HardwareAddress::Ethernet(mac)) = self.interface.take().map(|old| old.hardware_addr()) {
            self.link_up(mac.0, device, now_ns);
        }
    }

    /// Lets the next one connect, after whatever is open now is reset.
    pub fn listen(&mut self, device: &mut impl Device, now_ns: u64) {
        self.abort(device, now_ns);
        self.is_greeted = false;
        match self.socket().listen(STREAM_PORT) {
            Ok(()) => self.is_open = true,
            Err(error) => log::error!("cannot listen on port {STREAM_PORT}: {error}"),
        }
    }

    /// Resets the connection, if one is open, and accepts no other.
    pub fn abort(&mut self, device: &mut impl Device, now_ns: u64) {
        (self.is_open, self.complete_by_ns) = (false, None);
        self.socket().abort();
        // The reset must be out before the socket can be used again.
        self.send_due(device, now_ns);
    }

    /// Whether somebody may connect or is connected.
    pub const fn is_open(&self) -> bool {
        self.is_open
    }

    /// Says how the stream's connection is.
    pub fn stream(&mut self) -> Stream {
        let is_open = self.is_open;
        let socket = self.socket();
        match socket.state() {
            _ if !is_open => Stream::Closed,
            tcp::State::Listen | tcp::State::SynReceived => Stream::Listening,
            _ if socket.may_recv() => Stream::Open,
            _ => Stream::Ended,
        }
    }

    /// Who is connected.
    pub fn peer(&mut self) -> Option<IpEndpoint> {
        self.socket().remote_endpoint()
    }

    /// Shows `take` the next bytes of the stream, as many as lie in a row; it returns how many it has taken.
    pub fn receive(&mut self, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let taken = |bytes: &mut [u8]| {
            let taken = take(bytes).min(bytes.len());
            (taken, taken)
        };
        self.socket().recv(taken).unwrap_or(0)
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.stream)
    }

    /// Sends the greeting on a connection that is new.
    fn greet(&mut self) {
        let greeting = self.greeting;
        if !self.is_greeted && self.socket().state() == tcp::State::Established {
            // It fits: nothing was sent before.
            self.is_greeted = self.socket().send_slice(&greeting) == Ok(TOKEN_BYTES);
        }
    }

    /// Gives up an attempt that its peer does not complete, and lets the next one connect.
    fn follow_half_open(&mut self, device: &mut impl Device, now_ns: u64) {
        if self.socket().state() != tcp::State::SynReceived {
            self.complete_by_ns = None;
            return;
        }
        let by_ns = *self.complete_by_ns.get_or_insert(now_ns.saturating_add(HALF_OPEN_NS));
        if now_ns >= by_ns {
            log::warn!("dropped a connection that {:?} began and did not complete", self.peer());
            self.listen(device, now_ns);
        }
    }

    fn follow_dhcp(&mut self, now: Instant) {
        let (Some(handle), Some(interface)) = (self.dhcp, &mut self.interface) else { return };
        let socket = self.sockets.get_mut::<dhcpv4::Socket>(handle);
        let waited = (now - self.started).clamp(DISCOVER_MIN, DISCOVER_MAX);
        let mut retry = dhcpv4::RetryConfig::default();
        retry.discover_timeout = waited;
        socket.set_retry_config(retry);
        match socket.poll() {
            Some(dhcpv4::Event::Configured(lease)) => {
                log::info!("network: {} by DHCP", lease.address);
                address::set_ipv4(interface, Some(IpCidr::Ipv4(lease.address)), lease.router);
            }
            Some(dhcpv4::Event::Deconfigured) => address::set_ipv4(interface, None, None),
            None => {}
        }
    }
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_ns / 1000).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
