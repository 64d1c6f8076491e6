//! The PV console's output (`xen/include/public/io/console.h`) and the `log` back end that writes to it.
//!
//! **Takes** text. **Gives** it to dom0's console daemon. **Never** blocks for ever: with a full ring it waits up to
//! [`PATIENCE_NS`], then drops text until the daemon reads again.
#![allow(unsafe_code, reason = "a panic takes the console from whoever holds it")]

use core::fmt::{self, Write};
use core::sync::atomic::{Ordering, fence};

use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;

use crate::clock::Clock;
use crate::events::Events;
use crate::hypercall::event_channel;
use crate::shared_mem::SharedMem;
use xen_abi::abi::{XENCONS_IN_BYTES, XENCONS_OUT_BYTES};
use xen_abi::byte_ring as ring;
use xen_abi::types::Port;

/// How long a write waits for a daemon that does not read, in nanoseconds.
pub const PATIENCE_NS: u64 = 100_000_000;

/// How long the last words of a panic wait to be read, in nanoseconds.
const LAST_PATIENCE_NS: u64 = 2_000_000_000;

const OUT: usize = XENCONS_IN_BYTES;
const OUT_CONS: usize = OUT + XENCONS_OUT_BYTES + 8;
const OUT_PROD: usize = OUT_CONS + 4;

/// The console, where a panic can reach it.
static CONSOLE: Mutex<Option<Console>> = Mutex::new(None);

/// The output half of the console ring.
struct Console {
    page: SharedMem,
    port: Port,
    events: Events,
    clock: Clock,
    /// The daemon has let one write wait in vain: drop text without waiting until there is space again.
    stalled: bool,
}

/// Makes the ring page the console and the `log` back end.
pub(crate) fn init(page: SharedMem, port: Port, events: Events, clock: Clock) {
    *CONSOLE.lock() = Some(Console { page, port, events, clock, stalled: false });
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Writes text as it is; before the console is there it goes nowhere.
pub fn write(text: &str) {
    if let Some(console) = CONSOLE.lock().as_mut() {
        console.put(text.as_bytes());
        console.notify();
    }
}

/// Writes the message of a panic and waits a while for it to be read.
///
/// Of a panic inside a console write the words follow what was half written.
pub(crate) fn last_words(message: fmt::Arguments<'_>) {
    if CONSOLE.is_locked() {
        // SAFETY: whoever holds the lock is this vCPU, the only one, which never goes back there. Its write may be cut
        // between two steps; each of them leaves the console's few integers valid.
        unsafe { CONSOLE.force_unlock() };
    }
    let mut guard = CONSOLE.lock();
    if let Some(console) = guard.as_mut() {
        // Writing to the console cannot fail; text that does not fit is dropped.
        let _ = writeln!(console, "\r\n{message}\r");
        console.wait(LAST_PATIENCE_NS, |console| console.nr_waiting() == 0);
    }
}

impl Console {
    /// Copies bytes into the ring without telling the daemon.
    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.has_space() {
            let taken = self.push(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }

    /// Copies what fits into the ring's next run; returns its length.
    fn push(&mut self, bytes: &[u8]) -> usize {
        let prod = self.page.read::<u32>(OUT_PROD);
        let cons = self.page.read::<u32>(OUT_CONS);
        // An index that makes no sense reads as a full ring: the text is dropped.
        let Some(run) = ring::writable(cons, prod, XENCONS_OUT_BYTES, bytes.len()) else { return 0 };
        self.page.copy_in(OUT + run.offset, bytes.get(..run.len).unwrap_or_default());
        fence(Ordering::Release); // the text before the index that covers it
        self.page.write(OUT_PROD, ring::advance(prod, run.len));
        run.len
    }

    fn nr_waiting(&self) -> usize {
        let prod = self.page.read::<u32>(OUT_PROD);
        ring::nr_filled(self.page.read::<u32>(OUT_CONS), prod, XENCONS_OUT_BYTES).unwrap_or(XENCONS_OUT_BYTES)
    }

    fn has_space(&mut self) -> bool {
        let has_space = |console: &Self| console.nr_waiting() < XENCONS_OUT_BYTES;
        if !self.stalled && !has_space(self) {
            self.wait(PATIENCE_NS, has_space);
        }
        self.stalled = !has_space(self);
        !self.stalled
    }

    /// Sleeps until `done` or for `patience_ns`, whichever is first.
    fn wait(&self, patience_ns: u64, done: impl Fn(&Self) -> bool) {
        let deadline = self.clock.now_ns().saturating_add(patience_ns);
        self.notify();
        while !done(self) && self.clock.now_ns() < deadline {
            self.events.take(self.port);
            if done(self) || self.events.wait(&[self.port], Some(deadline)).is_err() {
                return;
            }
        }
    }

    fn notify(&self) {
        fence(Ordering::SeqCst); // the index is out before the daemon is told
        // The port is open as long as the domain lives; without a daemon there is nobody to tell.
        let _ = event_channel::send(self.port);
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

static LOGGER: Logger = Logger;

/// `[   12.345678] WARN  module: text`
struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut guard = CONSOLE.lock();
        let Some(console) = guard.as_mut() else { return };
        let micros = console.clock.now_ns() / 1000;
        // Writing to the console cannot fail; text that does not fit is dropped.
        let _ = write!(
            console,
            "[{:>5}.{:06}] {:<5} {}: {}\r\n",
            micros / 1_000_000,
            micros % 1_000_000,
            record.level(),
            record.target(),
            record.args()
        );
        console.notify();
    }

    fn flush(&self) {}
}
