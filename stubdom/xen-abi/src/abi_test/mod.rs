//! The ABI test: every size, offset and constant that this crate states, against Xen's own C headers.
//!
//! Each header has a module that lists [`Row`]s: a C expression and the value that Rust has for it. One C program prints what the
//! compiler makes of the expressions; each must be equal. A wrong field order or a misread header shows here, not on
//! a running host.

#![allow(trivial_numeric_casts, clippy::unnecessary_cast, reason = "the macros cast integers of any width")]

use std::fmt::Write as _;
use std::format;
use std::path::PathBuf;
use std::process::Command;
use std::string::String;
use std::vec::Vec;

mod control;
mod core;
mod errno;
mod net;
mod ring;
mod vchan;

/// A C expression and what it must be.
type Row = (String, u64);

/// Rows for the size of a C type and the offsets of its fields: `c.field` at the offset of `Rust.field`.
macro_rules! layout {
    ($rows:ident, $c:literal = $rust:ty { $($c_field:literal = $($field:ident).+),* $(,)? }) => {
        $rows.push((std::format!("sizeof({})", $c), size_of::<$rust>() as u64));
        $($rows.push((
            std::format!("offsetof({}, {})", $c, $c_field),
            ::core::mem::offset_of!($rust, $($field).+) as u64,
        ));)*
    };
}

/// Rows for constants, integers compared as 64-bit two's complement.
macro_rules! constants {
    ($rows:ident, $($c:literal = $rust:expr),* $(,)?) => {
        $rows.extend([$((std::string::String::from($c), $rust as u64)),*]);
    };
}
use {constants, layout};

const PROLOGUE: &str = r#"
#include <stdio.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <string.h>
#include <sys/types.h>
#define __XEN_TOOLS__ 1
#include <xen/xen.h>
#include <xen/arch-x86/xen.h>
#include <xen/domctl.h>
#include <xen/event_channel.h>
#include <xen/grant_table.h>
#include <xen/memory.h>
#include <xen/sched.h>
#include <xen/sysctl.h>
#include <xen/foreign/x86_32.h>
#include <xen/vcpu.h>
#include <xen/version.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/dm_op.h>
#include <xen/hvm/params.h>
#include <xen/io/console.h>
#include <xen/io/xenbus.h>
#include <xen/io/xs_wire.h>
#include <xen/io/ring.h>
#include <xen/io/netif.h>
#include <xen/io/libxenvchan.h>
"#;

#[test]
fn rust_and_xens_own_headers_agree() {
    let rows: Vec<Row> =
        [core::rows(), control::rows(), errno::rows(), net::rows(), ring::rows(), vchan::rows()].concat();
    let values = values_in_c(&rows);
    assert_eq!(values.len(), rows.len(), "the C program printed too few values");
    let mut wrong = String::new();
    for ((expression, ours), theirs) in rows.iter().zip(values) {
        if *ours != theirs {
            let _ = writeln!(wrong, "{expression}: Rust has {ours:#x}, Xen's header {theirs:#x}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Compiles and runs a program that prints the value of every expression.
fn values_in_c(rows: &[Row]) -> Vec<u64> {
    assert!(
        PathBuf::from("/usr/include/xen/xen.h").exists(),
        "Xen's headers are missing: install libxen-dev"
    );
    let dir = std::env::temp_dir().join(format!("xen-abi-{}-{}", std::process::id(), rows.len()));
    std::fs::create_dir_all(&dir).expect("a folder for the C program");
    let (source, binary) = (dir.join("abi.c"), dir.join("abi"));
    std::fs::write(&source, program(rows)).expect("the C program is written");
    let compiled = Command::new("cc").args(["-std=gnu11", "-w", "-o"]).arg(&binary).arg(&source).output();
    let compiled = compiled.expect("a C compiler: install gcc");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let printed = Command::new(&binary).output().expect("the C program runs").stdout;
    std::fs::remove_dir_all(&dir).expect("the folder is ours");
    String::from_utf8_lossy(&printed).lines().map(|line| line.parse().expect("a number")).collect()
}

fn program(rows: &[Row]) -> String {
    let mut program = String::from(PROLOGUE);
    program.push_str("int main(void) {\n");
    for (expression, _) in rows {
        let _ = writeln!(program, "printf(\"%llu\\n\", (unsigned long long)(long long)({expression}));");
    }
    program.push_str("return 0; }\n");
    program
}
