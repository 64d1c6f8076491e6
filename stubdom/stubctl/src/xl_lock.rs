//! The one case where starting a stub would wait for ever: xl holds its lock while it restores.
//!
//! With autoballooning on, xl keeps a record lock from before it makes the incoming domain until the restore is over;
//! the `xl create` that starts the stub wants the same lock (`xl_vmcontrol.c`). A holder that is no ancestor of this
//! process will let go of it by itself.

use crate::ffi::sys;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

const XL_CONF: &str = "/etc/xen/xl.conf";
const DEFAULT_LOCK: &str = "/var/lock/xl";

/// The toolstack that waits for us holds the lock that the stub's `xl create` needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldByParent {
    /// The lock file.
    pub(crate) file: String,
    /// The holder's process id.
    pub(crate) pid: i32,
}

impl fmt::Display for HeldByParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, pid } = self;
        write!(
            f,
            "cannot start a stub: xl (process {pid}) holds {file} while it restores, because autoballooning "
        )?;
        write!(
            f,
            "is on. Boot Xen with a fixed dom0_mem=, or set autoballoon=\"off\" in {XL_CONF}, and try again"
        )
    }
}

impl std::error::Error for HeldByParent {}

/// Looks whether a process that waits for this one holds xl's lock.
///
/// # Errors
/// One does.
pub(crate) fn check() -> Result<(), HeldByParent> {
    let file = lock_file();
    let Some(holder) = holder(&file) else { return Ok(()) };
    if is_ancestor(holder) { Err(HeldByParent { file, pid: holder }) } else { Ok(()) }
}

/// Who holds the lock; what is not there, or is no file that xl could have made, nobody of xl's holds. The directory may be
/// everybody's (`/run/lock`), so the open must neither follow a link nor wait, as it would at a FIFO.
fn holder(file: &str) -> Option<i32> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(file).ok()?;
    file.metadata().ok().filter(Metadata::is_file)?;
    sys::lock_holder(file.as_fd()).ok().flatten()
}

fn lock_file() -> String {
    let text = fs::read_to_string(XL_CONF).unwrap_or_default();
    configured_lock(&text).unwrap_or_else(|| DEFAULT_LOCK.to_owned())
}

/// The `lockfile` setting of an xl.conf; the last one counts, as in xl.
fn configured_lock(text: &str) -> Option<String> {
    let mut settings = text.lines().filter_map(|line| line.split('#').next()?.split_once('='));
    let (_, value) = settings.rfind(|(key, _)| key.trim() == "lockfile")?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

fn is_ancestor(wanted: i32) -> bool {
    let mut pid = std::process::id().cast_signed();
    while pid > 1 {
        let Some(parent) = parent_of(pid) else { return false };
        if parent == wanted {
            return true;
        }
        pid = parent;
    }
    false
}

fn parent_of(pid: i32) -> Option<i32> {
    parent_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 4 of `/proc/PID/stat`, counted behind the command's name, which may hold spaces and brackets.
fn parent_in(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_stands_behind_the_commands_name() {
        assert_eq!(parent_in("812 (a) b (c)) S 77 812 812 0 -1"), Some(77));
        assert_eq!(parent_in("812 nonsense"), None);
    }

    #[test]
    fn our_parent_is_an_ancestor_and_we_are_not() {
        let us = std::process::id().cast_signed();
        assert!(is_ancestor(parent_of(us).unwrap()));
        assert!(!is_ancestor(us));
    }

    #[test]
    fn the_lock_file_follows_xl_conf() {
        assert_eq!(configured_lock("#lockfile=\"/x\"\nautoballoon=\"auto\"\n"), None);
        let text = "lockfile=\"/var/lock/xl\"\n lockfile = '/run/xl.lock' # ours\n";
        assert_eq!(configured_lock(text).as_deref(), Some("/run/xl.lock"));
    }

    #[test]
    fn nobody_holds_a_file_that_is_not_there() {
        assert_eq!(holder("/nonexistent/lock"), None);
    }

    #[test]
    fn a_pipe_in_the_place_of_the_lock_holds_nobody_up() {
        let pipe = std::env::temp_dir().join(format!("stubctl-xl-lock-{}", std::process::id()));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let (done, wait) = std::sync::mpsc::channel();
        let file = pipe.to_str().unwrap().to_owned();
        std::thread::spawn(move || done.send(holder(&file)));
        let found = wait.recv_timeout(std::time::Duration::from_secs(60));
        std::fs::remove_file(pipe).unwrap();
        assert_eq!(found, Ok(None));
    }
}
