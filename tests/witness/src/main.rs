//! The witness: runs in a guest, fills its memory with a pattern, keeps writing parts of it anew, and finds every
//! wrong byte.
//!
//! The kernel's command line configures it: `witness.mb` (memory to witness, MiB), `witness.rate` (pages written anew
//! a second), `witness.seed`, `witness.interval` (seconds between verifications of its own, 0 for none). It talks on the
//! console, a line that starts with `witness:` for everything it says; the lines it takes are `verify TAG`,
//! `freeze TAG` (no more writes), `thaw TAG` and `rate PAGES TAG`. Each is answered by a line that ends with
//! `tag=TAG`, so that whoever asked knows the answer.

mod memory;
mod pattern;

use memory::Memory;
use std::io::{self, BufRead, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Writes are done in portions, this often.
const PORTION: Duration = Duration::from_millis(100);

/// Portions in a second.
const PORTIONS_PER_S: u64 = 10;

/// Pages in a MiB.
const PAGES_PER_MIB: usize = 256;

/// What the command line says.
struct Settings {
    mib: usize,
    rate: u64,
    seed: u64,
    interval: u64,
}

impl Settings {
    fn parse(command_line: &str) -> Self {
        let number = |key: &str, default: u64| {
            let values =
                command_line.split_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            values.filter_map(|value| value.parse().ok()).next_back().unwrap_or(default)
        };
        Self {
            mib: usize::try_from(number("witness.mb", 64)).unwrap_or(64),
            rate: number("witness.rate", 256),
            seed: number("witness.seed", 1),
            interval: number("witness.interval", 10),
        }
    }
}

struct Witness {
    memory: Memory,
    rate: u64,
    frozen: bool,
    nr_ticks: u64,
}

fn main() {
    let settings = Settings::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
    let memory = Memory::fill(settings.seed, settings.mib * PAGES_PER_MIB);
    let mut witness = Witness { memory, rate: settings.rate, frozen: false, nr_ticks: 0 };
    let Settings { mib, rate, seed, interval } = settings;
    say(&format!(
        "ready mib={mib} pages={} rate={rate} seed={seed} interval={interval}",
        witness.memory.nr_pages()
    ));
    witness.work(&console_lines(), interval);
}

/// Lines from the console, read beside the work.
fn console_lines() -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
        std::thread::park(); // no console any more: keep the channel open, the work goes on
        drop(sender);
    });
    receiver
}

impl Witness {
    /// Writes, ticks, verifies and obeys, for ever.
    fn work(&mut self, commands: &Receiver<String>, interval_s: u64) {
        let mut next_portion = Instant::now();
        let mut nr_portions = 0;
        loop {
            match commands.recv_timeout(next_portion.saturating_duration_since(Instant::now())) {
                Ok(line) => self.obey(&line),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    next_portion = Instant::now() + PORTION;
                    nr_portions += 1;
                    self.portion(nr_portions, interval_s);
                }
            }
        }
    }

    /// One tenth of a second's work.
    fn portion(&mut self, number: u64, interval_s: u64) {
        if !self.frozen {
            let due = self.rate * (number % PORTIONS_PER_S + 1) / PORTIONS_PER_S;
            let done = self.rate * (number % PORTIONS_PER_S) / PORTIONS_PER_S;
            (done..due).for_each(|_| self.memory.dirty_one());
        }
        if number.is_multiple_of(PORTIONS_PER_S) {
            self.nr_ticks += 1;
            say(&format!("tick n={} writes={}", self.nr_ticks, self.memory.nr_writes()));
            if interval_s > 0 && self.nr_ticks.is_multiple_of(interval_s) {
                self.verify("own");
            }
        }
    }

    fn obey(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["verify", tag] => self.verify(tag),
            ["freeze", tag] => self.freeze(true, tag),
            ["thaw", tag] => self.freeze(false, tag),
            ["rate", pages, tag] => {
                self.rate = pages.parse().unwrap_or(self.rate);
                say(&format!("rate={} tag={tag}", self.rate));
            }
            [] => (),
            _ => say(&format!("unknown command {line:?}: verify, freeze, thaw TAG or rate PAGES TAG")),
        }
    }

    fn freeze(&mut self, frozen: bool, tag: &str) {
        self.frozen = frozen;
        let word = if frozen { "frozen" } else { "thawed" };
        say(&format!("{word} writes={} tag={tag}", self.memory.nr_writes()));
    }

    fn verify(&self, tag: &str) {
        let verdict = self.memory.verify();
        verdict.findings.iter().for_each(|finding| say(&format!("WRONG {finding}")));
        let word = if verdict.nr_wrong_pages == 0 { "right" } else { "WRONG" };
        say(&format!(
            "verified {word} pages={} wrong_pages={} wrong_words={} writes={} sum={:#018x} tag={tag}",
            self.memory.nr_pages(),
            verdict.nr_wrong_pages,
            verdict.nr_wrong_words,
            self.memory.nr_writes(),
            verdict.sum
        ));
    }
}

/// Prints a line in one piece, so that the kernel's own messages do not tear it.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(format!("witness: {line}\n").as_bytes()); // without a console the work goes on
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_overrides_the_defaults() {
        let settings = Settings::parse("console=hvc0 quiet witness.mb=160 witness.rate=0 witness.seed=42");
        assert_eq!((settings.mib, settings.rate, settings.seed, settings.interval), (160, 0, 42, 10));
    }

    #[test]
    fn a_second_of_portions_writes_the_rate() {
        let mut witness = Witness { memory: Memory::fill(1, 8), rate: 37, frozen: false, nr_ticks: 0 };
        (1..=10).for_each(|number| witness.portion(number, 0));
        assert_eq!((witness.memory.nr_writes(), witness.nr_ticks), (37, 1));
        witness.frozen = true;
        (11..=20).for_each(|number| witness.portion(number, 0));
        assert_eq!((witness.memory.nr_writes(), witness.nr_ticks), (37, 2));
    }
}
