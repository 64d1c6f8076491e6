//! Event channels, two-level ABI, without upcalls: pending bits in `shared_info`, `SCHEDOP_poll` to sleep.

use core::mem::offset_of;

use crate::hypercall::sched;
use crate::shared_mem::SharedMem;
use xen_abi::abi::SharedInfo;
use xen_abi::errno::Errno;
use xen_abi::types::Port;

const PENDING: usize = offset_of!(SharedInfo, evtchn_pending);

/// The pending bits of our ports. Copies are the same bits.
///
/// A port is "taken" before its ring is looked at: an event that comes later sets the bit again, and the next
/// [`wait`](Self::wait) returns at once.
#[derive(Clone, Copy, Debug)]
pub struct Events(&'static SharedMem);

impl Events {
    pub(crate) const fn new(shared_info: &'static SharedMem) -> Self {
        Self(shared_info)
    }

    /// Takes the pending event of `port`; tells whether there was one.
    pub fn take(&self, port: Port) -> bool {
        let (offset, bit) = place(port);
        self.0.read::<u64>(offset) & bit != 0 && self.0.take_bits(offset, bit) & bit != 0
    }

    /// Sleeps until one of `ports` is pending or system time reaches `deadline_ns`; without a deadline as long as it
    /// takes. At most 128 ports.
    pub fn wait(&self, ports: &[Port], deadline_ns: Option<u64>) -> Result<(), Errno> {
        // 0 would mean no timeout; a deadline of 0 is long past.
        sched::poll(ports, deadline_ns.map_or(0, |deadline| deadline.max(1)))
    }
}

/// Returns the offset of the word that holds the port's pending bit, and the bit.
const fn place(port: Port) -> (usize, u64) {
    let port = port.raw() as usize;
    (PENDING + port / 64 * 8, 1 << (port % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_one_bit_of_the_pending_words() {
        assert_eq!(place(Port::new(0)), (PENDING, 1));
        assert_eq!(place(Port::new(65)), (PENDING + 8, 2));
        assert_eq!(PENDING, 32 * 64);
    }
}
