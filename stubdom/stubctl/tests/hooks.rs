//! What is shipped beside stubctl: the hooks for mcelog and rasdaemon, and the systemd unit.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A run of a hook: its spool, and a `logger` that writes to a file.
struct Hook {
    folder: PathBuf,
    output: Output,
}

impl Hook {
    /// Runs a hook with these variables.
    fn run(hook: &str, name: &str, variables: &[(&str, &str)]) -> Self {
        Self::run_with(hook, name, variables, |spool| fs::create_dir_all(spool).unwrap())
    }

    fn run_with(hook: &str, name: &str, variables: &[(&str, &str)], make: impl Fn(&Path)) -> Self {
        let folder = std::env::temp_dir().join(format!("stubctl-hook-{name}-{}", std::process::id()));
        fs::create_dir_all(folder.join("bin")).unwrap();
        let logger = folder.join("bin/logger");
        fs::write(&logger, "#!/bin/sh\necho \"$*\" >>\"${0%/bin/logger}/log\"\n").unwrap();
        fs::set_permissions(&logger, fs::Permissions::from_mode(0o755)).unwrap();
        make(&folder.join("spool"));
        let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap());
        let output = Command::new(shipped(hook))
            .env("XEN_STUBDOM_SPOOL", folder.join("spool"))
            .env("PATH", path)
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        Self { folder, output }
    }

    fn reports(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.folder.join("spool")) else { return Vec::new() };
        entries.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
    }

    /// What went to syslog.
    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder); // a leftover harms nobody
    }
}

fn shipped(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist").join(file)
}

const MESSAGE: (&str, &str) =
    ("MESSAGE", "Corrected memory errors on page 12345000 exceed threshold 10 in 24h: 10 in 24h");

#[test]
fn mcelog_names_the_page_in_its_message() {
    let hook = Hook::run("mcelog-page-trigger", "mcelog", &[MESSAGE]);
    assert_eq!(hook.reports(), ["address 0x12345000 1\n"]);
    assert!(hook.output.status.success() && hook.log().is_empty(), "{}", hook.log());
}

#[test]
fn rasdaemon_gives_address_and_count() {
    let variables = [("TYPE", "Corrected"), ("ADDRESS", "0x12345678"), ("COUNT", "2"), ("GRAIN", "12")];
    let hook = Hook::run("rasdaemon-mc-trigger", "rasdaemon", &variables);
    assert_eq!(hook.reports(), ["address 0x12345678 2\n"]);
}

#[test]
fn a_count_of_0_counts_as_1() {
    let variables = [("TYPE", "Corrected"), ("ADDRESS", "12345678"), ("COUNT", "0")];
    let hook = Hook::run("rasdaemon-mc-trigger", "zero", &variables);
    assert_eq!(hook.reports(), ["address 0x12345678 1\n"]);
}

#[test]
fn what_was_not_corrected_is_logged_and_not_counted() {
    for kind in ["Uncorrected", "Deferred", "Fatal", "Info", ""] {
        let variables = [("TYPE", kind), ("ADDRESS", "0x12345678"), ("COUNT", "1")];
        let hook = Hook::run("rasdaemon-mc-trigger", "uncorrected", &variables);
        assert!(hook.reports().is_empty() && hook.output.status.success(), "{kind}");
        assert!(hook.log().contains("only corrected errors are counted"), "{}", hook.log());
    }
}

#[test]
fn an_error_that_names_no_page_is_logged_and_not_counted() {
    for (address, grain, said) in [
        ("0", "0", "without an address"),
        ("0x0000", "3", "without an address"),
        ("", "0", "without an address"),
        ("0x12345678", "30", "known to 2^30 bytes only"),
    ] {
        let variables = [("TYPE", "Corrected"), ("ADDRESS", address), ("COUNT", "1"), ("GRAIN", grain)];
        let hook = Hook::run("rasdaemon-mc-trigger", "pageless", &variables);
        assert!(hook.reports().is_empty() && hook.output.status.success(), "{address} {grain}");
        assert!(hook.log().contains(said), "{address} {grain}: {}", hook.log());
        assert_eq!(hook.log().lines().count(), 1);
    }
}

#[test]
fn a_report_that_cannot_be_written_is_an_error_in_syslog_and_on_stderr() {
    let rasdaemon = [("TYPE", "Corrected"), ("ADDRESS", "0x12345678"), ("COUNT", "1")];
    let hooks: [(&str, &[(&str, &str)]); 2] =
        [("mcelog-page-trigger", &[MESSAGE]), ("rasdaemon-mc-trigger", &rasdaemon)];
    for (hook, variables) in hooks {
        let lost = Hook::run_with(hook, "lost", variables, |_| {});
        assert_eq!(lost.output.status.code(), Some(1), "{hook}");
        for said in [lost.log(), lost.stderr()] {
            assert!(said.contains("cannot write to ") && said.contains("0x1234"), "{hook}: {said}");
        }
    }
}

/// The last step fails, as on a file system that is full.
#[test]
fn a_full_spool_leaves_no_half_report() {
    let rasdaemon = [("TYPE", "Corrected"), ("ADDRESS", "0x12345678"), ("COUNT", "1")];
    let full = Hook::run_with("rasdaemon-mc-trigger", "full", &rasdaemon, |spool| {
        fs::create_dir_all(spool).unwrap();
        let mv = spool.parent().unwrap().join("bin/mv");
        fs::write(&mv, "#!/bin/sh\necho 'No space left on device' >&2\nexit 1\n").unwrap();
        fs::set_permissions(&mv, fs::Permissions::from_mode(0o755)).unwrap();
    });
    assert_eq!((full.output.status.code(), full.reports().len()), (Some(1), 0));
    assert!(full.log().contains("1 errors at 0x12345678 are not counted"), "{}", full.log());
}

#[test]
fn mcelog_without_a_page_is_an_error() {
    let hook = Hook::run("mcelog-page-trigger", "nameless", &[("MESSAGE", "something else")]);
    assert_eq!(hook.output.status.code(), Some(1));
    assert!(hook.log().contains("something else") && hook.stderr().contains("something else"));
}

/// systemd's own check, with every program of the unit there and no other unit: as on a distribution that has none of those
/// that it waits for.
#[test]
fn systemd_starts_the_unit_where_other_units_are_missing() {
    let folder = std::env::temp_dir().join(format!("stubctl-unit-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let unit = fs::read_to_string(shipped("stubctl-watch.service")).unwrap();
    let file = folder.join("stubctl-watch.service");
    fs::write(&file, unit.replace("/usr/sbin/stubctl", "/bin/true")).unwrap();
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output();
    let _ = fs::remove_dir_all(&folder); // a leftover harms nobody
    let Ok(verify) = verify else {
        eprintln!("skipped: systemd-analyze is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&verify.stderr);
    assert!(verify.status.success() && said.trim().is_empty(), "{}: {said}", verify.status);
}

#[test]
fn the_unit_requires_no_other_and_asks_for_dom0_when_it_starts() {
    let unit = fs::read_to_string(shipped("stubctl-watch.service")).unwrap();
    let has = |start: &str| unit.lines().any(|line| line.starts_with(start));
    assert!(!has("Requires=") && !has("BindsTo=") && !has("Condition"), "{unit}");
    assert!(has("Wants=xen.service ") && has("After=xen.service ") && has("ExecCondition="), "{unit}");
}
