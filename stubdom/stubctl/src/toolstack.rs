//! What the toolstack is doing with a guest, as far as it forbids an exchange.
//!
//! **Takes** a guest. **Gives** a refusal by name while it is built, restored, saved, migrated or destroyed. **Never** takes
//! the word of a process that is not wholly root's: any user can run a program with any arguments.
//!
//! libxl starts its helper as `HELPER --save-domain FD RECV_FD DOMID ...`, or `--restore-domain` with the same beginning
//! (`libxl_save_callout.c`), whichever program that is. It runs as long as the guest's memory is on its way.

use crate::error::Error;
use crate::ffi::xenctrl::DomainInfo;
use crate::host::Host;
use crate::verdict::Refused;
use std::fs;
use xen_abi::types::Domid;

/// What a helper does with its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Save,
    Restore,
}

/// Why no frame of a guest may be exchanged now; each reason passes by itself.
///
/// # Errors
/// Xen does not answer.
pub(crate) fn refusal(host: &Host, guest: Domid) -> Result<Option<Refused>, Error> {
    Ok(why(host.xen.domain_info(guest)?, || helper_of(guest)))
}

fn why(info: Option<DomainInfo>, helper: impl FnOnce() -> Option<Work>) -> Option<Refused> {
    let Some(info) = info else {
        return Some(Refused::new("changing-hands", "its owner is just gone: try again"));
    };
    if info.dying {
        return Some(Refused::new(
            "dying",
            "its owner is being destroyed, which frees it: try again afterwards",
        ));
    }
    match helper() {
        Some(Work::Save) => {
            let text = "the guest is being saved or migrated: a new frame would be missing from the stream; try again \
                        afterwards";
            Some(Refused::new("being-saved", text))
        }
        Some(Work::Restore) => {
            let text =
                "the guest is being restored: the helper has its memory mapped; try again when it runs";
            Some(Refused::new("being-built", text))
        }
        // A builder is a part of xl, and no process of its own.
        None if info.cpu_ns == 0 => {
            let text = "the guest has never run: whoever builds it may have its memory mapped; try again when it runs";
            Some(Refused::new("being-built", text))
        }
        None => None,
    }
}

/// Whether a helper of root's saves or sends this guest.
pub(crate) fn is_saving(guest: Domid) -> bool {
    helper_of(guest) == Some(Work::Save)
}

/// What a helper of root's is doing with this guest.
fn helper_of(guest: Domid) -> Option<Work> {
    let entries = fs::read_dir("/proc").ok()?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let (work, domid) = work_of(&fs::read(format!("/proc/{pid}/cmdline")).ok()?)?;
        let is_roots = || fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| is_roots(&text));
        (domid == guest && is_roots()).then_some(work)
    })
    .next()
}

/// The work and the guest that a helper's command line names.
fn work_of(command_line: &[u8]) -> Option<(Work, Domid)> {
    let mut words = command_line.split(|byte| *byte == 0).skip(1);
    let work = match words.next()? {
        b"--save-domain" => Work::Save,
        b"--restore-domain" => Work::Restore,
        _ => return None,
    };
    let domid = std::str::from_utf8(words.nth(2)?).ok()?.parse().ok()?;
    Some((work, Domid::new(domid)))
}

/// Whether all four user numbers of a process are root's (`proc(5)`, `/proc/PID/status`): whoever starts a program that
/// changes its user still chooses its arguments, and stays its real user.
fn is_roots(status: &str) -> bool {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    users.is_some_and(|users| users.split_whitespace().eq(["0"; 4]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_abi::types::Mfn;

    fn info(dying: bool, cpu_ns: u64) -> Option<DomainInfo> {
        let [hvm, shutdown, crashed, suspended, paused] = [true, false, false, false, false];
        let (tot_pages, max_pages, shared_info, max_vcpu) = (1, 1, Mfn::new(0), 0);
        let info = DomainInfo {
            hvm,
            dying,
            shutdown,
            crashed,
            suspended,
            paused,
            tot_pages,
            max_pages,
            shared_info,
            max_vcpu,
            cpu_ns,
        };
        Some(info)
    }

    fn reason(info: Option<DomainInfo>, work: Option<Work>) -> Option<&'static str> {
        why(info, || work).map(|refused| refused.reason)
    }

    #[test]
    fn a_helper_names_its_work_and_its_guest() {
        let line = "/usr/lib/xen-4.17/bin/libxl-save-helper --save-domain 8 -1 7 1 0 0 ".replace(' ', "\0");
        assert_eq!(work_of(line.as_bytes()), Some((Work::Save, Domid::new(7))));
        let line = b"/usr/sbin/stubctl\0--restore-domain\x008\x00-1\x009\x002\0";
        assert_eq!(work_of(line), Some((Work::Restore, Domid::new(9))));
    }

    #[test]
    fn other_processes_are_no_helpers() {
        assert_eq!(work_of(b""), None);
        assert_eq!(work_of(b"sh\0--save-domain\0"), None);
        assert_eq!(work_of(b"xl\0restore\0-p\0file\0"), None);
    }

    #[test]
    fn only_a_process_that_is_wholly_roots_is_believed() {
        assert!(is_roots("Name:\tstubctl\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n"));
        assert!(!is_roots("Name:\tp\nUid:\t65534\t65534\t65534\t65534\n"));
        assert!(
            !is_roots("Name:\tsu\nUid:\t1000\t0\t0\t0\n"),
            "a set-user-ID program with arguments of a user"
        );
        assert!(!is_roots("Name:\tzombie\n"));
    }

    #[test]
    fn a_guest_that_only_runs_may_be_exchanged() {
        assert_eq!(reason(info(false, 1), None), None);
        assert_eq!(reason(info(false, 1), Some(Work::Save)), Some("being-saved"));
        assert_eq!(reason(info(false, 1), Some(Work::Restore)), Some("being-built"));
        assert_eq!(reason(info(false, 0), None), Some("being-built"));
        assert_eq!(reason(info(true, 1), Some(Work::Save)), Some("dying"));
        assert_eq!(reason(None, None), Some("changing-hands"));
    }
}
