//! stubctl as libxl's save helper: which requests are ours, and what libxl hears in the end.
//!
//! **Takes** the command line of `libxl_save_callout.c`. **Gives** the packaged helper everything that is not the
//! plain restore or save of an HVM or PVH guest with a stub, and every save that no stub can begin. **Never** fails
//! without one line that says why.

use crate::conf::{Conf, DIRECTORY, Recourse};
use crate::error::{Error, Usage};
use crate::ffi::sys;
use crate::ffi::xenctrl::DomainInfo;
use crate::host::Host;
use crate::interrupt::Interrupt;
use crate::libxl::{self, Libxl};
use crate::pair::PairError;
use crate::report::Account;
use crate::send::{self, Failure};
use crate::{packaged, pair, restore};
use control::Untrusted;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use xen_abi::types::{Domid, Gfn};

/// `XC_STREAM_PLAIN` (`xenguest.h`); the others are Remus and COLO, whose checkpoints the stub refuses.
const XC_STREAM_PLAIN: u32 = 0;

/// The arguments of `--restore-domain`, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RestoreArguments {
    /// The stream.
    pub(crate) io_fd: i32,
    /// Back to the source; -1 when there is none.
    pub(crate) send_back_fd: i32,
    /// The target.
    pub(crate) target: Domid,
    /// The target's event channel for xenstore.
    pub(crate) store_port: u32,
    /// Who serves xenstore.
    pub(crate) store_domid: Domid,
    /// The target's event channel for its console.
    pub(crate) console_port: u32,
    /// Who serves the console.
    pub(crate) console_domid: Domid,
    /// Which callbacks libxl has.
    pub(crate) cbflags: u32,
    /// `xc_stream_type_t`.
    pub(crate) stream_type: u32,
}

impl RestoreArguments {
    fn parse(arguments: &[OsString]) -> Result<Self, Usage> {
        let mut rest = arguments.iter();
        let parsed = Self {
            io_fd: number(rest.next(), "io_fd")?,
            send_back_fd: number(rest.next(), "send_back_fd")?,
            target: Domid::new(number(rest.next(), "domid")?),
            store_port: number(rest.next(), "store_port")?,
            store_domid: Domid::new(number(rest.next(), "store_domid")?),
            console_port: number(rest.next(), "console_port")?,
            console_domid: Domid::new(number(rest.next(), "console_domid")?),
            cbflags: number(rest.next(), "cbflags")?,
            stream_type: number(rest.next(), "stream_type")?,
        };
        nothing_more(rest.next()).map(|()| parsed)
    }
}

/// The arguments of `--save-domain`, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SaveArguments {
    /// Where the stream goes.
    io_fd: i32,
    /// The guest.
    pub(crate) guest: Domid,
    /// `XCFLAGS_*`.
    flags: u32,
    /// Which callbacks libxl has.
    cbflags: u32,
    /// `xc_stream_type_t`.
    stream_type: u32,
}

/// `XCFLAGS_LIVE` (`xenguest.h`): the guest runs while its memory is read.
const XCFLAGS_LIVE: u32 = 1 << 0;
/// `XCFLAGS_DEBUG`: all pages come again at the end, for the receiver to compare.
const XCFLAGS_DEBUG: u32 = 1 << 1;

impl SaveArguments {
    fn parse(arguments: &[OsString]) -> Result<Self, Usage> {
        let mut rest = arguments.iter();
        let io_fd = number(rest.next(), "io_fd")?;
        // The way back of Remus and COLO; of a plain save it is some descriptor of xl's.
        let _recv_fd: i32 = number(rest.next(), "recv_fd")?;
        let parsed = Self {
            io_fd,
            guest: Domid::new(number(rest.next(), "domid")?),
            flags: number(rest.next(), "flags")?,
            cbflags: number(rest.next(), "cbflags")?,
            stream_type: number(rest.next(), "stream_type")?,
        };
        nothing_more(rest.next()).map(|()| parsed)
    }

    /// Where the stream goes, kept from children. Nobody reads it by number any more but the packaged helper in our place, so
    /// the descriptor itself stays as it is.
    pub(crate) fn stream(&self) -> io::Result<OwnedFd> {
        sys::duplicate(self.io_fd)
    }

    /// Whether the guest runs while its memory is read.
    pub(crate) fn is_live(&self) -> bool {
        self.flags & XCFLAGS_LIVE != 0
    }

    /// Whether the receiver is to compare.
    pub(crate) fn is_debug(&self) -> bool {
        self.flags & XCFLAGS_DEBUG != 0
    }

