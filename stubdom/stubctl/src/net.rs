//! The relay's network: a bridge without an uplink, and the stub's address on it.
//!
//! **Takes** a bridge's name, a MAC. **Gives** a bridge that forwards at once, an IPv6 link-local address. **Never**
//! joins the bridge to anything else: only stubs and dom0 are on it, and a stub that receives cannot reach the others. (A vif
//! that somebody plugs anew when the stub has restored is not kept apart: nobody is there to see it.)

use crate::program;
use control::Untrusted;
use std::fmt;
use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use xen_abi::types::Domid;

/// What is wrong with the bridge.
#[derive(Debug)]
pub(crate) enum NetError {
    /// `ip` failed.
    Ip {
        /// Its arguments.
        arguments: String,
        /// What it said.
        said: Untrusted<String>,
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
            Self::Ip { arguments, said } => write!(f, "\"ip {arguments}\" failed: {said}"),
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

/// Makes sure that the bridge is there, is up and forwards.
///
/// # Errors
/// It cannot be made.
pub(crate) fn ensure_bridge(name: &str) -> Result<(), NetError> {
    let device = device(name);
    if !device.exists()
        && let Err(error) = ip(&["link", "add", "name", name, "type", "bridge"])
        && !device.exists()
    {
        // Another stubctl may have been quicker, which is as good.
        return Err(error);
    }
    if !device.join("bridge").is_dir() {
        return Err(NetError::NoBridge(name.to_owned()));
    }
    // Learning for 15 s before the first packet, or a duplicate address check, would only delay every restore.
    set(&device.join("bridge/forward_delay"), "0")?;
    let ipv6 = Path::new("/proc/sys/net/ipv6/conf").join(name);
    for (file, value) in [("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0")] {
        set(&ipv6.join(file), value)?;
    }
    ip(&["link", "set", "dev", name, "up"])
}

/// Keeps a stub from reaching the other stubs on the bridge; best effort, older kernels have no such switch.
pub(crate) fn isolate_port(stub: Domid) {
    let port = device(&format!("vif{}.0", stub.raw())).join("brport/isolated");
    if let Err(error) = fs::write(&port, "1") {
        log::debug!("{}: {error}", port.display());
    }
}

/// The interface's number, which scopes link-local addresses.
pub(crate) fn interface_index(name: &str) -> Result<u32, NetError> {
    let file = device(name).join("ifindex");
    let text = fs::read_to_string(&file).map_err(|error| NetError::Setting { file: file.clone(), error })?;
    let error = |_| NetError::Setting { file, error: io::ErrorKind::InvalidData.into() };
    text.trim().parse().map_err(error)
}

/// The link-local address that a stub gives itself: EUI-64 of its MAC (RFC 4291, appendix A).
pub(crate) fn link_local(mac: &str) -> Result<Ipv6Addr, NetError> {
    let [a, b, c, d, e, f] =
        parse_mac(mac).ok_or_else(|| NetError::BadMac(Untrusted::new(mac.to_owned())))?;
    let interface_id = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let mut address = [0; 16];
    address[..2].copy_from_slice(&[0xfe, 0x80]);
    address[8..].copy_from_slice(&interface_id);
    Ok(address.into())
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut octets = text.trim().split(':');
    for octet in &mut mac {
        let digits = octets.next().filter(|digits| digits.len() == 2)?;
        *octet = u8::from_str_radix(digits, 16).ok()?;
    }
    octets.next().is_none().then_some(mac)
}

fn device(name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(name)
}

fn set(file: &Path, value: &str) -> Result<(), NetError> {
    fs::write(file, value).map_err(|error| NetError::Setting { file: file.to_owned(), error })
}

fn ip(arguments: &[&str]) -> Result<(), NetError> {
    let failed = |said: &str| {
        let said = Untrusted::new(said.to_owned());
        NetError::Ip { arguments: arguments.join(" "), said }
    };
    let output = Command::new(program::system("ip")).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed(&error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_becomes_a_link_local_address() {
        let address: Ipv6Addr = "fe80::216:3eff:fe5a:1b2c".parse().unwrap();
        assert_eq!(link_local("00:16:3e:5a:1b:2c").unwrap(), address);
        assert_eq!(link_local("00:16:3E:5A:1B:2C\n").unwrap(), address);
    }

    #[test]
    fn what_is_no_mac_is_refused() {
        for bad in [
            "",
            "00:16:3e:5a:1b",
            "00:16:3e:5a:1b:2c:00",
            "0:16:3e:5a:1b:2c",
            "00-16-3e-5a-1b-2c",
            "zz:16:3e:5a:1b:2c",
        ] {
            assert!(matches!(link_local(bad), Err(NetError::BadMac(_))), "{bad}");
        }
    }
}
