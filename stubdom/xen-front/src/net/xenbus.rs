//! A network front end's side of xenstore: where the back end is, what it can do, where our rings are.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

use super::handshake::{Action, Ends};
use super::link::{self, Link};
use super::{Mac, Netfront};
use crate::grants::GrantTable;
use crate::xenstore::{Error, Xenstore};
use alloc::format;
use alloc::string::String;
use xen_abi::errno::Errno;
use xen_abi::types::Domid;
use xen_abi::xenbus::State;

/// What we offer and ask for, besides rings and event channels (`xen/include/public/io/netif.h`).
///
/// No `feature-no-csum-offload`: frames without a checksum are welcome, they never left this host.
const FEATURES: [&str; 6] = [
    "request-rx-copy",
    "feature-rx-notify",
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-ipv6-csum-offload",
];

/// The back end that the toolstack has given the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backend {
    /// Its directory, absolute.
    path: String,
    domid: Domid,
}

impl Netfront {
    /// Watches for the vif to be plugged in. Its events have the device's path (`device/vif/N`) as their token, and each
    /// is a reason to call [`Netfront::follow`].
    ///
    /// # Errors
    /// Xenstore's.
    pub fn watch(&self, store: &mut Xenstore) -> Result<(), Error> {
        // Not the directory itself: every node that we write there would come back as an event.
        store.watch(&format!("{}/backend", self.path), &self.path)
    }

    /// Returns the token of the watches' events.
    pub fn token(&self) -> &str {
        &self.path
    }

    /// Looks at both ends' states and does what is due: connects, comes up, closes.
    ///
    /// # Errors
    /// Xenstore's; what has been done stays done, and the next call goes on from there.
    pub fn follow(&mut self, store: &mut Xenstore, grants: &mut GrantTable) -> Result<(), Error> {
        self.stale = link::release(grants, core::mem::take(&mut self.stale));
        self.find_backend(store)?;
        loop {
            let action = if self.has_failed() { Action::Disconnect } else { self.ends(store)?.action() };
            match action {
                Action::Wait => return Ok(()),
                Action::Start if self.fault.is_some() => return Ok(()),
                Action::Start => self.set_state(store, State::Initialising)?,
                Action::Connect if !self.connect(store, grants)? => return Ok(()),
                Action::Connect => {}
                Action::Up => return self.come_up(store),
                Action::Disconnect => self.disconnect(store, grants)?,
            }
        }
    }

    /// Learns which back end the device has, and watches its state.
    fn find_backend(&mut self, store: &mut Xenstore) -> Result<(), Error> {
        let path = optional(store.read(&format!("{}/backend", self.path)))?;
        let domid =
            number(store, &format!("{}/backend-id", self.path))?.and_then(|id| u16::try_from(id).ok());
        let found = path.zip(domid).map(|(path, id)| Backend { path, domid: Domid::new(id) });
        if found == self.backend {
            return Ok(());
        }
        if let Some(old) = self.backend.take() {
            optional(store.unwatch(&format!("{}/state", old.path), &self.path))?;
        }
        self.fault = None;
        if let Some(new) = &found {
            store.watch(&format!("{}/state", new.path), &self.path)?;
        }
        self.backend = found;
        Ok(())
    }

    fn ends(&self, store: &mut Xenstore) -> Result<Ends, Error> {
        let (mut theirs, mut online) = (None, false);
        if let Some(backend) = &self.backend {
            theirs =
                optional(store.read(&format!("{}/state", backend.path)))?.map(|text| State::parse(&text));
            online = number(store, &format!("{}/online", backend.path))? == Some(1);
        }
        let ours = optional(store.read(&format!("{}/state", self.path)))?;
        let ours = ours.map_or(State::Unknown, |text| State::parse(&text));
        Ok(Ends { linked: self.link.is_some(), ours, theirs, online })
    }

