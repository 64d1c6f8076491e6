//! The nest: real Xen in QEMU.
