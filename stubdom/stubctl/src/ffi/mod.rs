//! What std does not offer: Xen's own libraries and a few system calls, each behind a safe door.
//!
//! **Takes** Rust values. **Gives** Rust values, errno in every error. **Never** lets a raw pointer out. These
//! modules are the only ones of stubctl with `unsafe`; the hand-written declarations are compared with the C headers
//! by `tests/abi.rs`.

pub(crate) mod event;
pub(crate) mod foreign;
mod grants;
pub(crate) mod hypercalls;
pub(crate) mod marking;
mod pages;
pub(crate) mod pv;
pub(crate) mod sending;
pub(crate) mod sys;
pub(crate) mod vchan;
pub(crate) mod xenctrl;
pub(crate) mod xenstore;

/// The calling thread's errno, positive.
fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
