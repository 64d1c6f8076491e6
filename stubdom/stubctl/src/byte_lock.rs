//! Locks by which the processes of stubctl keep out of each other's way: one byte of a file for each stub or guest.
//!
//! **Takes** a kind of lock and a number. **Gives** the lock, which ends with the value or with the process. **Never**
//! lets another user hold one: a lock says that a stubctl lives, and others act on that. The files are root's (0600), in a
//! directory of root's (0700) that holds nothing else.

use crate::ffi::sys;
use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const DIRECTORY: &str = "/run/xen-stubdom";

/// What a lock is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Talking to a stub, by the stub's number: a vchan has one client.
    Channel,
    /// Exchanging frames of a guest, by the guest's number.
    Care,
    /// Changing marks of frames; there is one.
    Marks,
    /// Making a stub for a guest, by the guest's number.
    Pairing,
    /// Making a domain of a name, by a hash of the name.
    Name,
}

impl Kind {
    fn file_name(self) -> &'static str {
        match self {
            Self::Channel => "channel.lock",
            Self::Care => "care.lock",
            Self::Marks => "marks.lock",
            Self::Pairing => "pairing.lock",
            Self::Name => "name.lock",
        }
    }
}

/// A lock file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockError {
    path: PathBuf,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It cannot be made, opened or locked.
    Io(io::ErrorKind),
    /// It is another user's, open to others, or of another type.
    NotOurs { uid: u32, mode: u32 },
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.fault {
            Fault::Io(kind) => write!(f, "cannot lock {path}: {kind}"),
            Fault::NotOurs { uid, mode } => write!(
                f,
                "expected {path} to be root's alone, got owner {uid}, mode {mode:o}: remove {DIRECTORY} when no stubctl runs"
            ),
        }
    }
}

impl std::error::Error for LockError {}

/// A lock that this process holds.
pub(crate) struct ByteLock(#[expect(dead_code, reason = "closing the file is what frees the lock")] File);

impl ByteLock {
    /// Takes a lock; `None` when another process has it, or this one has it already.
    ///
    /// # Errors
    /// The lock's file is not there to be locked, or not ours.
    pub(crate) fn take_now(kind: Kind, number: u16) -> Result<Option<Self>, LockError> {
        Self::take_in(Path::new(DIRECTORY), kind, number)
    }

    fn take_in(directory: &Path, kind: Kind, number: u16) -> Result<Option<Self>, LockError> {
        let path = directory.join(kind.file_name());
        let file = open(directory, &path)?;
        match sys::lock_byte(file.as_fd(), number) {
            Ok(()) => Ok(Some(Self(file))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(failed(&path, &error)),
        }
    }
}

fn open(directory: &Path, path: &Path) -> Result<File, LockError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(directory, &error)),
        _ => {}
    }
    let found = fs::symlink_metadata(directory).map_err(|error| failed(directory, &error))?;
    check(directory, &found, found.is_dir())?;
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(0o600);
    // A FIFO would make an open wait. (std adds O_CLOEXEC.)
    let opened = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| failed(path, &error))?;
    let found = file.metadata().map_err(|error| failed(path, &error))?;
    check(path, &found, found.is_file())?;
    Ok(file)
}

/// Refuses what is not of this process's user, or open to any other.
fn check(path: &Path, found: &Metadata, is_right_type: bool) -> Result<(), LockError> {
    let us = fs::metadata("/proc/self").map_err(|error| failed(path, &error))?.uid();
    if is_right_type && found.uid() == us && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    let fault = Fault::NotOurs { uid: found.uid(), mode: found.mode() & 0o177_777 };
    Err(LockError { path: path.to_owned(), fault })
}

fn failed(path: &Path, error: &io::Error) -> LockError {
    LockError { path: path.to_owned(), fault: Fault::Io(error.kind()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn scratch(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("stubctl-lock-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory); // of a run that was killed
        directory
    }

    fn take(directory: &Path, number: u16) -> Result<Option<ByteLock>, LockError> {
        ByteLock::take_in(directory, Kind::Channel, number)
    }

    #[test]
    fn a_lock_is_one_bytes_and_ends_with_its_value() {
        let directory = scratch("one");
        let held = take(&directory, 7).unwrap().unwrap();
        assert!(take(&directory, 7).unwrap().is_none());
        assert!(take(&directory, 8).unwrap().is_some());
        assert!(ByteLock::take_in(&directory, Kind::Care, 7).unwrap().is_some());
        drop(held);
        assert!(take(&directory, 7).unwrap().is_some());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn directory_and_file_are_open_to_nobody_else() {
        let directory = scratch("modes");
        drop(take(&directory, 7).unwrap());
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&directory), mode(&directory.join("channel.lock"))), (0o700, 0o600));
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_others_may_open_or_have_put_there_is_refused() {
        let directory = scratch("others");
        let file = directory.join("channel.lock");
        drop(take(&directory, 7).unwrap());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let readable = take(&directory, 7).err().unwrap().to_string();
        assert!(readable.contains("mode 100644"), "{readable}");
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/nonexistent", &file).unwrap();
        assert!(take(&directory, 7).is_err(), "a link leads elsewhere");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let entered = take(&directory, 7).err().unwrap().to_string();
        assert!(entered.contains("mode 40755"), "{entered}");
        fs::remove_dir_all(&directory).unwrap();
    }
}
