//! The end that nobody wanted: a message on the console, then `SHUTDOWN_crash`.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::console;
use crate::hypercall::sched::{self, Reason};

static PANICKING: AtomicBool = AtomicBool::new(false);

/// Reports a panic on the console and crashes the domain; a panic on the way crashes it at once.
pub fn crash(info: &PanicInfo<'_>) -> ! {
    if !PANICKING.swap(true, Relaxed) {
        console::last_words(format_args!("{info}"));
    }
    sched::shutdown(Reason::Crash)
}

#[cfg(feature = "kernel")]
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    crash(info)
}

/// What the prebuilt `alloc` refers to in its landing pads. With `panic = "abort"` nothing ever unwinds to them.
#[cfg(feature = "kernel")]
mod unwind {
    #![allow(unsafe_code, reason = "symbols that the linker looks for")]

    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}

    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_Resume() -> ! {
        panic!("unwinding");
    }
}
