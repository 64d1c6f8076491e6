//! Compares the hand-written FFI declarations with the headers of Xen's libraries, through the C compiler.

use std::path::Path;
use std::process::Command;

#[test]
fn the_c_declarations_agree_with_the_headers() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/abi.c");
    let output = Command::new("cc")
        .args(["-std=gnu11", "-fsyntax-only", "-Wall", "-Werror", "-D__XEN_TOOLS__"])
        .arg(source)
        .output()
        .expect("a C compiler named cc (package gcc) and Xen's headers (package libxen-dev)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
