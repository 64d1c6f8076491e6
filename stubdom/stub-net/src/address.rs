//! The stub's addresses.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;
use smoltcp::iface::Interface;
use smoltcp::wire::{IpCidr, Ipv6Cidr};

/// Where the IPv4 address, or a second IPv6 address, comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
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
    /// Reads the kernel's command line.
    ///
    /// # Errors
    /// What cannot be read, for the log.
    pub fn parse(command_line: &str) -> Result<Self, &str> {
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

    /// Gives the interface its link-local address, and the static one if there is one.
    pub(crate) fn apply(self, interface: &mut Interface, mac: [u8; 6]) {
        let link_local = link_local(mac);
        interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // PANIC: cannot fail: smoltcp is built with room for two addresses at least.
            let _ = addresses.push(IpCidr::Ipv6(Ipv6Cidr::new(link_local, 64)));
            if let Self::Static { address, .. } = self {
                let _ = addresses.push(address);
            }
        });
        if let Self::Static { gateway, address } = self {
            set_gateway(interface, gateway);
            log::info!("network: {address} and {link_local}");
        } else {
            log::info!("network: {link_local}, DHCP to come");
        }
    }
}

/// Sets the IPv4 address and its router, in place of those before.
pub(crate) fn set_ipv4(interface: &mut Interface, address: Option<IpCidr>, router: Option<Ipv4Addr>) {
    interface.update_ip_addrs(|addresses| {
        addresses.retain(|address| matches!(address, IpCidr::Ipv6(_)));
        let _ = address.map(|address| addresses.push(address));
    });
    interface.routes_mut().remove_default_ipv4_route();
    set_gateway(interface, router.map(IpAddr::V4));
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

/// The link-local address of a MAC address (RFC 4291, appendix A: EUI-64).
pub(crate) const fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let words = [
        u16::from_be_bytes([a ^ 2, b]),
        u16::from_be_bytes([c, 0xff]),
        u16::from_be_bytes([0xfe, d]),
        u16::from_be_bytes([e, f]),
    ];
    Ipv6Addr::new(0xfe80, 0, 0, 0, words[0], words[1], words[2], words[3])
}
