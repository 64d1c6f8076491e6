//! The hooks for mcelog and rasdaemon: what they are told becomes a report in the spool.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a hook with these variables; gives its reports.
fn reports(hook: &str, name: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let spool: PathBuf = std::env::temp_dir().join(format!("stubctl-hook-{name}-{}", std::process::id()));
    fs::create_dir_all(&spool).unwrap();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist").join(hook);
    let variables = variables.iter().copied();
    let status = Command::new(program).env("XEN_STUBDOM_SPOOL", &spool).envs(variables).status().unwrap();
    assert!(status.success());
    let files = fs::read_dir(&spool).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let reports = files.collect();
    fs::remove_dir_all(spool).unwrap();
    reports
}

#[test]
fn mcelog_names_the_page_in_its_message() {
    let message = "Corrected memory errors on page 12345000 exceed threshold 10 in 24h: 10 in 24h";
    assert_eq!(reports("mcelog-page-trigger", "mcelog", &[("MESSAGE", message)]), ["0x12345000 1\n"]);
}

#[test]
fn rasdaemon_gives_address_and_count() {
    let variables = [("TYPE", "Corrected"), ("ADDRESS", "0x12345678"), ("COUNT", "2")];
    assert_eq!(reports("rasdaemon-mc-trigger", "rasdaemon", &variables), ["0x12345678 2\n"]);
}

#[test]
fn what_was_not_corrected_is_not_reported() {
    let variables = [("TYPE", "Uncorrected"), ("ADDRESS", "0x12345678"), ("COUNT", "1")];
    assert!(reports("rasdaemon-mc-trigger", "uncorrected", &variables).is_empty());
}
