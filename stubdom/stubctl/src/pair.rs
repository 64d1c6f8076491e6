//! From "this guest wants a stub" to "its stub answers": create, link, give rights, greet.
//!
//! **Takes** a target and its configuration. **Gives** a paired stub and the open conversation. **Never** leaves a
//! stub behind that did not come up: [`Stub`] destroys its domain when it is dropped, until it is told to stay.

use crate::byte_lock::{ByteLock, Kind};
use crate::child::Running;
use crate::conf::{Conf, settled_name};
use crate::control_channel::ControlChannel;
use crate::error::Error;
use crate::ffi::xenctrl::DomainInfo;
use crate::host::{Host, home};
use crate::interrupt::Interrupt;
use crate::wait::Wait;
use crate::{net, program, xl_lock};
use control::{Transport, Untrusted, nodes};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddrV6;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use xen_abi::types::Domid;

/// Most stubs of guests of one name. A guest has one; while it migrates within the host both sides have their own.
const NR_NAMES: u32 = 16;

/// Longest part of a guest's name in that of its stub: `xl-NAME.log.10` and `guest-NAME.log` have to be names of files.
const MAX_NAME_BYTES: usize = 128;

/// How long xl may take for what is not waited for longer: it destroys a stub within a second.
const COMMAND: Duration = Duration::from_secs(120);

/// How often to look whether what is waited for has come.
const LOOK: Duration = Duration::from_millis(50);

/// What keeps a stub from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PairError {
    /// The xl config of the stub is not there.
    NoConfig(PathBuf),
    /// The host has too little memory for the stub, or for the stub besides the guest.
    NoMemory {
        /// What is free.
        free_mib: u64,
        /// What the stub needs.
        stub_mib: u64,
        /// What the guest may take yet.
        guest_mib: u64,
    },
    /// `xl create` failed; its own words.
    Create(Untrusted<String>),
    /// `xl create` did not end in time.
    CreateTimeout(Duration),
    /// `xl create` succeeded and there is no such domain.
    Vanished(String),
    /// Every name for another stub of this guest is taken.
    NoName(String),
    /// This file says that the guest has no stub.
    Disabled(Domid, PathBuf),
    /// The guest has a stub already.
    HasStub(Domid, Domid),
    /// Another stubctl makes a stub for this guest, and has not ended in this time.
    BeingMade(Domid, Duration),
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
            Self::NoMemory { free_mib, stub_mib, guest_mib } => write!(
                f,
                "{free_mib} MiB of this host's memory are free, expected {stub_mib} MiB for the stub and {guest_mib} MiB \
                 for its guest"
            ),
            Self::Create(said) => write!(f, "xl create of the stub failed: {said}"),
            Self::CreateTimeout(waited) => {
                write!(f, "xl create of the stub did not end within {} s (start_timeout_s)", waited.as_secs())
            }
            Self::Vanished(name) => write!(f, "the stub {name} was created and is gone already"),
            Self::NoName(name) => {
                write!(
                    f,
                    "{NR_NAMES} domains have the names of this guest's stubs, up to {name}: see xl list"
                )
            }
            Self::Disabled(target, file) => {
                write!(
                    f,
                    "{target} is to have no stub: enabled = false in {}; say enabled = true there",
                    file.display()
                )?;
                write!(f, ", or in a NAME.conf beside it, to give it one")
            }
            Self::HasStub(target, stub) => {
                write!(f, "{target} has the stub {stub} already (see stubctl detach)")
            }
            Self::BeingMade(target, waited) => {
                let seconds = waited.as_secs();
                write!(
                    f,
                    "another stubctl makes a stub for {target}, for {seconds} s already: try again later"
                )
            }
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

/// The living stub of a guest.
pub(crate) enum Paired<'a> {
    /// It was there.
    Found(Domid),
    /// It was made for this.
    Made(Stub<'a>),
}

