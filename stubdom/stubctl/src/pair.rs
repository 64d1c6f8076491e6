//! From "this guest wants a stub" to "its stub answers": create, link, give rights, greet.
//!
//! **Takes** a target and its configuration. **Gives** a paired stub and the open conversation. **Never** leaves a
//! stub behind that did not come up: [`Stub`] destroys its domain when it is dropped, until it is told to stay.

use crate::conf::{Conf, settled_name};
use crate::control_channel::{ControlChannel, HEARTBEAT};
use crate::error::Error;
use crate::ffi::sys;
use crate::host::{Host, home};
use crate::{net, xl_lock};
use control::{Transport, Untrusted, nodes};
use std::fmt;
use std::io::{self, Read};
use std::net::SocketAddrV6;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use xen_abi::types::Domid;

/// What keeps a stub from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PairError {
    /// The xl config of the stub is not there.
    NoConfig(PathBuf),
    /// `xl create` failed; its own words.
    Create(Untrusted<String>),
    /// `xl create` did not end in time.
    CreateTimeout(Duration),
    /// `xl create` succeeded and there is no such domain.
    Vanished(String),
    /// The target is not HVM or PVH.
    NotHvm(Domid),
    /// The guest has no stub.
    NoStub(Untrusted<String>),
    /// There is no such guest.
    NoGuest(String),
    /// A stub that died is still there.
    Lingers(Domid),
    /// Another stubctl exchanges pages of this guest: its process, if it has told.
    InCare(Domid, Option<u32>),
    /// What stands in this node, where a guest's exchange is noted, is none of this stubctl's.
    BadRecord(Domid, String, Untrusted<String>),
}

impl fmt::Display for PairError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConfig(path) => {
                write!(f, "{} is not there: install the stub's xl config, or set \"config\"", path.display())
            }
            Self::Create(said) => write!(f, "xl create of the stub failed: {said}"),
            Self::CreateTimeout(waited) => {
                write!(f, "xl create of the stub did not end within {} s (start_timeout_s)", waited.as_secs())
            }
            Self::Vanished(name) => write!(f, "the stub {name} was created and is gone already"),
            Self::NotHvm(target) => {
                write!(f, "{target} is a PV domain: Xen ties a stub to HVM and PVH domains only")
            }
            Self::NoStub(guest) => write!(f, "{guest} has no stub (see stubctl attach)"),
            Self::Lingers(stub) => write!(f, "the dead stub {stub} does not go: xl destroy {}", stub.raw()),
            Self::InCare(guest, pid) => {
                let pid = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
                write!(f, "another stubctl{pid} exchanges pages of {guest}: try again when it is done")
            }
            Self::BadRecord(guest, node, text) => {
                write!(
                    f,
                    "{node} holds {text:?}, expected what stubctl of this build notes of an exchange: see that {guest} \
                     runs and has its maxmem, then xenstore-rm the node"
                )
            }
            Self::NoGuest(guest) => write!(f, "there is no domain {guest} (see xl list)"),
        }
    }
}

impl std::error::Error for PairError {}

impl PairError {
    fn create(error: &io::Error) -> Self {
        Self::Create(Untrusted::new(error.to_string()))
    }
}

/// A stub domain that this process made; dropped, it is destroyed, unless [`Stub::keep`] was called.
pub(crate) struct Stub<'a> {
    host: &'a Host,
    name: String,
    target: Domid,
    /// The stub's domain.
    pub(crate) domid: Domid,
    keep: bool,
}

impl<'a> Stub<'a> {
    /// Makes a stub for `target`, gives it its rights and lets it run.
    ///
    /// # Errors
    /// It cannot be made; nothing is left of it.
    pub(crate) fn start(host: &'a Host, conf: &Conf, guest: &str, target: Domid) -> Result<Self, Error> {
        xl_lock::check()?;
        if conf.transport == Transport::Tcp {
            net::ensure_bridge(&conf.bridge)?;
        }
        let name = stub_name(guest, target);
        create(host, conf, &name)?;
        let domid = host.domid_of(&name)?.ok_or_else(|| PairError::Vanished(name.clone()))?;
        let stub = Self { host, name, target, domid, keep: false };
        stub.link()?;
        host.xen.set_target(domid, target)?;
        if conf.transport == Transport::Tcp {
            net::isolate_port(domid); // and again at every look at the stub: its vif may be plugged anew
        }
        Ok(stub)
    }

    /// Waits for the stub to answer and tells it its target.
    ///
    /// # Errors
    /// It does not come up in time.
    pub(crate) fn greet(&self, conf: &Conf) -> Result<ControlChannel, Error> {
        let patience = conf.start_timeout;
        let (mut channel, known) = ControlChannel::open(self.host, self.domid, patience)?;
        channel.pair(self.host, known, self.target, patience)?;
        Ok(channel)
    }

