//! Which frames reach the stack.
//!
//! **Takes** one received frame. **Gives** one verdict. **Never** lets TCP in but from the relay: its address, a port that
//! only root can have in dom0, to the stream's port. What else the stack needs comes in: ARP, neighbour discovery, echo,
//! DHCP. Extension headers do not, since TCP could stand behind them.

use control::{RELAY_ADDRESS, RELAY_PORTS, STREAM_PORT};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket,
};

/// The port of a DHCP client.
const DHCP_CLIENT_PORT: u16 = 68;

/// Tells whether a frame is for the stack and whole. The checksum of a TCP or UDP packet is verified here, unless the
/// device vouches for it; every other checksum is the stack's to verify.
pub fn admits(frame: &[u8], checksum_good: bool) -> bool {
    verdict(frame, checksum_good).unwrap_or(false)
}

/// `None`: the frame is too short.
fn verdict(frame: &[u8], checksum_good: bool) -> Option<bool> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    match frame.ethertype() {
        EthernetProtocol::Arp => Some(true),
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
            let ends = (packet.src_addr().into(), packet.dst_addr().into());
            match packet.next_header() {
                IpProtocol::Icmp => Some(true),
                IpProtocol::Udp => is_for_dhcp(packet.payload(), &ends, checksum_good),
                _ => Some(false),
            }
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
            let ends = (packet.src_addr().into(), packet.dst_addr().into());
            match packet.next_header() {
                IpProtocol::Icmpv6 => Some(true),
                IpProtocol::Tcp if packet.src_addr() == RELAY_ADDRESS => {
                    is_of_relay(packet.payload(), &ends, checksum_good)
                }
                _ => Some(false),
            }
        }
        _ => Some(false),
    }
}

fn is_for_dhcp(payload: &[u8], (from, to): &(IpAddress, IpAddress), checksum_good: bool) -> Option<bool> {
    let packet = UdpPacket::new_checked(payload).ok()?;
    Some(packet.dst_port() == DHCP_CLIENT_PORT && (checksum_good || packet.verify_checksum(from, to)))
}

fn is_of_relay(payload: &[u8], (from, to): &(IpAddress, IpAddress), checksum_good: bool) -> Option<bool> {
    let packet = TcpPacket::new_checked(payload).ok()?;
    let is_relay = RELAY_PORTS.contains(&packet.src_port()) && packet.dst_port() == STREAM_PORT;
    Some(is_relay && (checksum_good || packet.verify_checksum(from, to)))
}