/// A stub domain that this process made; dropped, it is destroyed, unless [`Stub::keep`] was called.
pub(crate) struct Stub<'a> {
    host: &'a Host,
    target: Domid,
    /// The stub's domain.
    pub(crate) domid: Domid,
    /// Its port on the bridge, with transport `tcp`.
    port: Option<net::Port>,
    keep: bool,
}

impl<'a> Stub<'a> {
    /// Makes a stub for `target`, gives it its rights and lets it run.
    ///
    /// # Errors
    /// It cannot be made; nothing is left of it.
    pub(crate) fn start(host: &'a Host, conf: &Conf, guest: &str, target: Domid) -> Result<Self, Error> {
        match find_or_start(host, conf, guest, target)? {
            Paired::Found(stub) => Err(PairError::HasStub(target, stub).into()),
            Paired::Made(stub) => Ok(stub),
        }
    }

    fn make(host: &'a Host, conf: &Conf, guest: &str, target: Domid) -> Result<Self, Error> {
        xl_lock::check()?;
        if conf.transport == Transport::Tcp {
            net::ensure_bridge(&conf.bridge)?;
        }
        let domid = create(host, conf, guest)?;
        let mut stub = Self { host, target, domid, port: None, keep: false };
        stub.link()?;
        host.xen.set_target(domid, target)?;
        if conf.transport == Transport::Tcp {
            stub.port = Some(tie_port(host, conf, domid)?);
        }
        Ok(stub)
    }

    /// Keeps the stub's port tied, whatever became of its vif.
    ///
    /// # Errors
    /// It is not tied: nothing may be sent to it.
    pub(crate) fn keep_port(&self) -> Result<(), Error> {
        Ok(self.port.as_ref().map_or(Ok(()), net::Port::keep)?)
    }

    /// Where the stub takes streams by TCP; `None` without a port.
    ///
    /// # Errors
    /// The bridge is gone.
    pub(crate) fn stream_address(&self, conf: &Conf) -> Result<Option<SocketAddrV6>, Error> {
        let Some(port) = &self.port else { return Ok(None) };
        let scope = net::interface_index(&conf.bridge)?;
        Ok(Some(SocketAddrV6::new(port.address(), control::STREAM_PORT, 0, scope)))
    }

    /// Waits for the stub to answer and tells it its target.
    ///
    /// # Errors
    /// It does not come up in time.
    pub(crate) fn greet(&self, conf: &Conf) -> Result<ControlChannel<'a>, Error> {
        let Self { host, domid, target, .. } = *self;
        Ok(ControlChannel::open_paired(host, domid, target, conf.start_timeout, conf.stall_timeout)?)
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
            destroy(self.host, self.domid, self.target);
        }
    }
}

/// Ends a stub for good and unlinks it from its target; failures are logged, there is nobody else to tell.
pub(crate) fn destroy(host: &Host, stub: Domid, target: Domid) {
    destroy_domain(host, stub);
    unlink(host, target);
}

