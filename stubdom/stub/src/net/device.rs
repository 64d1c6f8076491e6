//! The network front end as a smoltcp device.

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use stub_net::filter;
use xen_front::net::{Frame, Netfront, TxQueue};

/// Ethernet header and an IP packet of 1500 bytes: the most we send. What we receive may be an aggregate of up to
/// 64 KiB, which smoltcp takes as it takes any segment.
const MTU_BYTES: usize = 14 + 1500;

/// The front end, lent to smoltcp for one call.
pub(super) struct Wire<'a>(pub(super) &'a mut Netfront);

impl Device for Wire<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Transmit<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Transmit<'_>)> {
        let (frame, queue) = self.0.receive()?;
        Some((Received(frame), Transmit(queue)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        self.0.transmit().map(Transmit)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU_BYTES;
        // What the back end does not vouch for is verified by the filter, frame by frame.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

/// A received frame on its way into the stack.
pub(super) struct Received<'a>(Frame<'a>);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        let Frame { bytes, checksum_good } = self.0;
        if filter::admits(bytes, checksum_good) {
            take(bytes)
        } else {
            log::debug!("network: dropped a frame of {} bytes", bytes.len());
            take(&[])
        }
    }
}

/// Room for one frame.
pub(super) struct Transmit<'a>(&'a mut TxQueue);

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.0.send(len, fill)
    }
}
