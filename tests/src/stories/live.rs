//! Live migration through the stub: a running guest, sent by stock xl while it writes its memory.

mod cases;
mod downtime;
mod eight;
mod emulator;
mod exchange;
mod failures;
mod receiver;
mod screen;
mod traces;
mod two_hosts;
mod watched;

use super::restore::expect_superpages;
use crate::machine::Options;
use crate::soak::Soak;
use crate::story::{Stage, Story, Telling, ensure};
use crate::survey::Survey;
pub(super) use downtime::{DOWNTIME, local_migration};
pub(super) use eight::EIGHT;
use emulator::Emulator;
use exchange::Exchange;
pub(super) use failures::{FAILURES, MATRIX, MATRIX_TCP, SOAK};
use receiver::{Receiver, with_new_guest};
pub(super) use two_hosts::{BACK_AND_FORTH, TWO_HOSTS};
use watched::Watched;

/// A PVH guest that writes its memory meanwhile.
pub(super) const PVH: Story = Story {
    name: "live-pvh",
    proves: "a PVH guest that keeps writing its memory migrates live to its own host through the stub: several passes, every \
             byte, its superpages; whoever watches sees a bar, rates and what comes again",
    options: Options::default,
    tell: |stage| busy_guest_moves(stage, "pvh-128", &RATES[2..]),
};

/// The same at several rates.
pub(super) const RATES_SOAK: Soak = Soak {
    name: "live-rates",
    proves: "a PVH guest that keeps writing its memory, at several rates, migrates live to its own host through the stub: \
             several passes where there is something to send again, every byte, its superpages",
    options: Options::default,
    rounds: 1,
    tell: |stage, _, rounds| (0..rounds).try_for_each(|_| busy_guest_moves(stage, "pvh-128", &RATES)),
};

/// The same with a device model, whose records pass behind the libxc stream, and a vif.
pub(super) const HVM: Story = Story {
    name: "live-hvm",
    proves: "an HVM guest with its device model migrates live through the stub, at several rates: several passes, every \
             byte, its superpages, the device model's state untouched, the same picture on its screen, its serial port at \
             work, its TCP connection alive; and it can be saved and restored by stock xl after",
    options: Options::default,
    tell: device_model_moves,
};

/// Pages that a witness writes in a second, one migration each.
const RATES: [u64; 3] = [64, 512, 2048];

/// From which rate on more than two passes over memory come: with less, hardly a page is left to send again.
const BUSY: u64 = 512;

/// Migrates a new guest at each of these rates under the eyes of `stubctl status --watch`.
fn busy_guest_moves(stage: &Stage, guest: &str, rates: &[u64]) -> Telling {
    let told = with_new_guest(stage, guest, || {
        let fresh = Survey::take(stage, guest)?;
        let watched = Watched::start(stage)?;
        for &rate in rates {
            // The stream waits once, before its last part, for those who watch once a second.
            let receiver = Receiver::with_deed(stage, guest, "state", "sleep 2")?;
            moves(stage, guest, receiver, &fresh, rate)?;
        }
        stage.say(watched.finish(stage)?);
        stage.sh(&format!("xl destroy {guest}")).map(drop)
    });
    Watched::end(stage)?;
    told?;
    stage.expect_alone()
}

fn device_model_moves(stage: &Stage) -> Telling {
    let (guest, file) = ("hvm-net", "/var/lib/xen/save/hvm-net");
    stage.create(guest)?;
    let fresh = Survey::take(stage, guest)?;
    screen::dump(stage, guest, "before")?;
    let exchange = Exchange::start(stage, "10.80.0.4")?;
    for rate in [RATES[1], RATES[2]] {
        let emulator = Emulator::keep(stage, guest)?;
        moves(stage, guest, emulator.receiver(), &fresh, rate)?;
        stage.say(emulator.expect_untouched(stage)?);
    }
    stage.say(exchange.finish(stage)?);
    screen::dump(stage, guest, "after")?;
    screen::expect_same(stage, "before", "after")?;
    screen::expect_serial(stage, guest)?;
    stage.sh(&format!("xl save {guest} {file} && xl restore {file}"))?;
    stage.ask(guest, "verify")?;
    stage.sh(&format!("xl destroy {guest}"))?;
    stage.expect_alone()
}

/// A guest with a vif.
pub(super) const NET: Story = Story {
    name: "live-net",
    proves: "a TCP connection between dom0 and a guest goes on through a live migration: no byte is lost and none comes twice",
    options: Options::default,
    tell: |stage| {
        let guest = "pvh-net";
        with_new_guest(stage, guest, || connection_survives(stage, guest))?;
        stage.expect_alone()
    },
};

fn connection_survives(stage: &Stage, guest: &str) -> Telling {
    stage.ask(guest, &format!("rate {}", RATES[2]))?;
    let exchange = Exchange::start(stage, "10.80.0.2")?;
    let migration = Receiver::through_stub(stage)?.migrate(stage, guest)?;
    migration.expect_success()?;
    migration.expect_passes(RATES[2])?;
    stage.say(exchange.finish(stage)?);
    stage.ask(guest, "verify")?;
    stage.sh(&format!("xl destroy {guest}")).map(drop)
}

/// Migrates a guest whose witness writes `rate` pages a second.
fn moves(stage: &Stage, guest: &str, receiver: Receiver, fresh: &Survey, rate: u64) -> Telling {
    stage.ask(guest, &format!("rate {rate}"))?;
    let migration = receiver.migrate(stage, guest)?;
    migration.expect_success()?;
    let nr_passes = migration.expect_passes(rate)?;
    stage.say(format!("{rate} pages a second: {nr_passes} passes; {}", migration.line("restored in")?));
    let nr_lines = migration.text.lines().filter(|line| line.starts_with("stubctl: info")).count();
    ensure(nr_lines <= 12, || format!("{nr_lines} lines of stubctl's in the log, expected at most 12"))?;
    migration.line(LIBXLS_PROGRESS)?;
    expect_superpages(stage, fresh, &Survey::take(stage, guest)?)?;
    stage.ask(guest, "verify")?;
    stage.ask(guest, "ticking").map(drop)
}

/// What libxl prints of the progress that stubctl reports in its protocol, in front of the numbers.
const LIBXLS_PROGRESS: &str = " Memory: ";