/// Destroys a stub's domain, by number: its name may be another domain's by now.
fn destroy_domain(host: &Host, stub: Domid) {
    let is_there = || !matches!(host.xen.domain_info(stub), Ok(None));
    let number = stub.raw().to_string();
    // Whoever else destroys it may be quicker.
    if is_there()
        && let Err(said) = xl(&["destroy", &number])
        && is_there()
    {
        log::warn!("cannot destroy the stub {stub}: {said}; do it by hand: xl destroy {number}");
    }
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
    // Its memory may stay until this process lets go of its channel; its name is free when xenstore has lost it.
    let is_gone = || Ok::<_, Error>(host.name_of(stub)?.is_none().then_some(()));
    if Wait::new(&host.interrupt, patience / 4, LOOK).until(is_gone)?.is_none() {
        // xl has not cleared it away by itself.
        destroy(host, stub, target);
        let gone = Wait::new(&host.interrupt, patience, LOOK).until(is_gone)?;
        gone.ok_or(PairError::Lingers(stub))?;
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

/// The living stub of a guest, or a new one. Nobody else makes one meanwhile.
///
/// # Errors
/// There is none to be had; nothing is left of one that was begun.
pub(crate) fn find_or_start<'a>(
    host: &'a Host,
    conf: &Conf,
    guest: &str,
    target: Domid,
) -> Result<Paired<'a>, Error> {
    let take = || Ok::<_, Error>(ByteLock::take_now(Kind::Pairing, target.raw())?);
    let lock = Wait::new(&host.interrupt, conf.start_timeout, LOOK).until(take)?;
    let _lock = lock.ok_or(PairError::BeingMade(target, conf.start_timeout))?;
    match (find(host, target)?, &conf.disabled_in) {
        (Some(stub), _) => Ok(Paired::Found(stub)),
        (None, Some(file)) => Err(PairError::Disabled(target, file.clone()).into()),
        (None, None) => Ok(Paired::Made(Stub::make(host, conf, guest, target)?)),
    }
}

/// What a stub takes of the host's memory besides its own, in MiB.
const OVERHEAD_MIB: u64 = 1;

/// Looks whether the host has the memory for a stub of `stub_mib` and for the pages that its guest may take yet.
///
/// # Errors
/// It has not: [`PairError::NoMemory`].
pub(crate) fn check_memory(host: &Host, stub_mib: u64, target: &DomainInfo) -> Result<(), Error> {
    let free_mib = host.xen.free_bytes()? >> 20;
    let guest_mib = target.max_pages.saturating_sub(target.tot_pages) >> 8;
    if has_room(free_mib, stub_mib.saturating_add(OVERHEAD_MIB), guest_mib) {
        return Ok(());
    }
    Err(PairError::NoMemory { free_mib, stub_mib, guest_mib }.into())
}

/// Whether there is room for a stub. A guest that would fit alone has to fit with it too; one that may own more than there is
/// need not be so large.
fn has_room(free_mib: u64, stub_mib: u64, guest_mib: u64) -> bool {
    let beside_guest = free_mib.checked_sub(guest_mib);
    stub_mib <= beside_guest.unwrap_or(free_mib)
}

/// Ties the port of a stub's vif.
fn tie_port(host: &Host, conf: &Conf, stub: Domid) -> Result<net::Port, Error> {
    // The back end's copy of the MAC, which the stub cannot write.
    let node = format!("/local/domain/0/backend/vif/{}/0/mac", stub.raw());
    let mac = host.store.read(&node)?.unwrap_or_default().raw().parse()?;
    Ok(net::Port::tie(&conf.bridge, format!("vif{}.0", stub.raw()), mac)?)
}

/// Runs `xl create` with the guest's own name and network filled in. The stub runs at once: if this process is killed
/// before they are paired, the stub ends by itself, which a paused one could not.
fn create(host: &Host, conf: &Conf, guest: &str) -> Result<Domid, Error> {
    if !conf.config.is_file() {
        return Err(PairError::NoConfig(conf.config.clone()).into());
    }
    let (name, _lock) = free_name(host, guest)?;
    let handle = random()?;
    let made = || host.xen.domain_made_as(handle);
    let child = spawn_create(conf, &name, handle).map_err(|error| PairError::create(&error))?;
    let result = await_create(host, conf, child);
    let domid = made()?;
    match (result, domid) {
        (Ok(()), Some(domid)) => Ok(domid),
        (Ok(()), None) => Err(PairError::Vanished(name).into()),
        (Err(error), domid) => {
            // Whatever else has this name is not ours to destroy.
            domid.inspect(|domid| destroy_domain(host, *domid));
            Err(error)
        }
    }
}

