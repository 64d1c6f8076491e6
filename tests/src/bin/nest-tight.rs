//! Runs in dom0 as libxl's save helper: takes a new domain's slack from it, then becomes stubctl.
//!
//! libxl allows a domain a MiB more than it is configured with. `NEST_MAX_PAGES` says how many pages the domain may own
//! instead: as many as the stream holds, so that nothing is left to speculate with.

use e2e::xenctrl::Xenctrl;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The helper's word for a restore, and the place of the domain's number behind it (`libxl_save_callout.c`).
const RESTORE: &str = "--restore-domain";
const DOMID_AT: usize = 3;

const PAGE_KIB: u64 = 4;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let error = match tighten(&words) {
        Ok(()) => Command::new("/usr/sbin/stubctl").args(&words).exec(),
        Err(error) => error,
    };
    eprintln!("nest-tight: {error}");
    ExitCode::FAILURE
}

fn tighten(words: &[OsString]) -> io::Result<()> {
    if words.first().is_none_or(|word| word != RESTORE) {
        return Ok(());
    }
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
    let domid = number(words.get(DOMID_AT).and_then(|word| word.to_str()));
    let domid = domid.and_then(|domid| u32::try_from(domid).ok());
    let domid = domid.ok_or_else(|| io::Error::other(format!("no domain's number in {words:?}")))?;
    let max_pages = number(std::env::var("NEST_MAX_PAGES").ok().as_deref());
    let max_pages = max_pages.ok_or_else(|| io::Error::other("NEST_MAX_PAGES is not set"))?;
    Xenctrl::open()?.set_max_kib(domid, max_pages * PAGE_KIB)
}
