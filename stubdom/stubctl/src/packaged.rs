//! The save helper that the distribution ships: every guest without a stub is its business.
//!
//! **Takes** the command line that libxl gave. **Gives** this process to the packaged helper, descriptors and all.
//! **Never** calls itself, however it was installed.

use crate::ffi::sys;
use crate::program;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set for the packaged helper, so that two programs that both pass on to each other end with a message.
const GUARD: &str = "STUBCTL_PASSED_ON";

/// dpkg-divert's name for the packaged one first: where it exists, the plain name is ours.
const NAMES: [&str; 2] = ["libxl-save-helper.distrib", "libxl-save-helper"];

/// The packaged helper cannot be run.
#[derive(Debug)]
pub(crate) enum PackagedError {
    /// It is in none of the places.
    NotFound {
        /// The places.
        looked_in: Vec<PathBuf>,
    },
    /// It is there and does not start.
    Exec {
        /// Which file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is stubctl under another name.
    Loop,
}

impl fmt::Display for PackagedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { looked_in } => {
                let places: Vec<String> = looked_in.iter().map(|path| path.display().to_string()).collect();
                write!(f, "no packaged libxl-save-helper in {}: install xen-utils", places.join(", "))
            }
            Self::Exec { file, error } => write!(f, "cannot run {}: {error}", file.display()),
            Self::Loop => {
                write!(f, "the packaged libxl-save-helper is stubctl itself: install it by dpkg-divert")
            }
        }
    }
}

impl std::error::Error for PackagedError {}

/// Becomes the packaged helper; returns only when that fails.
pub(crate) fn exec(arguments: &[OsString]) -> PackagedError {
    if std::env::var_os(GUARD).is_some() {
        return PackagedError::Loop;
    }
    let directories = program::xen_directories();
    let Some(file) = find(&directories, Path::new("/proc/self/exe")) else {
        return PackagedError::NotFound { looked_in: directories };
    };
    let error = command(&file, arguments).exec();
    PackagedError::Exec { file, error }
}

/// The packaged helper, as libxl would have started it: libxl ends it by SIGTERM.
fn command(file: &Path, arguments: &[OsString]) -> Command {
    let mut command = Command::new(file);
    command.args(arguments).env(GUARD, "1");
    sys::unblock_termination(&mut command);
    command
}

/// The first helper there is that is not `ours`.
fn find(directories: &[PathBuf], ours: &Path) -> Option<PathBuf> {
    let names = NAMES.iter();
    let candidates = names.flat_map(|name| directories.iter().map(move |directory| directory.join(name)));
    candidates.into_iter().find(|file| file.is_file() && !is_same_file(file, ours))
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|data| (data.dev(), data.ino())).ok();
    identity(a).is_some_and(|a| Some(a) == identity(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn the_packaged_helper_can_be_ended_by_a_signal() {
        let _blocked = sys::termination_fd().unwrap();
        for (name, number) in [("INT", libc::SIGINT), ("TERM", libc::SIGTERM)] {
            let script = ["-c".into(), format!("kill -{name} $$; exit 7").into()];
            let ended = command(Path::new("/bin/sh"), &script).status().unwrap();
            assert_eq!(ended.signal(), Some(number));
        }
    }

    #[test]
    fn the_diverted_helper_comes_before_ours_under_its_name() {
        let root = std::env::temp_dir().join(format!("stubctl-packaged-{}", std::process::id()));
        let (bin, ours) = (root.join("bin"), root.join("stubctl"));
        fs::create_dir_all(&bin).unwrap();
        fs::write(&ours, "").unwrap();
        let directories = [root.join("absent"), bin.clone()];
        let [diverted, plain] = NAMES.map(|name| bin.join(name));

        std::os::unix::fs::symlink(&ours, &plain).unwrap();
        let only_us = find(&directories, &ours);
        fs::write(&diverted, "").unwrap();
        let beside_us = find(&directories, &ours);
        fs::remove_file(&diverted).unwrap();
        fs::remove_file(&plain).unwrap();
        fs::write(&plain, "").unwrap();
        let not_installed = find(&directories, &ours);
        fs::remove_dir_all(&root).unwrap();

        assert_eq!((only_us, beside_us, not_installed), (None, Some(diverted), Some(plain)));
    }
}