/// Waits for `xl create` to end; what does not end in time is killed.
fn await_create(host: &Host, conf: &Conf, mut child: Running) -> Result<(), Error> {
    let wait = Wait::new(&host.interrupt, conf.start_timeout, LOOK);
    let ended = wait.until(|| child.ended().map_err(|error| PairError::create(&error).into()));
    match ended {
        Ok(Some(status)) if status.success() => return Ok(()),
        Ok(Some(_)) => return Err(PairError::Create(cause(&child.words())).into()),
        Ok(None) | Err(_) => child.kill(),
    }
    Err(ended.err().unwrap_or_else(|| PairError::CreateTimeout(conf.start_timeout).into()))
}

fn spawn_create(conf: &Conf, name: &str, handle: [u8; 16]) -> io::Result<Running> {
    let mut command = Command::new(program::xl());
    command.args(["create", "-q"]).arg(&conf.config);
    // xl reads these behind the file, and the last setting counts.
    command.args(extra_settings(conf, name, handle));
    Running::start(&mut command)
}

/// The first of the names for a guest's stub that no domain has, and the lock that keeps it free. Mostly there is one stub, so
/// that the logs that xl and xenconsoled keep for each name do not pile up; a guest that migrates within the host has two.
fn free_name(host: &Host, guest: &str) -> Result<(String, ByteLock), Error> {
    for nr in 1..=NR_NAMES {
        let name = stub_name(guest, nr);
        let [low, high, ..] = hash(&name).to_le_bytes();
        let Some(lock) = ByteLock::take_now(Kind::Name, u16::from_le_bytes([low, high]))? else { continue };
        if host.domid_of(&name)?.is_none() {
            return Ok((name, lock));
        }
    }
    Err(PairError::NoName(stub_name(guest, NR_NAMES)).into())
}

/// A name of a guest's stub. The guest's own came with its stream and becomes part of an xl config and of the names of logs:
/// what could end a string or a line is made plain, and what is too long for a file's name is cut and made unique.
fn stub_name(guest: &str, nr: u32) -> String {
    let guest = settled_name(guest);
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let mut name: String = guest.chars().map(plain).collect();
    if name.len() > MAX_NAME_BYTES {
        name.truncate(MAX_NAME_BYTES);
        name += &format!("-{:08x}", hash(guest));
    }
    format!("{name}-stubdom-{nr}")
}

/// FNV-1a: the same in every build, and nothing depends on its being hard to find a pair.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// What the stub's config cannot know.
fn extra_settings(conf: &Conf, name: &str, handle: [u8; 16]) -> Vec<String> {
    let memory = conf.memory_mib.map(|mib| format!("memory={mib}"));
    let vif = match conf.transport {
        // Without a vif xl runs no hotplug script.
        Transport::Ring => "vif=[]".to_owned(),
        Transport::Tcp => format!("vif=[\"bridge={}\"]", conf.bridge),
    };
    let settings = [format!("name=\"{name}\""), format!("uuid=\"{}\"", uuid(handle)), vif];
    settings.into_iter().chain(memory).collect()
}

