//! One stubctl for every Xen: it links those of Xen's libraries that all releases share.

use std::process::Command;

/// Xen's libraries whose sonames do not change with the release (`tools/libs` of Xen's tree).
const STABLE: [&str; 7] = [
    "libxencall.so.1",
    "libxendevicemodel.so.1",
    "libxenevtchn.so.1",
    "libxenforeignmemory.so.1",
    "libxengnttab.so.1",
    "libxenstore.so.4",
    "libxentoollog.so.1",
];

#[test]
fn no_library_is_one_release_of_xens_alone() {
    let needed = needed(env!("CARGO_BIN_EXE_stubctl"));
    assert!(needed.iter().any(|name| name == "libxencall.so.1"), "what readelf prints: {needed:?}");
    let xens = needed.iter().filter(|name| name.starts_with("libxen"));
    let others: Vec<_> = xens.filter(|name| !STABLE.contains(&name.as_str())).collect();
    assert!(others.is_empty(), "{others:?} are of one Xen only");
}

/// The sonames that a program asks for.
fn needed(program: &str) -> Vec<String> {
    let output = Command::new("readelf").args(["-d", "-W", program]).output();
    let output = output.expect("readelf (package binutils)");
    let printed = String::from_utf8_lossy(&output.stdout);
    let names = printed.lines().filter(|line| line.contains("(NEEDED)"));
    names.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())).collect()
}
