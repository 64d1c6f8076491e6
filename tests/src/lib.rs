//! The nest: real Xen in QEMU, with a dom0 made of the distribution's packages, and what runs in it.
//!
//! [`machine::Machine::boot`] gives a dom0; [`dom0::Dom0`] runs scripts there. Files leave dom0 through `/host`.

pub mod bench;
pub mod budget;
pub mod debian;
pub mod demo;
pub mod dom0;
pub mod error;
pub mod exchange;
pub mod foreign;
pub mod gate;
pub mod image;
pub mod kernel;
pub mod machine;
pub mod packages;
pub mod pattern;
pub mod place;
pub mod savefile;
pub mod soak;
pub mod stories;
pub mod story;
pub mod survey;
pub mod tool;
pub mod wire;
pub mod xenctrl;
