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

/// A bit of a C bit field has no offset that a constant expression could give: a program sets the bit and looks.
#[test]
fn the_bit_that_makes_a_vchan_wait_is_where_it_is_cleared() {
    let program = "#include <libxenvchan.h>\n#include <string.h>\nint main(void) { struct libxenvchan v; int flags;\n\
                   memset(&v, 0, sizeof v); v.blocking = 1; memcpy(&flags, (char *)&v + 28, sizeof flags);\n\
                   return flags != 1 << 2; }\n";
    let directory = std::env::temp_dir().join(format!("stubctl-abi-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (source, binary) = (directory.join("flags.c"), directory.join("flags"));
    std::fs::write(&source, program).unwrap();
    let compiled = Command::new("cc").arg(&source).arg("-o").arg(&binary).status().unwrap();
    let is_there = compiled.success() && Command::new(&binary).status().unwrap().success();
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(is_there);
}
