//! Structures and constants of Xen's ABI, by their C names, one file a header.
//!
//! Every item is what the public header says, and no more; the header is its documentation. Structures are written
//! here in Rust's spelling (`start_info` is [`StartInfo`]), fields and constants in the header's.
#![allow(
    missing_docs,
    non_upper_case_globals,
    reason = "the names are the public headers'; the headers document them"
)]

mod domctl;
mod event_channel;
mod grant_table;
mod hvm;
mod io;
mod memory;
mod sched;
mod sysctl;
mod vcpu;
mod version;
mod xen;

pub use domctl::*;
pub use event_channel::*;
pub use grant_table::*;
pub use hvm::*;
pub use io::*;
pub use memory::*;
pub use sched::*;
pub use sysctl::*;
pub use vcpu::*;
pub use version::*;
pub use xen::*;

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The union of a control operation: 128 bytes, of which an operation's structure takes the first.
type Union = [u64; 16];

fn union_of<Op: IntoBytes + Immutable>(op: &Op) -> Union {
    const { assert!(size_of::<Op>() <= size_of::<Union>()) };
    let mut union = Union::default();
    for (to, from) in union.as_mut_bytes().iter_mut().zip(op.as_bytes()) {
        *to = *from;
    }
    union
}

fn in_union<Op: FromBytes>(union: &Union) -> Op {
    const { assert!(size_of::<Op>() <= size_of::<Union>()) };
    // PANIC: never; the structure is no larger than the union.
    let (op, _) = Op::read_from_prefix(union.as_bytes()).expect("the union holds it");
    op
}
