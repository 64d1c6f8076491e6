//! The network: smoltcp over the network front end, and the one TCP connection that carries a stream.
//!
//! **Takes** the front end, the address from the command line, and the time. **Gives** the bytes of the stream,
//! borrowed from the socket's buffer, and the time until which the stub may sleep. **Never** serves two connections:
//! while one is open, others are refused by reset.
//!
//! The stack has its link-local IPv6 address always, made from the MAC address (EUI-64), and a static address or one
//! from DHCP. It exists from the first time a vif connects; a vif that goes away and comes back keeps the open
//! connection.

mod device;

use alloc::vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use control::STREAM_PORT;
use device::Wire;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint, Ipv6Cidr};
use xen_front::grants::GrantTable;
use xen_front::net::Netfront;
use xen_front::xenstore::Xenstore;

/// Receive buffer, and so window, of the stream's connection: 16 aggregates.
const RECEIVE_BYTES: usize = 1 << 20;

/// Send buffer: the stub says nothing on this connection.
const SEND_BYTES: usize = 256;

/// Frames taken before the stack answers and the stream's bytes are looked at: one window of aggregates.
const INGRESS_BATCH: usize = 16;

/// A peer that is silent for this long is gone; it is asked for a sign of life in between.
const PEER_TIMEOUT: Duration = Duration::from_secs(60);
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How often a connection is looked at while its link is down, in nanoseconds.
const DOWN_POLL_NS: u64 = 1_000_000_000;

/// DHCP asks ever more rarely while nobody answers: as long again as it has asked so far, within these bounds.
const DISCOVER_MIN: Duration = Duration::from_secs(4);
const DISCOVER_MAX: Duration = Duration::from_secs(600);

/// Where the IPv4 address, or a second IPv6 address, comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Addressing {
    /// `ip=ADDR/PREFIX[,GATEWAY]`.
    Static {
        /// The address and its network.
        address: IpCidr,
        /// The router to everywhere else.
        gateway: Option<IpAddr>,
    },
    /// No `ip=`.
    Dhcp,
}

impl Addressing {
    /// Reads the kernel's command line; what cannot be read is returned for the log.
    pub(crate) fn parse(command_line: &str) -> Result<Self, &str> {
        match command_line.split_ascii_whitespace().find_map(|word| word.strip_prefix("ip=")) {
            None => Ok(Self::Dhcp),
            Some(text) => Self::parse_static(text).ok_or(text),
        }
    }

    fn parse_static(text: &str) -> Option<Self> {
        let (address, gateway) = match text.split_once(',') {
            Some((address, gateway)) => (address, Some(IpAddr::from_str(gateway).ok()?)),
            None => (text, None),
        };
        Some(Self::Static { address: IpCidr::from_str(address).ok()?, gateway })
    }
}

/// What has become of the stream's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Nobody may connect.
    Closed,
    /// The next one may connect.
    Listening,
    /// Somebody is connected; bytes may be there.
    Open,
    /// The peer has closed or is gone, and every byte that came has been taken.
    Ended,
}

/// The network stack and the stream's connection.
pub(crate) struct Net {
    front: Netfront,
    addressing: Addressing,
    started: Instant,
    interface: Option<Interface>,
    sockets: SocketSet<'static>,
    stream: SocketHandle,
    dhcp: Option<SocketHandle>,
    /// Somebody may connect or is connected.
    open: bool,
    /// Frames have come in since the stack last looked for something to say.
    pending: bool,
}