    /// Whether it is one of those that a stub can do.
    fn is_plain(&self) -> bool {
        self.stream_type == XC_STREAM_PLAIN && self.flags & !(XCFLAGS_LIVE | XCFLAGS_DEBUG) == 0
    }
}

fn nothing_more(argument: Option<&OsString>) -> Result<(), Usage> {
    match argument {
        None => Ok(()),
        Some(extra) => {
            Err(Usage { expected: "nothing more", got: Some(extra.to_string_lossy().into_owned()) })
        }
    }
}

fn number<T: FromStr>(argument: Option<&OsString>, expected: &'static str) -> Result<T, Usage> {
    let parsed = argument.and_then(|argument| argument.to_str()?.parse().ok());
    parsed.ok_or_else(|| Usage { expected, got: argument.map(|got| got.to_string_lossy().into_owned()) })
}

/// Whether a command line is libxl's.
pub(crate) fn is_helper_call(arguments: &[OsString]) -> bool {
    arguments.first().is_some_and(|mode| mode == "--restore-domain" || mode == "--save-domain")
}

/// Who restores a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Course {
    /// A stub.
    Stub,
    /// The packaged helper; with a reason that is worth a warning, since whoever sends a guest can bring it about.
    Packaged(Option<Exempt>),
    /// Nobody.
    Refused(Exempt),
}

/// Why no stub serves a restore. All of it comes with the stream, from whoever sends the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exempt {
    /// The stream has checkpoints.
    Checkpointed,
    /// The guest is a PV guest.
    Pv,
    /// The guest has a name for which this file says so.
    Disabled(PathBuf),
}

impl fmt::Display for Exempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpointed => write!(f, "its stream has checkpoints (Remus, COLO)"),
            Self::Pv => write!(f, "it is a PV guest"),
            Self::Disabled(file) => write!(f, "enabled = false in {}", file.display()),
        }
    }
}

/// A restore that `otherwise = "refuse"` forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forbidden(Exempt);

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(why) = self;
        write!(
            f,
            "no stub serves this restore ({why}), and {DIRECTORY}/default.conf says otherwise = \"refuse\": say otherwise = \
             \"packaged\" there if you trust who sends the guest"
        )
    }
}

impl std::error::Error for Forbidden {}

impl Course {
    /// Decides by the guest's configuration, the kind of its stream and of the guest.
    fn of(conf: Option<&Conf>, stream_type: u32, is_hvm: bool) -> Self {
        let Some(conf) = conf else { return Self::Packaged(None) };
        let exempt = match &conf.disabled_in {
            _ if stream_type != XC_STREAM_PLAIN => Exempt::Checkpointed,
            _ if !is_hvm => Exempt::Pv,
            Some(file) => Exempt::Disabled(file.clone()),
            None => return Self::Stub,
        };
        match conf.otherwise {
            Recourse::Refuse => Self::Refused(exempt),
            Recourse::Packaged => Self::Packaged(Some(exempt).filter(|_| !conf.is_disabled_for_all())),
        }
    }
}

/// Runs as the save helper. Its protocol reports failures, so that the exit code is 0 whenever libxl got its answer.
pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    libxl::install_log();
    if arguments.first().is_some_and(|mode| mode == "--save-domain") {
        return save(arguments);
    }
    let parsed = match RestoreArguments::parse(arguments.get(1..).unwrap_or_default()) {
        Ok(parsed) => parsed,
        Err(usage) => return refuse(&usage.into(), None),
    };
    match served(parsed) {
        Ok(Some(request)) => finish(&request, arguments),
        Ok(None) => passed_on_in_vain(&packaged::exec(arguments).into()),
        Err(error) => refuse(&error, Some(parsed.target)),
    }
}

/// A restore that a stub is to serve.
pub(crate) struct Request {
    /// Dom0.
    pub(crate) host: Host,
    /// What libxl said.
    pub(crate) arguments: RestoreArguments,
    /// The guest's configuration.
    pub(crate) conf: Conf,
    /// The guest's name in xenstore.
    pub(crate) guest: Untrusted<String>,
    /// The target's state at the start.
    pub(crate) info: DomainInfo,
    /// The other end.
    pub(crate) libxl: Libxl,
}

/// Opens dom0's handles; `None` on a Xen that this program is not made for, whose guests the packaged helper serves.
fn open_host() -> Result<Option<Host>, Error> {
    match Host::open(Interrupt::of_helper()?) {
        Err(Error::Interface(unknown)) => {
            log::warn!("{unknown}: the packaged helper serves this guest");
            Ok(None)
        }
        host => host.map(Some),
    }
}

