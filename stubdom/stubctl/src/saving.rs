//! Whether a guest is being saved or migrated away: libxl runs a save helper for it then.
//!
//! libxl starts it as `HELPER --save-domain FD RECV_FD DOMID ...` (`libxl_save_callout.c`), whichever program that is.

use std::fs;
use xen_abi::types::Domid;

/// The process that saves this guest.
pub(crate) fn saver_of(guest: Domid) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?;
    let mut pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| saved_by(&line) == Some(guest))
    })
}

/// The guest that a command line of this kind saves.
fn saved_by(command_line: &[u8]) -> Option<Domid> {
    let mut words = command_line.split(|byte| *byte == 0).skip(1);
    if words.next()? != b"--save-domain" {
        return None;
    }
    std::str::from_utf8(words.nth(2)?).ok()?.parse().ok().map(Domid::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_save_helper_names_its_guest() {
        let line = "/usr/lib/xen-4.17/bin/libxl-save-helper --save-domain 8 -1 7 1 0 0 ".replace(' ', "\0");
        assert_eq!(saved_by(line.as_bytes()), Some(Domid::new(7)));
    }

    #[test]
    fn other_processes_save_nobody() {
        assert_eq!(saved_by(b"libxl-save-helper\0--restore-domain\x008\x00-1\x007\0"), None);
        assert_eq!(saved_by(b""), None);
        assert_eq!(saved_by(b"sh\0--save-domain\0"), None);
    }
}