    /// Lets the stub live on; it ends with its target.
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }

    /// As [`Stub::keep`], for who would hold a stub only to have it end.
    pub(crate) fn keep_none(self) -> Option<Self> {
        self.keep();
        None
    }

    /// Writes the two links, each in the home of the other's partner and owned by dom0.
    fn link(&self) -> Result<(), Error> {
        let store = &self.host.store;
        let of_target = home(self.target, nodes::STUB_OF_TARGET);
        store.write(&home(self.domid, nodes::TARGET_OF_STUB), &self.target.raw().to_string())?;
        store.write(&of_target, &self.domid.raw().to_string())?;
        store.let_read(&of_target, self.domid)?;
        Ok(())
    }
}

impl Drop for Stub<'_> {
    fn drop(&mut self) {
        if !self.keep {
            destroy(self.host, &self.name, self.domid, self.target);
        }
    }
}

/// Ends a stub for good and unlinks it from its target; failures are logged, there is nobody else to tell.
pub(crate) fn destroy(host: &Host, name: &str, stub: Domid, target: Domid) {
    let is_there = || !matches!(host.xen.domain_info(stub), Ok(None));
    // By number: the name may be another domain's by now. Whoever else destroys it may be quicker.
    if is_there()
        && let Err(said) = xl(&["destroy", &stub.raw().to_string()])
        && is_there()
    {
        log::warn!("cannot destroy the stub {name} ({stub}): {said}; do it by hand: xl destroy {name}");
    }
    unlink(host, target);
}

/// Removes the link from a target to its stub.
pub(crate) fn unlink(host: &Host, target: Domid) {
    if let Err(error) = host.store.remove(&home(target, nodes::STUB_OF_TARGET)) {
        log::warn!("{error}");
    }
}

/// Clears away a stub that has died, and waits until it is gone: its successor wants its name.
///
/// # Errors
/// It does not go.
pub(crate) fn bury(host: &Host, target: Domid, patience: Duration) -> Result<(), Error> {
    let Some(stub) = host.domid_in(&home(target, nodes::STUB_OF_TARGET))? else { return Ok(()) };
    let start = Instant::now();
    // Its memory may stay until this process lets go of its channel; its name is free when xenstore has lost it.
    while host.name_of(stub)?.is_some() {
        if start.elapsed() > patience {
            return Err(PairError::Lingers(stub).into());
        }
        if start.elapsed() > patience / 4 {
            // xl has not cleared it away by itself.
            destroy(host, &stub.to_string(), stub, target);
        }
        host.interrupt.wait(&[], HEARTBEAT / 10)?;
    }
    host.store.remove(&home(target, nodes::STUB_OF_TARGET))?;
    Ok(())
}

/// The living stub of a guest; both links must agree.
pub(crate) fn find(host: &Host, target: Domid) -> Result<Option<Domid>, Error> {
    let Some(stub) = host.domid_in(&home(target, nodes::STUB_OF_TARGET))? else { return Ok(None) };
    let agrees = host.domid_in(&home(stub, nodes::TARGET_OF_STUB))? == Some(target);
    let lives = host.xen.domain_info(stub)?.is_some_and(|info| !info.dying && !info.shutdown);
    Ok((agrees && lives).then_some(stub))
}

/// The address at which a stub takes streams.
pub(crate) fn stream_address(host: &Host, conf: &Conf, stub: Domid) -> Result<SocketAddrV6, Error> {
    // The back end's copy of the MAC, which the stub cannot write.
    let node = format!("/local/domain/0/backend/vif/{}/0/mac", stub.raw());
    let mac = host.store.read(&node)?.unwrap_or_default();
    let (address, scope) = (net::link_local(mac.raw())?, net::interface_index(&conf.bridge)?);
    Ok(SocketAddrV6::new(address, control::STREAM_PORT, 0, scope))
}

/// Runs `xl create` with the guest's own name and network filled in. The stub runs at once: if this process is killed
/// before they are paired, the stub ends by itself, which a paused one could not.
fn create(host: &Host, conf: &Conf, name: &str) -> Result<(), Error> {
    if !conf.config.is_file() {
        return Err(PairError::NoConfig(conf.config.clone()).into());
    }
    let mut child = spawn_create(conf, name).map_err(|error| PairError::create(&error))?;
    let start = Instant::now();
    let result = loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(_)) => break Err(PairError::Create(last_words(&mut child)).into()),
            Ok(None) => {}
            Err(error) => break Err(PairError::create(&error).into()),
        }
        if start.elapsed() >= conf.start_timeout {
            break Err(PairError::CreateTimeout(conf.start_timeout).into());
        }
        if let Err(stop) = host.interrupt.wait(&[], HEARTBEAT / 10) {
            break Err(stop.into());
        }
    };
    abandon(host, child, name);
    result
}