/// A handle as xl reads it.
fn uuid(handle: [u8; 16]) -> String {
    let hex: String = handle.iter().map(|byte| format!("{byte:02x}")).collect();
    let (parts, _) = [8, 4, 4, 4, 12].iter().fold((Vec::new(), hex.as_str()), |(mut parts, rest), len| {
        let (part, rest) = rest.split_at(*len);
        parts.push(part);
        (parts, rest)
    });
    parts.join("-")
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The line that names the cause: the first that speaks of a failure. What stands before it are remarks (`got a tsc mode
/// string`), what stands behind it follows from it (`Unable to destroy guest`).
fn cause(said: &Untrusted<String>) -> Untrusted<String> {
    let is_failure = |line: &&str| {
        let line = line.to_ascii_lowercase();
        ["error", "fail", "cannot", "can't", "unable", "not found"].iter().any(|word| line.contains(word))
    };
    let mut lines = said.raw().lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.clone().find(is_failure).or(lines.next_back());
    Untrusted::new(line.unwrap_or("it does not say why").to_owned())
}

/// Runs an xl command to its end, whoever wants us to stop: it clears something away. One that takes longer than
/// [`COMMAND`] goes on by itself.
pub(crate) fn xl(arguments: &[&str]) -> Result<(), Untrusted<String>> {
    let unable = |error: io::Error| Untrusted::new(format!("cannot run xl: {error}"));
    let mut running = Running::start(Command::new(program::xl()).args(arguments)).map_err(unable)?;
    let nobody = Interrupt::deaf();
    let ended = Wait::new(&nobody, COMMAND, LOOK).until(|| Ok::<_, Error>(running.ended()?));
    match ended.map_err(|error| Untrusted::new(error.to_string()))? {
        Some(status) if status.success() => Ok(()),
        Some(_) => Err(cause(&running.words())),
        None => Err(Untrusted::new(format!("xl is not done after {} s, and goes on", COMMAND.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLE: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255];

    #[test]
    fn the_extra_settings_are_xl_config_lines() {
        let conf = Conf { memory_mib: Some(24), transport: Transport::Ring, ..Conf::default() };
        let uuid = "uuid=\"00010203-0405-0607-0809-0a0b0c0d0eff\"";
        let expected = ["name=\"db-stubdom-7\"", uuid, "vif=[]", "memory=24"];
        assert_eq!(extra_settings(&conf, "db-stubdom-7", HANDLE), expected);
        let conf = Conf { memory_mib: None, transport: Transport::Tcp, ..conf };
        assert_eq!(extra_settings(&conf, "x", HANDLE), ["name=\"x\"", uuid, "vif=[\"bridge=xenstub0\"]"]);
    }

    #[test]
    fn a_guests_name_adds_no_setting_to_the_stubs_config() {
        let name = |guest| stub_name(guest, 7);
        assert_eq!(name("db_1.old-x--incoming"), "db_1.old-x-stubdom-7");
        assert_eq!(name("a\"\nkernel=\"/tmp/x"), "a__kernel___tmp_x-stubdom-7");
        assert_eq!(name("tä'\\;#[]\0"), "t________-stubdom-7");
        let settings = extra_settings(&Conf::default(), &name("x\"]\nvif=["), HANDLE);
        assert_eq!(settings[0], "name=\"x___vif__-stubdom-7\"");
    }

    #[test]
    fn a_stub_must_fit_beside_a_guest_that_fits() {
        assert!(has_room(145, 17, 128));
        assert!(!has_room(144, 17, 128), "the guest fits without a stub");
        assert!(has_room(144, 17, 400 << 10), "what the guest may own says little then");
        assert!(!has_room(16, 17, 400 << 10));
    }

    #[test]
    fn a_long_name_is_cut_and_stays_the_guests_own() {
        let long = "x".repeat(251);
        let (a, b) = (stub_name(&format!("{long}a"), 1), stub_name(&format!("{long}b"), 1));
        assert_ne!(a, b);
        // The longest names of files that are made of it, of 255 bytes at most.
        assert!(format!("xl-{a}.log.10").len() <= 255 && format!("guest-{a}.log").len() <= 255);
        assert_eq!(stub_name(&"x".repeat(128), 1), format!("{}-stubdom-1", "x".repeat(128)));
    }

    #[test]
    fn the_cause_stands_between_remarks_and_consequences() {
        let said =
            "\ngot a tsc mode string: \"native\"\n  xc: error: no memory\nlibxl: error: Unable to destroy\n";
        let cause = |said: &str| cause(&Untrusted::new(said.to_owned())).raw().to_owned();
        assert_eq!(cause(said), "xc: error: no memory");
        assert_eq!(cause("Parsing config\nout of luck\n"), "out of luck");
        assert_eq!(cause(""), "it does not say why");
    }
}
