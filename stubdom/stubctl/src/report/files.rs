//! The reports' files: one for each guest, in a directory that holds nothing else.
//!
//! **Takes** a guest's name, which came with its stream, and a text. **Gives** a file whose name belongs to that guest alone.
//! **Never** writes outside of the directory, and never keeps more than [`MAX_FILES`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How many reports are kept: the oldest go first, since their guests are most likely gone.
const MAX_FILES: usize = 256;

/// Most bytes of a name, before the suffixes: Linux allows 255.
const MAX_NAME: usize = 200;

/// Writes a file beside the old one and takes its place, so that a reader never sees half of it; nothing stays beside it.
pub(super) fn replace(directory: &Path, guest: &str, text: &str) -> io::Result<()> {
    let file = file_of(directory, guest);
    let new = file.with_extension(format!("json.{}", std::process::id()));
    fs::create_dir_all(directory)?;
    let replaced = fs::write(&new, text).and_then(|()| fs::rename(&new, &file));
    if replaced.is_err() {
        // The error that is reported is the first; what was not even created is not there to remove.
        let _ = fs::remove_file(&new);
    }
    replaced?;
    remove_oldest(directory, MAX_FILES)
}

/// The guest's file. Every byte that could mean something to a path is written as `%` and two digits, so that two names
/// never share a file; a name that is too long is cut, and ends with a hash of the whole.
fn file_of(directory: &Path, guest: &str) -> PathBuf {
    let mut plain = String::new();
    for (place, byte) in guest.bytes().enumerate() {
        match byte {
            b'.' if place > 0 => plain.push('.'),
            b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => plain.push(char::from(byte)),
            _ => plain += &format!("%{byte:02X}"),
        }
    }
    if plain.len() > MAX_NAME {
        plain.truncate(MAX_NAME);
        plain += &format!("%{:016x}", hash(guest));
    }
    directory.join(format!("{plain}.json"))
}

/// FNV-1a, which is the same in every version of this program.
fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Removes all but the newest reports. A file that another process removes first is no error.
fn remove_oldest(directory: &Path, max: usize) -> io::Result<()> {
    let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Also what a process that was killed has left beside a report.
        let is_report = entry.file_name().to_string_lossy().contains(".json");
        if is_report && let Ok(changed) = entry.metadata().and_then(|data| data.modified()) {
            files.push((changed, entry.path()));
        }
    }
    files.sort();
    let nr_excess = files.len().saturating_sub(max);
    for (_, file) in &files[..nr_excess] {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("stubctl-report-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_report_that_cannot_take_its_place_leaves_nothing_beside_it() {
        let directory = directory("place");
        fs::create_dir_all(directory.join("db.json")).unwrap(); // no file takes a directory's place
        assert!(replace(&directory, "db", "{}").is_err());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_guests_name_stays_in_the_directory() {
        let directory = Path::new("/var/lib/x");
        assert_eq!(file_of(directory, "../../etc/db"), directory.join("%2E.%2F..%2Fetc%2Fdb.json"));
        assert_eq!(file_of(directory, "db.1"), directory.join("db.1.json"));
    }

    #[test]
    fn two_names_never_share_a_file() {
        let directory = Path::new("/var/lib/x");
        let long = "a".repeat(300);
        let names = ["a/b", "a_b", "a%2Fb", "", "%", "é", &long, &format!("{long}b")];
        let files: std::collections::BTreeSet<_> =
            names.iter().map(|name| file_of(directory, name)).collect();
        assert_eq!(files.len(), names.len(), "{files:?}");
        assert!(files.iter().all(|file| file.file_name().unwrap().len() < 255 - ".json.4194304".len()));
    }

    #[test]
    fn the_oldest_reports_go_and_other_files_stay() {
        let directory = directory("oldest");
        fs::write(directory.join("note"), "").unwrap();
        for (age, name) in ["new.json", "older.json", "oldest.json"].iter().enumerate() {
            let file = fs::File::create(directory.join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(60 * age as u64)).unwrap();
        }
        remove_oldest(&directory, 2).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["new.json", "note", "older.json"]);
        fs::remove_dir_all(&directory).unwrap();
    }
}
