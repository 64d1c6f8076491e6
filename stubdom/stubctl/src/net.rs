//! The relay's network: a bridge without an uplink, and the stubs' ports on it.
//!
//! **Takes** a bridge's name, a vif and its MAC. **Gives** a bridge that forwards at once and has dom0's address, and ports
//! that are tied to their stub ([`Port`]). **Never** joins the bridge to anything else: only stubs and dom0 are on it, and a
//! stub that receives cannot reach the others. (A vif that somebody plugs anew when the stub has restored is not kept apart:
//! nobody is there to see it.)

mod port;

pub(crate) use port::Port;

use control::{RELAY_ADDRESS, Untrusted};
use port::run;
use std::fmt;
use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where IPv6 settings are, unless dom0's kernel has none.
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// What is wrong with the bridge.
#[derive(Debug)]
pub(crate) enum NetError {
    /// A program of iproute2's failed.
    Program {
        /// Which.
        program: &'static str,
        /// Its arguments.
        arguments: String,
        /// What it said.
        said: Untrusted<String>,
    },
    /// Dom0's kernel has no IPv6.
    NoIpv6,
    /// The stub's vif is not on the bridge.
    NoPort {
        /// Its vif.
        vif: String,
        /// The bridge.
        bridge: String,
    },
    /// A kernel file cannot be read or written.
    Setting {
        /// Which.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Something that is no bridge has the bridge's name.
    NoBridge(String),
    /// The stub's vif has no MAC that we can read.
    BadMac(Untrusted<String>),
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program { program, arguments, said } => {
                write!(f, "\"{program} {arguments}\" failed: {said}")
            }
            Self::NoIpv6 => f.write_str(
                "transport tcp needs IPv6, which dom0's kernel has switched off (ipv6.disable=1): set \"transport = ring\"",
            ),
            Self::NoPort { vif, bridge } => write!(
                f,
                "expected the stub's {vif} on bridge {bridge}, it is on none: is vif= in the stub's config, and a hotplug \
                 script for it there?"
            ),
            Self::Setting { file, error } => write!(f, "{}: {error}", file.display()),
            Self::NoBridge(name) => {
                write!(f, "interface {name} exists and is no bridge: set another \"bridge\"")
            }
            Self::BadMac(got) => {
                write!(f, "the stub's vif has no MAC, got \"{got}\" (is vif= in its config?)")
            }
        }
    }
}

impl std::error::Error for NetError {}

/// Makes sure that the bridge is there, is up, forwards and has dom0's address.
///
/// # Errors
/// It cannot be made.
pub(crate) fn ensure_bridge(name: &str) -> Result<(), NetError> {
    if !Path::new(IPV6).is_dir() {
        return Err(NetError::NoIpv6);
    }
    let device = device(name);
    if !device.exists() {
        make_bridge(name)?;
    }
    if !device.join("bridge").is_dir() {
        return Err(NetError::NoBridge(name.to_owned()));
    }
    // Learning for 15 s before the first packet, or a duplicate address check, would only delay every restore.
    set(&device.join("bridge/forward_delay"), "0")?;
    for (file, value) in [("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0")] {
        set(&Path::new(IPV6).join(name).join(file), value)?;
    }
    run("ip", &["link", "set", "dev", name, "up"])?;
    let address = format!("{RELAY_ADDRESS}/64");
    run("ip", &["-6", "addr", "replace", &address, "dev", name, "nodad"])
}

/// Makes a bridge by which stubs reach nothing behind dom0, and hear of none of dom0's other addresses.
fn make_bridge(name: &str) -> Result<(), NetError> {
    match run("ip", &["link", "add", "name", name, "type", "bridge"]) {
        // Another stubctl may have been quicker, which is as good.
        Err(error) if !device(name).exists() => return Err(error),
        _ => {}
    }
    let ipv4 = Path::new("/proc/sys/net/ipv4/conf").join(name);
    let ipv6 = Path::new(IPV6).join(name);
    for file in [ipv4.join("forwarding"), ipv6.join("forwarding"), ipv6.join("accept_redirects")] {
        set(&file, "0")?;
    }
    // 8: no answer to any ARP request (Linux, ip-sysctl.rst). Dom0 has no IPv4 address here.
    set(&ipv4.join("arp_ignore"), "8")
}

/// The interface's number, which scopes link-local addresses.
pub(crate) fn interface_index(name: &str) -> Result<u32, NetError> {
    let file = device(name).join("ifindex");
    let text = fs::read_to_string(&file).map_err(|error| NetError::Setting { file: file.clone(), error })?;
    let error = |_| NetError::Setting { file, error: io::ErrorKind::InvalidData.into() };
    text.trim().parse().map_err(error)
}

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mac([u8; 6]);

impl Mac {
    /// The link-local address that a stub gives itself: EUI-64 of its MAC (RFC 4291, appendix A).
    pub(crate) fn link_local(self) -> Ipv6Addr {
        let Self([a, b, c, d, e, f]) = self;
        let interface_id = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
        let mut address = [0; 16];
        address[..2].copy_from_slice(&[0xfe, 0x80]);
        address[8..].copy_from_slice(&interface_id);
        address.into()
    }
}

impl FromStr for Mac {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let octet = |digits: &str| (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten();
        let octets: Option<Vec<u8>> = text.trim().split(':').map(octet).collect();
        let mac = octets.and_then(|octets| octets.try_into().ok());
        mac.map(Self).ok_or_else(|| NetError::BadMac(Untrusted::new(text.to_owned())))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([a, b, c, d, e, last]) = self;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{last:02x}")
    }
}

fn device(name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(name)
}

fn set(file: &Path, value: &str) -> Result<(), NetError> {
    fs::write(file, value).map_err(|error| NetError::Setting { file: file.to_owned(), error })
}

#[cfg(test)]
mod tests;
