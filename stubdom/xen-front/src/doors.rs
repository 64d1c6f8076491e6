//! What fuzzing drives: the parts of this crate that take bytes of others and are private.
//!
//! Each takes any bytes: what a peer writes, and how it is cut. A panic is a fault of ours.
#![allow(unsafe_code, reason = "plays the peer that writes shared pages")]

use crate::shared_mem::SharedMem;
use crate::{vchan, xenstore};
use alloc::boxed::Box;
use alloc::vec;
use core::ptr::NonNull;

/// A vchan whose peer writes its page and indices as the bytes say.
///
/// # Panics
/// It does not refuse what makes no sense.
pub fn vchan(input: &[u8]) {
    vchan::doors::drive(input);
}

/// Xenstore's messages, in pieces.
///
/// # Panics
/// A message is not as long as it says.
pub fn xenstore(input: &[u8]) {
    xenstore::doors::drive(input);
}

/// Pages for one execution, and a second view of them: the peer's.
pub(crate) struct Shared {
    base: NonNull<[u64]>,
}

impl Shared {
    pub(crate) fn new(nr_bytes: usize) -> Self {
        let pages = vec![0_u64; nr_bytes / size_of::<u64>()].into_boxed_slice();
        Self { base: NonNull::from(Box::leak(pages)) }
    }

    /// Opens a view.
    ///
    /// # Safety
    /// The view is dropped before `self`.
    pub(crate) unsafe fn view(&self) -> SharedMem {
        // SAFETY: the memory is this value's, mapped as long as the caller promises, and touched through such views only.
        unsafe { SharedMem::new(self.base.cast(), self.base.len() * size_of::<u64>()) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: `new` leaked this box, nobody else frees it, and no view of it is left.
        drop(unsafe { Box::from_raw(self.base.as_ptr()) });
    }
}