fn spawn_create(conf: &Conf, name: &str) -> io::Result<Child> {
    let mut command = Command::new("xl");
    command.args(["create", "-q"]).arg(&conf.config);
    // xl reads these behind the file, and the last setting counts.
    command.args(extra_settings(conf, name));
    // libxl's pipes to this process are no business of the daemon that xl leaves behind.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    sys::unblock_termination(&mut command).spawn()
}

/// The name of a guest's stub. The guest's own came with its stream and becomes part of an xl config: what could end a
/// string or a line there is made plain. The number keeps it apart from every other's.
fn stub_name(guest: &str, target: Domid) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let guest: String = settled_name(guest).chars().map(plain).collect();
    format!("{guest}-stubdom-{}", target.raw())
}

/// What the stub's config cannot know.
fn extra_settings(conf: &Conf, name: &str) -> Vec<String> {
    let memory = conf.memory_mib.map(|mib| format!("memory={mib}"));
    let vif = match conf.transport {
        // Without a vif xl runs no hotplug script.
        Transport::Ring => "vif=[]".to_owned(),
        Transport::Tcp => format!("vif=[\"bridge={}\"]", conf.bridge),
    };
    let settings = [format!("name=\"{name}\""), vif];
    settings.into_iter().chain(memory).collect()
}

/// Ends an `xl create` that is still running and whatever domain it has made by now.
fn abandon(host: &Host, mut child: Child, name: &str) {
    // Both fail only when it has ended by itself.
    let _ = child.kill();
    let _ = child.wait();
    if let Ok(Some(domid)) = host.domid_of(name)
        && let Err(said) = xl(&["destroy", &domid.raw().to_string()])
    {
        log::warn!("cannot destroy the stub {name} ({domid}): {said}");
    }
}

/// Why a command failed, by what it wrote to standard error.
fn last_words(child: &mut Child) -> Untrusted<String> {
    let mut said = Vec::new();
    if let Some(stderr) = &mut child.stderr {
        // What cannot be read is missing from the message, no more.
        let _ = stderr.take(8192).read_to_end(&mut said);
    }
    cause(&String::from_utf8_lossy(&said))
}

/// The line that names the cause: the first that speaks of a failure. What stands before it are remarks (`got a tsc mode
/// string`), what stands behind it follows from it (`Unable to destroy guest`).
fn cause(said: &str) -> Untrusted<String> {
    let is_failure = |line: &&str| {
        let line = line.to_ascii_lowercase();
        ["error", "fail", "cannot", "can't", "unable", "not found"].iter().any(|word| line.contains(word))
    };
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.clone().find(is_failure).or(lines.next_back());
    Untrusted::new(line.unwrap_or("it does not say why").to_owned())
}

/// Runs an xl command to its end.
pub(crate) fn xl(arguments: &[&str]) -> Result<(), Untrusted<String>> {
    let mut command = Command::new("xl");
    command.args(arguments).stdin(Stdio::null());
    let output = sys::unblock_termination(&mut command).output();
    let output = output.map_err(|error| Untrusted::new(format!("cannot run xl: {error}")))?;
    if output.status.success() { Ok(()) } else { Err(cause(&String::from_utf8_lossy(&output.stderr))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extra_settings_are_xl_config_lines() {
        let conf = Conf { memory_mib: Some(24), transport: Transport::Ring, ..Conf::default() };
        let expected = ["name=\"db-stubdom-7\"", "vif=[]", "memory=24"];
        assert_eq!(extra_settings(&conf, "db-stubdom-7"), expected);
        let conf = Conf { memory_mib: None, transport: Transport::Tcp, ..conf };
        assert_eq!(extra_settings(&conf, "x"), ["name=\"x\"", "vif=[\"bridge=xenstub0\"]"]);
    }

    #[test]
    fn a_guests_name_adds_no_setting_to_the_stubs_config() {
        let name = |guest| stub_name(guest, Domid::new(7));
        assert_eq!(name("db_1.old-x--incoming"), "db_1.old-x-stubdom-7");
        assert_eq!(name("a\"\nkernel=\"/tmp/x"), "a__kernel___tmp_x-stubdom-7");
        assert_eq!(name("tä'\\;#[]\0"), "t________-stubdom-7");
        let settings = extra_settings(&Conf::default(), &name("x\"]\nvif=["));
        assert_eq!(settings[0], "name=\"x___vif__-stubdom-7\"");
    }

    #[test]
    fn the_cause_stands_between_remarks_and_consequences() {
        let said =
            "\ngot a tsc mode string: \"native\"\n  xc: error: no memory\nlibxl: error: Unable to destroy\n";
        assert_eq!(cause(said).raw(), "xc: error: no memory");
        assert_eq!(cause("Parsing config\nout of luck\n").raw(), "out of luck");
        assert_eq!(cause("").raw(), "it does not say why");
    }
}
