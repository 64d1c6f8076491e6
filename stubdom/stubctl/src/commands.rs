//! What an operator asks for: attach, detach, and the way to a guest's stub.

use crate::cli::{Cli, Command};
use crate::conf::{Conf, DIRECTORY};
use crate::control_channel::ControlChannel;
use crate::error::Error;
use crate::ffi::sys;
use crate::host::{Host, home};
use crate::interrupt::Interrupt;
use crate::pair::{self, PairError, Paired};
use crate::wait::Wait;
use crate::{offline, pages, send, standstill, status, survey, watch};
use clap::Parser;
use control::{ToStub, Untrusted};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use xen_abi::types::Domid;

/// How long a stub may take to shut down before it is destroyed.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// Runs one command.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format_target(false)
        .format_timestamp(None)
        .init();
    match run(&cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("stubctl: {error}");
            error.exit_code()
        }
    }
}

fn run(command: &Command) -> Result<ExitCode, Error> {
    if matches!(command, Command::Status(_) | Command::Map(_) | Command::Locate { .. } | Command::Pages(_)) {
        sys::end_with_reader();
    }
    let interrupt = match command {
        // The watch that it works for is its parent.
        Command::Retire => Interrupt::of_helper()?,
        _ => Interrupt::new()?,
    };
    let host = Host::open(interrupt)?;
    match command {
        Command::Status(arguments) => status::run(&host, arguments),
        Command::Attach { guest } => attach(&host, guest),
        Command::Detach { guest } => detach(&host, guest),
        Command::Map(arguments) => survey::run(&host, arguments),
        Command::Locate { guest, gfns } => survey::locate(&host, guest, gfns),
        Command::Offline(arguments) => return offline::run(&host, arguments),
        Command::Pages(arguments) => pages::run(&host, arguments),
        Command::Watch(arguments) => watch::run(&host, arguments),
        Command::Retire => watch::worker::run(&host),
        Command::GuardSend { domid, libxl } => send::guard(&host, Domid::new(*domid), *libxl),
        Command::Guard { domid, parent } => standstill::rescue::guard(&host, Domid::new(*domid), *parent),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// A running guest that a command names.
pub(crate) struct Guest {
    /// Its domain.
    pub(crate) domid: Domid,
    /// Its name.
    pub(crate) name: Untrusted<String>,
}

impl Guest {
    /// Looks a guest up by what an operator calls it.
    pub(crate) fn find(host: &Host, wanted: &str) -> Result<Self, Error> {
        let no_guest = || PairError::NoGuest(wanted.to_owned());
        let domid = match Wanted::parse(wanted) {
            Wanted::Number(domid) => domid.ok_or_else(no_guest)?,
            Wanted::Name(name) => host.domid_of(name)?.ok_or_else(no_guest)?,
        };
        let info = host.xen.domain_info(domid)?.ok_or_else(no_guest)?;
        if !info.hvm {
            return Err(PairError::NotHvm(domid).into());
        }
        Ok(Self { domid, name: host.name_or_number(domid)? })
    }

    /// Its configuration; an operator who asks for a stub by name needs no file.
    pub(crate) fn conf(&self) -> Result<Conf, Error> {
        Ok(Conf::find(Path::new(DIRECTORY), self.name.raw())?.unwrap_or_default())
    }
}

/// What an operator calls a guest.
#[derive(Debug, PartialEq, Eq)]
enum Wanted<'a> {
    /// A number; `None`: no domain can have it.
    Number(Option<Domid>),
    Name(&'a str),
}

impl<'a> Wanted<'a> {
    /// Digits are a number, whatever guests are called, as to xl (`libxl_domain_qualifier_to_domid`): a guest's name may come
    /// with its stream, and must not stand for another guest's number. Behind `name:` all is a name.
    fn parse(wanted: &'a str) -> Self {
        if let Some(name) = wanted.strip_prefix("name:") {
            return Self::Name(name);
        }
        let is_number = !wanted.is_empty() && wanted.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { Self::Number(wanted.parse().ok().map(Domid::new)) } else { Self::Name(wanted) }
    }
}

fn attach(host: &Host, wanted: &str) -> Result<(), Error> {
    let guest = Guest::find(host, wanted)?;
    let conf = guest.conf()?;
    let stub = match pair::find_or_start(host, &conf, guest.name.raw(), guest.domid)? {
        Paired::Made(stub) => stub,
        Paired::Found(stub) => {
            println!("{} ({}) has the stub {stub} already", guest.name, guest.domid);
            return Ok(());
        }
    };
    stub.greet(&conf)?;
    println!("{} ({}) has the stub {} now", guest.name, guest.domid, stub.domid);
    stub.keep();
    Ok(())
}

fn detach(host: &Host, wanted: &str) -> Result<(), Error> {
    let guest = Guest::find(host, wanted)?;
    let no_stub = || PairError::NoStub(guest.name.clone());
    let stub = pair::find(host, guest.domid)?.ok_or_else(no_stub)?;
    let conf = guest.conf()?;
    match shut_down(host, &conf, stub) {
        Ok(true) => pair::unlink(host, guest.domid),
        Ok(false) => pair::destroy(host, stub, guest.domid),
        Err(error) => {
            log::warn!("the stub {stub} does not shut down ({error}): destroying it");
            pair::destroy(host, stub, guest.domid);
        }
    }
    println!("{} ({}) has no stub any more", guest.name, guest.domid);
    Ok(())
}

/// Asks a stub to end and waits for xl, which watches over it, to clear it away; tells whether that has happened.
fn shut_down(host: &Host, conf: &Conf, stub: Domid) -> Result<bool, Error> {
    let (mut channel, _) = ControlChannel::open(host, stub, conf.stall_timeout, conf.stall_timeout)?;
    channel.send(&ToStub::Shutdown)?;
    let is_gone = || Ok::<_, Error>(host.store.read(&home(stub, "domid"))?.is_none().then_some(()));
    let gone = Wait::new(&host.interrupt, SHUTDOWN, LOOK).until(is_gone)?;
    Ok(gone.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_a_number_and_a_guest_of_such_a_name_is_reached_all_the_same() {
        assert_eq!(Wanted::parse("7"), Wanted::Number(Some(Domid::new(7))));
        assert_eq!(Wanted::parse("70000"), Wanted::Number(None));
        assert_eq!(Wanted::parse("name:7"), Wanted::Name("7"));
        assert_eq!(Wanted::parse("name:name:7"), Wanted::Name("name:7"));
        for name in ["db", "7b", "-7", "+7", "0x7", "\u{667}", ""] {
            assert_eq!(Wanted::parse(name), Wanted::Name(name));
        }
    }
}
