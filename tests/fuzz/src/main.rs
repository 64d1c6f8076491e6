//! The seeded loop: `cargo run --profile fuzz -p fuzz -- --help`.

use clap::Parser;
use fuzz::choices::Choices;
use fuzz::{DOORS, Door};
use migration::fake::FakeXen;
use std::cell::Cell;
use std::panic;
use std::process::ExitCode;
use std::time::Instant;

/// Bytes of an execution's input: more choices follow from them.
const INPUT_BYTES: usize = 16;

/// Executes the doors by which bytes of others come in, with random choices that follow from the seed.
#[derive(Debug, Parser)]
struct Options {
    /// Doors; all of them without a name.
    doors: Vec<String>,
    /// Where the choices come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many times as many executions as in `scripts/test`.
    #[arg(long, default_value_t = 1)]
    times: u64,
    /// Only the execution of this number: to see a fault again.
    #[arg(long)]
    only: Option<u64>,
}

thread_local! {
    /// The execution under way.
    static CURRENT: Cell<(&'static str, u64)> = const { Cell::new(("", 0)) };
}

fn main() -> ExitCode {
    let options = Options::parse();
    let is_meant =
        |door: &&Door| options.doors.is_empty() || options.doors.iter().any(|name| name == door.name);
    let doors: Vec<&Door> = DOORS.iter().filter(is_meant).collect();
    if doors.is_empty() {
        let names: Vec<&str> = DOORS.iter().map(|door| door.name).collect();
        eprintln!("expected one of {}, got {}", names.join(", "), options.doors.join(", "));
        return ExitCode::from(2);
    }
    report_panics(options.seed);
    for door in doors {
        run(door, &options);
    }
    ExitCode::SUCCESS
}

/// Says which execution panicked; the death of a fake stub is none.
fn report_panics(seed: u64) {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if info.payload_as_str() != Some(FakeXen::DEATH) {
            let (door, nr) = CURRENT.get();
            eprintln!("to see this again: scripts/soak fuzz {door} --seed {seed} --only {nr}");
            usual(info);
        }
    }));
}

fn run(door: &Door, options: &Options) {
    let began = Instant::now();
    let numbers = match options.only {
        Some(nr) => nr..nr.saturating_add(1),
        None => 0..door.nr_short.saturating_mul(options.times),
    };
    let nr_done = numbers.end - numbers.start;
    for nr in numbers {
        CURRENT.set((door.name, nr));
        (door.body)(&input(options.seed, nr));
    }
    println!(
        "{}: {nr_done} executions in {:.1} s: {}",
        door.name,
        began.elapsed().as_secs_f64(),
        door.proves
    );
}

/// The input of an execution: random bytes that follow from its seed and number.
fn input(seed: u64, nr: u64) -> Vec<u8> {
    let key = [seed.to_le_bytes(), nr.to_le_bytes()].concat();
    let mut choices = Choices::new(&key);
    choices.bytes(key.len());
    choices.bytes(INPUT_BYTES)
}
