//! stubctl as libxl's save helper: which requests are ours, and what libxl hears in the end.
//!
//! **Takes** the command line of `libxl_save_callout.c`. **Gives** the packaged helper everything that is not the
//! plain restore of an HVM or PVH guest with a stub. **Never** fails without one line that says why.

use crate::conf::{Conf, DIRECTORY};
use crate::error::{Error, Usage};
use crate::ffi::sys;
use crate::ffi::xenctrl::DomainInfo;
use crate::host::Host;
use crate::interrupt::Interrupt;
use crate::libxl::{self, Libxl};
use crate::pair::PairError;
use crate::{packaged, pair, restore};
use control::Untrusted;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use xen_abi::types::Domid;

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
        match rest.next() {
            None => Ok(parsed),
            Some(extra) => {
                Err(Usage { expected: "nothing more", got: Some(extra.to_string_lossy().into_owned()) })
            }
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

/// Runs as the save helper. Its protocol reports failures, so that the exit code is 0 whenever libxl got its answer.
pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    if arguments.first().is_some_and(|mode| mode == "--save-domain") {
        return passed_on_in_vain(&packaged::exec(arguments).into());
    }
    libxl::install_log();
    let parsed = match RestoreArguments::parse(arguments.get(1..).unwrap_or_default()) {
        Ok(parsed) => parsed,
        Err(usage) => return refuse(&usage.into(), None),
    };
    match served(parsed) {
        Ok(Some(request)) => finish(&request),
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

/// Decides whether a stub serves this restore; `None`: the packaged helper does.
fn served(arguments: RestoreArguments) -> Result<Option<Request>, Error> {
    if arguments.stream_type != XC_STREAM_PLAIN || !Path::new(DIRECTORY).is_dir() {
        return Ok(None);
    }
    let host = Host::open(Interrupt::of_helper()?)?;
    let target = arguments.target;
    let no_guest = || PairError::NoGuest(target.to_string());
    let info = host.xen.domain_info(target)?.ok_or_else(no_guest)?;
    let guest = host.name_of(target)?.ok_or_else(no_guest)?;
    let conf = Conf::find(Path::new(DIRECTORY), guest.raw())?.filter(|conf| conf.enabled && info.hvm);
    let libxl = Libxl::new(arguments.cbflags);
    Ok(conf.map(|conf| Request { host, arguments, conf, guest, info, libxl }))
}

/// Restores and tells libxl how it went.
fn finish(request: &Request) -> ExitCode {
    let result = adopt(request).and_then(|stream| restore::run(request, stream));
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

/// Takes the descriptors over, so that no child inherits them.
fn adopt(request: &Request) -> Result<OwnedFd, Error> {
    let arguments = &request.arguments;
    if arguments.send_back_fd >= 0 {
        // The plain stream has no back channel; the packaged helper does not use it either.
        drop(sys::inherit(arguments.send_back_fd)?);
    }
    Ok(sys::inherit(arguments.io_fd)?)
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
    fn only_libxls_modes_are_helper_calls() {
        assert!(is_helper_call(&line("--restore-domain 7")));
        assert!(is_helper_call(&line("--save-domain 7")));
        assert!(!is_helper_call(&line("status")));
        assert!(!is_helper_call(&[]));
    }
}