impl Net {
    /// Takes the front end, connected or not.
    pub(crate) fn new(front: Netfront, addressing: Addressing, now_ns: u64) -> Self {
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY, SocketStorage::EMPTY]);
        let receive = tcp::SocketBuffer::new(vec![0; RECEIVE_BYTES]);
        let mut socket = tcp::Socket::new(receive, tcp::SocketBuffer::new(vec![0; SEND_BYTES]));
        socket.set_timeout(Some(PEER_TIMEOUT));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        // One acknowledgement a batch comes of polling already: a delay would only add a timer.
        socket.set_ack_delay(None);
        let stream = sockets.add(socket);
        let dhcp = (addressing == Addressing::Dhcp).then(|| sockets.add(dhcpv4::Socket::new()));
        let started = instant(now_ns);
        Self {
            front,
            addressing,
            started,
            interface: None,
            sockets,
            stream,
            dhcp,
            open: false,
            pending: false,
        }
    }

    /// The front end: its event channels to wait on, its token among xenstore's events.
    pub(crate) const fn front(&self) -> &Netfront {
        &self.front
    }

    /// Follows the vif as it is plugged, unplugged or fails. Call it once at the start, for each event of the front end's
    /// token, and while [`Netfront::has_failed`].
    pub(crate) fn follow(&mut self, store: &mut Xenstore, grants: &mut GrantTable) {
        if let Err(error) = self.front.follow(store, grants) {
            log::error!("network: {error}");
        }
    }

    /// Sends what is due, then takes a batch of frames. Call it again when [`Net::deadline`] says so.
    pub(crate) fn poll(&mut self, now_ns: u64) {
        let now = instant(now_ns);
        self.follow_link(now);
        let Some(interface) = &mut self.interface else { return };
        let mut wire = Wire(&mut self.front);
        interface.poll_egress(now, &mut wire, &mut self.sockets);
        self.front.flush();
        let mut wire = Wire(&mut self.front);
        interface.poll_maintenance(now);
        let taken = |_: &usize| {
            interface.poll_ingress_single(now, &mut wire, &mut self.sockets) != PollIngressSingleResult::None
        };
        self.pending = (0..INGRESS_BATCH).take_while(taken).count() > 0;
        self.follow_dhcp(now);
    }

    /// Until when the stub may sleep, in nanoseconds of system time; `None`: until an event. Asks the back end for
    /// events, so it comes last before sleeping.
    pub(crate) fn deadline(&mut self, now_ns: u64) -> Option<u64> {
        if self.pending || self.front.request_events() {
            return Some(now_ns);
        }
        if self.front.transmit().is_none() {
            // Nothing can be sent, so no timer is worth a wake-up but the one that gives an open connection up.
            return (self.stream() == Stream::Open).then(|| now_ns.saturating_add(DOWN_POLL_NS));
        }
        let at = self.interface.as_mut()?.poll_at(instant(now_ns), &self.sockets)?;
        Some(u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000).max(now_ns))
    }

    /// Lets the next one connect, after whatever is open now is reset.
    pub(crate) fn listen(&mut self, now_ns: u64) {
        self.abort(now_ns);
        match self.socket().listen(STREAM_PORT) {
            Ok(()) => self.open = true,
            Err(error) => log::error!("cannot listen on port {STREAM_PORT}: {error}"),
        }
    }

    /// Resets the connection, if one is open, and accepts no other.
    pub(crate) fn abort(&mut self, now_ns: u64) {
        if core::mem::take(&mut self.open)
            && let Some((rx, _)) = self.front.counters()
        {
            log::info!("network: received {} frames of {} bytes in all", rx.nr_frames, rx.nr_bytes);
        }
        self.socket().abort();
        // The reset must be out before the socket can be used again.
        self.poll(now_ns);
    }

    /// Says how the stream's connection is.
    pub(crate) fn stream(&mut self) -> Stream {
        let open = self.open;
        let socket = self.socket();
        match socket.state() {
            _ if !open => Stream::Closed,
            tcp::State::Listen | tcp::State::SynReceived => Stream::Listening,
            _ if socket.may_recv() => Stream::Open,
            _ => Stream::Ended,
        }
    }

    /// Who is connected.
    pub(crate) fn peer(&mut self) -> Option<IpEndpoint> {
        self.socket().remote_endpoint()
    }

    /// Shows `take` the next bytes of the stream, as many as lie in a row; it returns how many it has taken.
    pub(crate) fn receive(&mut self, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let taken = |bytes: &mut [u8]| {
            let taken = take(bytes).min(bytes.len());
            (taken, taken)
        };
        self.socket().recv(taken).unwrap_or(0)
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.stream)
    }

    /// Starts the stack when the vif connects for the first time, and follows a change of its MAC address.
    fn follow_link(&mut self, now: Instant) {
        let Some(mac) = self.front.take_link_up() else { return };
        let address = HardwareAddress::Ethernet(EthernetAddress(mac));
        let interface = self
            .interface
            .get_or_insert_with(|| Interface::new(Config::new(address), &mut Wire(&mut self.front), now));
        interface.set_hardware_addr(address);
        set_addresses(interface, mac, self.addressing);
        if let Some(dhcp) = self.dhcp {
            self.sockets.get_mut::<dhcpv4::Socket>(dhcp).reset();
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
                set_ipv4(interface, Some(IpCidr::Ipv4(lease.address)), lease.router);
            }
            Some(dhcpv4::Event::Deconfigured) => set_ipv4(interface, None, None),
            None => {}
        }
    }
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_ns / 1000).unwrap_or(i64::MAX))
}

/// Gives the interface its link-local address, and the static one if there is one.
fn set_addresses(interface: &mut Interface, mac: [u8; 6], addressing: Addressing) {
    let link_local = link_local(mac);
    interface.update_ip_addrs(|addresses| {
        addresses.clear();
        // PANIC: cannot fail: smoltcp is built with room for two addresses at least.
        let _ = addresses.push(IpCidr::Ipv6(Ipv6Cidr::new(link_local, 64)));
        if let Addressing::Static { address, .. } = addressing {
            let _ = addresses.push(address);
        }
    });
    if let Addressing::Static { gateway, address } = addressing {
        set_gateway(interface, gateway);
        log::info!("network: {address} and {link_local}");
    } else {
        log::info!("network: {link_local}, DHCP to come");
    }
}

fn set_gateway(interface: &mut Interface, gateway: Option<IpAddr>) {
    let added = match gateway {
        None => return,
        Some(IpAddr::V4(router)) => interface.routes_mut().add_default_ipv4_route(router).map(drop),
        Some(IpAddr::V6(router)) => interface.routes_mut().add_default_ipv6_route(router).map(drop),
    };
    if added.is_err() {
        log::error!("network: no room for the route by {gateway:?}");
    }
}

fn set_ipv4(interface: &mut Interface, address: Option<IpCidr>, router: Option<Ipv4Addr>) {
    interface.update_ip_addrs(|addresses| {
        addresses.retain(|address| matches!(address, IpCidr::Ipv6(_)));
        let _ = address.map(|address| addresses.push(address));
    });
    interface.routes_mut().remove_default_ipv4_route();
    set_gateway(interface, router.map(IpAddr::V4));
}

/// The link-local address of a MAC address (RFC 4291, appendix A: EUI-64).
const fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let words = [
        u16::from_be_bytes([a ^ 2, b]),
        u16::from_be_bytes([c, 0xff]),
        u16::from_be_bytes([0xfe, d]),
        u16::from_be_bytes([e, f]),
    ];
    Ipv6Addr::new(0xfe80, 0, 0, 0, words[0], words[1], words[2], words[3])
}
