//! The network: the IP stack over the network front end.
//!
//! **Takes** the front end, the address from the command line, and the time. **Gives** the bytes of the stream, borrowed
//! from the socket's buffer, and the time until which the stub may sleep. **Never** looks at a frame that the stack's
//! filter does not admit.

mod device;

use device::Wire;
use stub_net::{Addressing, Service, Stack, Stream};
use xen_front::grants::GrantTable;
use xen_front::net::Netfront;
use xen_front::xenstore::Xenstore;

/// The front end and the stack on it.
pub(crate) struct Net {
    front: Netfront,
    stack: Stack,
}

impl Net {
    /// Takes the front end, connected or not.
    pub(crate) fn new(front: Netfront, addressing: Addressing, now_ns: u64) -> Self {
        Self { front, stack: Stack::new(addressing, now_ns) }
    }

    /// The front end: its event channels to wait on, its token among xenstore's events.
    pub(crate) const fn front(&self) -> &Netfront {
        &self.front
    }

    /// The stream's connection.
    pub(crate) const fn stack(&mut self) -> &mut Stack {
        &mut self.stack
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
        if let Some(mac) = self.front.take_link_up() {
            self.stack.link_up(mac, &mut Wire(&mut self.front), now_ns);
        }
        self.stack.send_due(&mut Wire(&mut self.front), now_ns);
        self.front.flush();
        self.stack.take_frames(&mut Wire(&mut self.front), now_ns);
    }

    /// Until when the stub may sleep, in nanoseconds of system time; `None`: until an event. Asks the back end for
    /// events, so it comes last before sleeping.
    pub(crate) fn deadline(&mut self, now_ns: u64) -> Option<u64> {
        if self.front.request_events() {
            return Some(now_ns);
        }
        match self.front.transmit() {
            Some(_) => self.stack.deadline(now_ns),
            None => self.stack.deadline_without_link(now_ns),
        }
    }

    /// Makes ready for a stream.
    pub(crate) fn serve(&mut self, service: &Service, now_ns: u64) {
        self.stack.serve(service, &mut Wire(&mut self.front), now_ns);
    }

    /// Lets the next one connect, after whatever is open now is reset.
    pub(crate) fn listen(&mut self, now_ns: u64) {
        self.stack.listen(&mut Wire(&mut self.front), now_ns);
        self.front.flush();
    }

    /// Resets the connection, if one is open, and accepts no other.
    pub(crate) fn abort(&mut self, now_ns: u64) {
        if self.stack.is_open()
            && let Some((rx, _)) = self.front.counters()
        {
            log::info!("network: received {} frames of {} bytes in all", rx.nr_frames, rx.nr_bytes);
        }
        self.stack.abort(&mut Wire(&mut self.front), now_ns);
        self.front.flush();
    }

    /// Says how the stream's connection is.
    pub(crate) fn stream(&mut self) -> Stream {
        self.stack.stream()
    }
}