/// Decides whether a stub serves this restore; `None`: the packaged helper does.
fn served(arguments: RestoreArguments) -> Result<Option<Request>, Error> {
    if !Path::new(DIRECTORY).is_dir() {
        return Ok(None);
    }
    let Some(host) = open_host()? else { return Ok(None) };
    let target = arguments.target;
    let no_guest = || PairError::NoGuest(target.to_string());
    let info = host.xen.domain_info(target)?.ok_or_else(no_guest)?;
    let guest = host.name_of(target)?.ok_or_else(no_guest)?;
    let conf = Conf::find(Path::new(DIRECTORY), guest.raw())?;
    match Course::of(conf.as_ref(), arguments.stream_type, info.hvm) {
        Course::Stub => {
            let libxl = Libxl::new(arguments.cbflags);
            Ok(conf.map(|conf| Request { host, arguments, conf, guest, info, libxl }))
        }
        Course::Packaged(why) => {
            if let Some(why) = why {
                log::warn!("{guest}: the packaged helper restores it, in dom0: {why}");
            }
            Ok(None)
        }
        Course::Refused(why) => Err(Forbidden(why).into()),
    }
}

/// A save that a stub is to serve.
pub(crate) struct SaveRequest {
    /// Dom0.
    pub(crate) host: Host,
    /// What libxl said.
    pub(crate) arguments: SaveArguments,
    /// The guest's configuration.
    pub(crate) conf: Conf,
    /// The guest's name in xenstore.
    pub(crate) guest: Untrusted<String>,
    /// The guest's state at the start.
    pub(crate) info: DomainInfo,
    /// The other end.
    pub(crate) libxl: Libxl,
}

