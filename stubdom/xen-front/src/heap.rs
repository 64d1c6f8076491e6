//! The heap: all of the domain's memory that nothing else holds, as one run of virtual addresses.
#![allow(unsafe_code, reason = "a global allocator is unsafe by its trait")]

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};

use linked_list_allocator::Heap as Holes;
use spin::Mutex;

/// A first-fit allocator behind a lock that is never contended: there is one vCPU and no upcall.
pub(crate) struct Heap(Mutex<Holes>);

#[cfg_attr(feature = "kernel", global_allocator)]
static HEAP: Heap = Heap(Mutex::new(Holes::empty()));

// SAFETY: every allocation is the inner heap's, which hands out disjoint memory of its one run; the lock serialises.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if let Some(ptr) = NonNull::new(ptr) {
            // SAFETY: the caller frees what `alloc` gave, with the layout it asked for: GlobalAlloc's contract.
            unsafe { self.0.lock().deallocate(ptr, layout) };
        }
    }
}

/// Gives the heap its memory.
///
/// # Safety
/// `start..start + len` is mapped, writable, used by nobody else and stays so for ever; called once.
pub(crate) unsafe fn init(start: usize, len: usize) {
    // SAFETY: the caller's obligation.
    unsafe { HEAP.0.lock().init(start as *mut u8, len) };
}

/// Returns the bytes in use and the bytes free.
pub fn usage() -> (usize, usize) {
    let heap = HEAP.0.lock();
    (heap.used(), heap.free())
}