    /// Makes rings and tells the back end where they are; false if that is not possible now.
    fn connect(&mut self, store: &mut Xenstore, grants: &mut GrantTable) -> Result<bool, Error> {
        let Some(backend) = self.backend.clone() else { return Ok(false) };
        if !self.stale.is_empty() {
            log::warn!("network: {} pages are still in use by the last back end", self.stale.len());
            return Ok(false);
        }
        if !feature(store, &backend, "feature-rx-copy")? {
            log::error!("network: the back end cannot copy (feature-rx-copy)");
            return Ok(false);
        }
        let split = feature(store, &backend, "feature-split-event-channels")?;
        match Link::new(&self.pages, grants, backend.domid, split) {
            Ok(link) => {
                let announced = announce(store, &self.path, &link);
                self.link = Some(link);
                announced?;
                self.set_state(store, State::Connected)?;
                Ok(true)
            }
            Err(error) => {
                log::error!("network: cannot connect to {}: {error:?}", backend.domid);
                Ok(false)
            }
        }
    }

    fn come_up(&mut self, store: &mut Xenstore) -> Result<(), Error> {
        let Some(link) = self.link.as_mut().filter(|_| !self.up) else { return Ok(()) };
        self.came_up = parse_mac(&store.read(&format!("{}/mac", self.path))?);
        self.up = self.came_up.is_some();
        link.kick();
        log::info!("network: vif {} is {}", self.path, if self.up { "up" } else { "without a MAC address" });
        Ok(())
    }

    fn disconnect(&mut self, store: &mut Xenstore, grants: &mut GrantTable) -> Result<(), Error> {
        if let Some(link) = self.link.take() {
            self.up = false;
            self.came_up = None;
            log::info!("network: vif {} is down", self.path);
            self.stale = link.end(grants);
        }
        if self.backend.is_some() { self.set_state(store, State::Closed) } else { Ok(()) }
    }

    fn set_state(&self, store: &mut Xenstore, state: State) -> Result<(), Error> {
        store.write(&format!("{}/state", self.path), &format!("{}", state as u32))
    }
}

/// Writes where the rings are and what we can do, all at once.
fn announce(store: &mut Xenstore, path: &str, link: &Link) -> Result<(), Error> {
    let (tx_ref, rx_ref) = link.ring_refs();
    store.transaction(|store, transaction| {
        let mut write = |key: &str, value: u32| {
            store.write_in(transaction, &format!("{path}/{key}"), &format!("{value}"))
        };
        write("tx-ring-ref", tx_ref.raw())?;
        write("rx-ring-ref", rx_ref.raw())?;
        if link.ports.is_split() {
            write("event-channel-tx", link.ports.tx.raw())?;
            write("event-channel-rx", link.ports.rx.raw())?;
        } else {
            write("event-channel", link.ports.tx.raw())?;
        }
        FEATURES.iter().try_for_each(|feature| write(feature, 1))
    })
}

fn feature(store: &mut Xenstore, backend: &Backend, name: &str) -> Result<bool, Error> {
    Ok(number(store, &format!("{}/{name}", backend.path))? == Some(1))
}

fn number(store: &mut Xenstore, path: &str) -> Result<Option<u32>, Error> {
    Ok(optional(store.read(path))?.and_then(|text| text.trim().parse().ok()))
}

/// A node that is missing is no error.
fn optional<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Err(Error::Refused(Errno::ENOENT)) => Ok(None),
        other => other.map(Some),
    }
}

/// Reads `00:16:3e:01:02:03`.
fn parse_mac(text: &str) -> Option<Mac> {
    let mut bytes = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = bytes.next()??;
    }
    bytes.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::parse_mac;

    #[test]
    fn a_mac_address_is_six_bytes_in_hexadecimal() {
        assert_eq!(parse_mac("00:16:3e:01:02:fF"), Some([0, 0x16, 0x3e, 1, 2, 0xff]));
        for wrong in ["", "00:16:3e:01:02", "00:16:3e:01:02:03:04", "00:16:3e:01:02:100", "00-16-3e-01-02-03"]
        {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