/// Sends the guest through its stub, or becomes the packaged helper: always, when the stub cannot even begin.
fn save(arguments: &[OsString]) -> ExitCode {
    let request = SaveArguments::parse(arguments.get(1..).unwrap_or_default());
    let request = request.map_err(Error::from).and_then(served_save);
    let told = match request {
        Ok(Some(request)) => match send::run(&request) {
            Ok(()) => request.libxl.saved(),
            Err(Failure::Broken(error)) => not_saved(&request, &error),
            Err(Failure::Untouched(error)) => return save_without_stub(arguments, &error),
        },
        Ok(None) => return passed_on_in_vain(&packaged::exec(arguments).into()),
        Err(error) => return save_without_stub(arguments, &error),
    };
    if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Reports a save that broke off. libxl resumes the guest; when it is gone, nobody else does.
fn not_saved(request: &SaveRequest, error: &Error) -> io::Result<()> {
    log::error!("{error}");
    let told = request.libxl.not_saved(error.errno());
    if (told.is_err() || error.is_parent_gone())
        && let Err(error) = send::resume(&request.host, request.arguments.guest)
    {
        log::error!("{}: {error}: see that it runs", request.guest);
    }
    told
}

fn save_without_stub(arguments: &[OsString], error: &Error) -> ExitCode {
    log::warn!("the guest is saved without its stub: {error}");
    passed_on_in_vain(&packaged::exec(arguments).into())
}

/// Decides whether a stub serves this save; `None`: the packaged helper does.
fn served_save(arguments: SaveArguments) -> Result<Option<SaveRequest>, Error> {
    if !arguments.is_plain() || !Path::new(DIRECTORY).is_dir() {
        return Ok(None);
    }
    let Some(host) = open_host()? else { return Ok(None) };
    let domid = arguments.guest;
    let no_guest = || PairError::NoGuest(domid.to_string());
    let info = host.xen.domain_info(domid)?.ok_or_else(no_guest)?;
    let guest = host.name_of(domid)?.ok_or_else(no_guest)?;
    let conf = Conf::find(Path::new(DIRECTORY), guest.raw())?;
    let Some(conf) = conf.filter(|conf| conf.disabled_in.is_none() && conf.send.enabled && info.hvm) else {
        return Ok(None);
    };
    // To look at a page that is populated on demand is to populate it.
    if host.xen.nr_populated_on_demand(domid)? > 0 {
        return Ok(None);
    }
    let libxl = Libxl::new(arguments.cbflags);
    Ok(Some(SaveRequest { host, arguments, conf, guest, info, libxl }))
}

/// Restores and tells libxl how it went.
fn finish(request: &Request, arguments: &[OsString]) -> ExitCode {
    let descriptors = match Descriptors::adopt(&request.arguments) {
        Ok(descriptors) => descriptors,
        Err(error) => return refuse(&error, Some(request.arguments.target)),
    };
    let mut account = Account::start(&request.guest);
    match restore::prepare(request, &mut account) {
        Ok(ready) => conclude(request, restore::run(request, ready, descriptors.stream, &mut account)),
        Err(error) if falls_back(request.conf.fallback, &error) => {
            fall_back(request, arguments, descriptors, &mut account, &error)
        }
        Err(error) => {
            account.failed(&error);
            conclude(request, Err(error))
        }
    }
}

/// Whether the packaged helper is to restore a guest whose stub is not to be had for this reason.
fn falls_back(fallback: Recourse, error: &Error) -> bool {
    fallback == Recourse::Packaged && !error.is_stop()
}

/// Has the packaged helper restore a guest: nothing of its stream has been read.
fn fall_back(
    request: &Request,
    arguments: &[OsString],
    descriptors: Descriptors,
    account: &mut Account,
    error: &Error,
) -> ExitCode {
    log::warn!(
        "{}: no stub is to be had, so the packaged helper restores it, in dom0 and without superpages (fallback = \"refuse\" \
         forbids that): {error}",
        request.guest
    );
    account.passed_on(error);
    match descriptors.hand_on() {
        Ok(()) => passed_on_in_vain(&packaged::exec(arguments).into()),
        Err(error) => refuse(&error.into(), Some(request.arguments.target)),
    }
}

/// Tells libxl how the restore went.
fn conclude(request: &Request, result: Result<(Gfn, Gfn), Error>) -> ExitCode {
    let told = match &result {
        Ok((store, console)) => request.libxl.restored(*store, *console),
        Err(error) => {
            log::error!("{error}");
            request.libxl.failed(error.errno())
        }
    };
    if is_orphaned(result.as_ref().err(), &told) {
        destroy(request.arguments.target);
    }
    if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What libxl handed over, kept from children.
struct Descriptors {
    stream: OwnedFd,
    /// The plain stream has no back channel; the packaged helper gets it as it was.
    send_back: Option<OwnedFd>,
}

impl Descriptors {
    fn adopt(arguments: &RestoreArguments) -> Result<Self, Error> {
        let stream = sys::inherit(arguments.io_fd)?;
        let send_back = (arguments.send_back_fd >= 0).then(|| sys::inherit(arguments.send_back_fd));
        Ok(Self { stream, send_back: send_back.transpose()? })
    }

    /// Leaves them open, under their numbers, for the program that this process becomes.
    fn hand_on(self) -> io::Result<()> {
        [Some(self.stream), self.send_back].into_iter().flatten().try_for_each(sys::bequeath)
    }
}

/// Whether nobody is left to complete or destroy the target: libxl has gone, or has not heard how the restore went. (The
/// stream of a libxl that goes may end before anything else shows it; then the failure is the stream's.)
fn is_orphaned(failure: Option<&Error>, told: &io::Result<()>) -> bool {
    told.is_err() || failure.is_some_and(Error::is_parent_gone)
}

/// libxl destroys a target that it could not restore; when it is gone, nobody else does.
fn destroy(target: Domid) {
    // Nobody is left to read a message.
    let _ = pair::xl(&["destroy", &target.raw().to_string()]);
}

/// The restore cannot even begin: the same protocol says so.
fn refuse(error: &Error, target: Option<Domid>) -> ExitCode {
    log::error!("{error}");
    let told = Libxl::new(0).failed(error.errno());
    if let Some(target) = target
        && is_orphaned(Some(error), &told)
    {
        destroy(target);
    }
    if told.is_ok() { ExitCode::SUCCESS } else { error.exit_code() }
}

/// The packaged helper did not start; standard error is the one place left for both modes.
fn passed_on_in_vain(error: &Error) -> ExitCode {
    eprintln!("stubctl: {error}");
    error.exit_code()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::Framing;
    use crate::interrupt::Stop;
    use crate::relay::RelayError;

    fn line(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn libxls_restore_line_is_understood() {
        let parsed = RestoreArguments::parse(&line("7 -1 12 3 0 4 0 256 0")).unwrap();
        let expected = RestoreArguments {
            io_fd: 7,
            send_back_fd: -1,
            target: Domid::new(12),
            store_port: 3,
            store_domid: Domid::DOM0,
            console_port: 4,
            console_domid: Domid::DOM0,
            cbflags: 256,
            stream_type: 0,
        };
        assert_eq!(parsed, expected);
    }

    #[test]
    fn a_wrong_line_names_the_argument() {
        let error = |text| RestoreArguments::parse(&line(text)).unwrap_err();
        assert_eq!(error("7 -1 twelve 3 0 4 0 256 0").expected, "domid");
        assert_eq!(error("7 -1 12 3 0 4 0 256"), Usage { expected: "stream_type", got: None });
        assert_eq!(error("7 -1 12 3 0 4 0 256 0 9").expected, "nothing more");
        assert_eq!(error("7 -1 70000 3 0 4 0 256 0").expected, "domid");
    }

    #[test]
    fn a_target_is_orphaned_whenever_libxl_did_not_hear_the_result() {
        let gone = || Err(io::ErrorKind::BrokenPipe.into());
        let early = Error::Relay(RelayError::Ended(Framing::new().place()));
        assert!(is_orphaned(Some(&early), &gone()), "the stream ended with libxl");
        assert!(is_orphaned(None, &gone()), "complete, and nobody to let it run");
        assert!(is_orphaned(Some(&Error::Stop(Stop::ParentGone)), &Ok(())));
        assert!(!is_orphaned(Some(&early), &Ok(())));
        assert!(!is_orphaned(Some(&Error::Stop(Stop::Signal)), &Ok(())), "libxl aborts and cleans up itself");
        assert!(!is_orphaned(None, &Ok(())));
    }

    #[test]
    fn a_sender_cannot_choose_its_way_around_the_stub_unseen() {
        let (plain, remus) = (XC_STREAM_PLAIN, XC_STREAM_PLAIN + 1);
        let open = Conf::default();
        let exempt = Conf { disabled_in: Some("/x/db.conf".into()), ..Conf::default() };
        let off = Conf { disabled_in: Some("/x/default.conf".into()), ..Conf::default() };
        let course = |conf: &Conf, stream_type, is_hvm| Course::of(Some(conf), stream_type, is_hvm);
        let by_file = |conf: &Conf| Exempt::Disabled(conf.disabled_in.clone().unwrap());
        assert_eq!(course(&open, plain, true), Course::Stub);
        assert_eq!(course(&open, plain, false), Course::Packaged(Some(Exempt::Pv)));
        assert_eq!(course(&open, remus, true), Course::Packaged(Some(Exempt::Checkpointed)));
        assert_eq!(course(&exempt, plain, true), Course::Packaged(Some(by_file(&exempt))));
        assert_eq!(course(&off, plain, true), Course::Packaged(None), "the host's choice, for every guest");
        assert_eq!(Course::of(None, plain, true), Course::Packaged(None), "not configured");
        for (conf, stream_type, is_hvm, why) in [
            (&open, plain, false, Exempt::Pv),
            (&open, remus, true, Exempt::Checkpointed),
            (&exempt, plain, true, by_file(&exempt)),
            (&off, plain, true, by_file(&off)),
        ] {
            let strict = Conf { otherwise: Recourse::Refuse, ..conf.clone() };
            assert_eq!(course(&strict, stream_type, is_hvm), Course::Refused(why));
        }
        let strict = Conf { otherwise: Recourse::Refuse, ..open };
        assert_eq!(course(&strict, plain, true), Course::Stub);
    }

    #[test]
    fn whoever_wants_an_end_gets_no_packaged_helper() {
        let error = Error::Pair(PairError::Vanished("db".to_owned()));
        assert!(falls_back(Recourse::Packaged, &error));
        assert!(!falls_back(Recourse::Refuse, &error));
        assert!(!falls_back(Recourse::Packaged, &Error::Stop(Stop::Signal)));
    }

    #[test]
    fn libxls_save_line_is_understood() {
        let parsed = SaveArguments::parse(&line("8 0 7 3 136 0")).unwrap();
        assert_eq!(
            parsed,
            SaveArguments { io_fd: 8, guest: Domid::new(7), flags: 3, cbflags: 136, stream_type: 0 }
        );
        assert!(parsed.is_live() && parsed.is_debug() && parsed.is_plain());
        let save = SaveArguments { flags: 0, ..parsed };
        assert!(!save.is_live() && !save.is_debug());
        assert!(!SaveArguments { stream_type: 1, ..parsed }.is_plain(), "Remus");
        assert!(!SaveArguments { flags: 4, ..parsed }.is_plain(), "a flag that is not known yet");
        assert_eq!(SaveArguments::parse(&line("8 0 7 3 136")).unwrap_err().expected, "stream_type");
    }

    #[test]
    fn only_libxls_modes_are_helper_calls() {
        assert!(is_helper_call(&line("--restore-domain 7")));
        assert!(is_helper_call(&line("--save-domain 7")));
        assert!(!is_helper_call(&line("status")));
        assert!(!is_helper_call(&[]));
    }
}
