//! Staying awake for a moment in the midst of a stream.
//!
//! A sleep and the wake-up cost two changes of context and an interrupt on another processor, and many times that where
//! the processors are themselves virtual and busy. More of a stream on the ring usually comes within the time that the
//! last piece took. Where it does not (a slow source, or one that waits for this very processor), the stub soon stops
//! trying.

use xen_front::clock::Clock;

/// How many times as long as it has just worked the stub stays awake.
const FACTOR: u64 = 4;

/// The longest that it stays awake, in microseconds, unless `awake_us=` on the kernel's command line says otherwise.
const MOST_US: u64 = 2_000;

/// The most sleeps between one try that was in vain and the next.
const MOST_SLEEPS: u32 = 64;

/// When to sleep.
pub(crate) struct Patience {
    clock: Clock,
    /// The longest that it stays awake, in nanoseconds.
    most_ns: u64,
    /// When it last began to work, in system time.
    worked_from_ns: u64,
    /// Sleeps until the next try.
    nr_sleeps: u32,
    /// Sleeps to come after the next try that is in vain.
    nr_vain: u32,
}

impl Patience {
    pub(crate) fn new(clock: Clock, command_line: &str) -> Self {
        let said = command_line.split_ascii_whitespace().find_map(|word| word.strip_prefix("awake_us="));
        let most_us = said.and_then(|text| text.parse().ok()).unwrap_or(MOST_US);
        let most_ns = most_us.saturating_mul(1000);
        Self { clock, most_ns, worked_from_ns: clock.now_ns(), nr_sleeps: 0, nr_vain: 1 }
    }

    /// Stays awake until `stirs`, as long as that is worth it; tells whether it does.
    pub(crate) fn stay_awake(&mut self, stirs: impl Fn() -> bool) -> bool {
        if self.nr_sleeps > 0 {
            self.nr_sleeps -= 1;
            return false;
        }
        let from_ns = self.clock.now_ns();
        let until_ns =
            from_ns + self.most_ns.min(from_ns.saturating_sub(self.worked_from_ns).saturating_mul(FACTOR));
        while !stirs() {
            if self.clock.now_ns() >= until_ns {
                self.nr_sleeps = self.nr_vain;
                self.nr_vain = MOST_SLEEPS.min(self.nr_vain * 2);
                return false;
            }
            core::hint::spin_loop();
        }
        self.nr_vain = 1;
        self.begin();
        true
    }

    /// Takes the stub for working from now on.
    pub(crate) fn begin(&mut self) {
        self.worked_from_ns = self.clock.now_ns();
    }
}
