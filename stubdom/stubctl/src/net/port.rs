//! A stub's port on the relay's bridge, tied to the stub's MAC.
//!
//! **Takes** what dom0 itself knows: the bridge, the vif, the MAC that the back end has. **Gives** an address behind which
//! nobody else can be. **Never** learns from what comes by the port: which MAC is at it and which MAC has the address are
//! entries that dom0 makes, so that no stub draws another's frames to itself by claiming to be it.

use super::{Mac, NetError, device, set};
use crate::program;
use control::Untrusted;
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::process::{Command, Stdio};

/// What a stub's port is set to, below `brport/`: it reaches dom0 only, teaches the bridge nothing, and gets no frame that
/// is for a MAC which is at no port now (that of a stub whose vif is unplugged).
const SETTINGS: [(&str, &str); 3] = [("isolated", "1"), ("learning", "0"), ("unicast_flood", "0")];

/// A port that is tied; dropped, it gives up the address.
#[derive(Debug)]
pub(crate) struct Port {
    bridge: String,
    vif: String,
    mac: Mac,
}

impl Port {
    /// Ties the port.
    ///
    /// # Errors
    /// It cannot be tied, or is not there: nothing may be sent to the address then.
    pub(crate) fn tie(bridge: &str, vif: String, mac: Mac) -> Result<Self, NetError> {
        let port = Self { bridge: bridge.to_owned(), vif, mac };
        if !port.is_plugged() {
            return Err(NetError::NoPort { vif: port.vif.clone(), bridge: bridge.to_owned() });
        }
        port.set()?;
        let (address, mac) = (port.address().to_string(), mac.to_string());
        run("ip", &["-6", "neigh", "replace", &address, "lladdr", &mac, "dev", bridge, "nud", "permanent"])?;
        Ok(port)
    }

    /// The stub's address.
    pub(crate) fn address(&self) -> Ipv6Addr {
        self.mac.link_local()
    }

    /// Ties the port anew if its vif is a new one: what was set went with the old one.
    ///
    /// # Errors
    /// It cannot be tied. A port that is not there is none: it gets no frames.
    pub(crate) fn keep(&self) -> Result<(), NetError> {
        if !self.is_plugged() || self.is_set() {
            return Ok(());
        }
        match self.set() {
            Err(_) if !self.is_plugged() => Ok(()),
            result => result,
        }
    }

    pub(super) fn is_plugged(&self) -> bool {
        device(&self.vif).join("brport").is_dir()
    }

    pub(super) fn is_set(&self) -> bool {
        let is = |(file, value): &(&str, &str)| {
            fs::read_to_string(device(&self.vif).join("brport").join(file))
                .is_ok_and(|text| text.trim() == *value)
        };
        SETTINGS.iter().all(is)
    }

    /// The entry first: a port that has its settings has its entry too.
    fn set(&self) -> Result<(), NetError> {
        run(
            "bridge",
            &["fdb", "replace", &self.mac.to_string(), "dev", &self.vif, "master", "static", "sticky"],
        )?;
        for (file, value) in SETTINGS {
            set(&device(&self.vif).join("brport").join(file), value)?;
        }
        Ok(())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // What a stubctl that is killed leaves says only what is true by construction: the address is made of the MAC.
        let address = self.address().to_string();
        if let Err(error) = run("ip", &["-6", "neigh", "del", &address, "dev", &self.bridge]) {
            log::debug!("{error}");
        }
    }
}

/// Runs a program of iproute2's.
pub(super) fn run(name: &'static str, arguments: &[&str]) -> Result<(), NetError> {
    let failed = |said: &str| {
        let said = Untrusted::new(said.to_owned());
        NetError::Program { program: name, arguments: arguments.join(" "), said }
    };
    let output = match Command::new(program::system(name)).args(arguments).stdin(Stdio::null()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(failed("no such program: install iproute2, or set transport = ring"));
        }
        output => output.map_err(|error| failed(&error.to_string()))?,
    };
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim()))
}
