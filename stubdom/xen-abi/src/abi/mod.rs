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
pub use vcpu::*;
pub use version::*;
pub use xen::*;
