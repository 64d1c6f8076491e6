//! Where the programs are that stubctl runs. A toolstack that cron, a unit or ssh has started may have no `/usr/sbin` in its
//! PATH.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where distributions put Xen's programs, behind the directory of the running version.
const XEN: [&str; 3] = ["/usr/lib/xen/bin", "/usr/libexec/xen/bin", "/usr/local/lib/xen/bin"];

/// Where the system's programs are.
const SYSTEM: [&str; 6] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];

/// The xl that asked for this, or the installed one of the running Xen.
pub(crate) fn xl() -> PathBuf {
    let parent = format!("/proc/{}/exe", std::os::unix::process::parent_id());
    let parent = fs::read_link(parent).ok().filter(|exe| exe.ends_with("xl") && is_roots(exe));
    parent
        .unwrap_or_else(|| first("xl", xen_directories().into_iter().chain(SYSTEM.iter().map(PathBuf::from))))
}

/// A program of the system.
pub(crate) fn system(name: &str) -> PathBuf {
    first(name, SYSTEM.iter().map(PathBuf::from))
}

/// Directories of Xen's own programs, that of the running hypervisor's version first: several may be installed.
pub(crate) fn xen_directories() -> Vec<PathBuf> {
    let version = |part| fs::read_to_string(format!("/sys/hypervisor/version/{part}"));
    let running = match (version("major"), version("minor")) {
        (Ok(major), Ok(minor)) => Some(format!("/usr/lib/xen-{}.{}/bin", major.trim(), minor.trim())),
        _ => None,
    };
    running.into_iter().map(PathBuf::from).chain(XEN.iter().map(PathBuf::from)).collect()
}

/// The first file of that name; where there is none, the name alone, which PATH may know.
fn first(name: &str, directories: impl Iterator<Item = PathBuf>) -> PathBuf {
    let mut files = directories.map(|directory| directory.join(name));
    files.find(|file| file.is_file()).unwrap_or_else(|| name.into())
}

/// Whether nobody but root can have put it there.
fn is_roots(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|data| data.uid() == 0 && data.mode() & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_without_path() {
        // The places are looked at, whatever PATH says.
        assert!(system("sh").is_absolute() && system("sh").is_file());
        assert_eq!(system("no-such-program"), Path::new("no-such-program"));
        let places = ["/nonexistent", "/usr/bin", "/bin"].map(PathBuf::from);
        assert!(first("sh", places.into_iter()).ends_with("bin/sh"));
    }

    #[test]
    fn a_program_that_others_may_write_is_not_trusted() {
        assert!(is_roots(Path::new("/bin/sh")));
        assert!(!is_roots(Path::new("/nonexistent")));
        assert!(!is_roots(Path::new("/tmp")));
    }
}
