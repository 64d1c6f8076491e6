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

use super::exchange::save_and_restore;
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
pub(super) use two_hosts::{BACK_AND_FORTH, STOCK_HOST, TWO_HOSTS};
use watched::Watched;

/// A PVH guest with a vif that writes its memory meanwhile.
pub(super) const PVH: Story = Story {
    name: "live-pvh",
    proves: "a PVH guest that keeps writing its memory migrates live to its own host through the stub: several passes, every \
             byte, its superpages, no byte of its TCP connection lost or doubled; whoever watches sees a bar, rates and what \
             comes again",
    options: Options::default,
    tell: |stage| busy_guest_moves(stage, &[BUSY]),
};

/// The same with a device model, whose records pass behind the libxc stream.
pub(super) const HVM: Story = Story {
    name: "live-hvm",
    proves: "an HVM guest with its device model, which keeps writing its memory, migrates live through the stub: several \
             passes, every byte, its superpages, the device model's state untouched, the same picture on its screen, its \
             serial port at work, its TCP connection alive",
    options: Options::default,
    tell: |stage| {
        device_model_moves(stage, &[BUSY])?;
        stage.sh(&format!("xl destroy {HVM_GUEST}"))?;
        stage.expect_alone()
    },
};

/// Both at several rates.
pub(super) const RATES_SOAK: Soak = Soak {
    name: "live-rates",
    proves: "PVH and HVM guests that keep writing their memory, at several rates, migrate live to their own host through the \
             stub: several passes where there is something to send again, every byte, their superpages, screen and TCP \
             connection; stock xl saves and restores the HVM guest after",
    options: Options::default,
    rounds: 1,
    tell: |stage, _, rounds| {
        (0..rounds).try_for_each(|_| {
            busy_guest_moves(stage, &RATES)?;
            device_model_moves(stage, &RATES)?;
            save_and_restore(stage, HVM_GUEST)?;
            stage.sh(&format!("xl destroy {HVM_GUEST}"))?;
            stage.expect_alone()
        })
    },
};

/// Pages that a witness writes in a second, one migration each.
const RATES: [u64; 3] = [64, BUSY, 2048];

/// From which rate on more than two passes over memory come: with less, hardly a page is left to send again.
const BUSY: u64 = 512;

/// Migrates a new guest at each of these rates under the eyes of `stubctl status --watch`.
fn busy_guest_moves(stage: &Stage, rates: &[u64]) -> Telling {
    let guest = "pvh-net";
    let told = with_new_guest(stage, guest, || {
        let fresh = Survey::take(stage, guest)?;
        let exchange = Exchange::start(stage, "10.80.0.2")?;
        let watched = Watched::start(stage)?;
        for &rate in rates {
            // The stream waits once, before its last part, for those who watch once a second.
            let receiver = Receiver::with_deed(stage, guest, "state", "sleep 2")?;
            moves(stage, guest, receiver, &fresh, rate)?;
        }
        stage.say(watched.finish(stage)?);
        stage.say(exchange.finish(stage)?);
        stage.sh(&format!("xl destroy {guest}")).map(drop)
    });
    Watched::end(stage)?;
    told?;
    stage.expect_alone()
}

const HVM_GUEST: &str = "hvm-net";

/// The guest is there afterwards.
fn device_model_moves(stage: &Stage, rates: &[u64]) -> Telling {
    let guest = HVM_GUEST;
    stage.create(guest)?;
    let fresh = Survey::take(stage, guest)?;
    screen::dump(stage, guest, "before")?;
    let exchange = Exchange::start(stage, "10.80.0.4")?;
    for &rate in rates {
        let emulator = Emulator::keep(stage, guest)?;
        moves(stage, guest, emulator.receiver(), &fresh, rate)?;
        stage.say(emulator.expect_untouched(stage)?);
    }
    stage.say(exchange.finish(stage)?);
    screen::dump(stage, guest, "after")?;
    screen::expect_same(stage, "before", "after")?;
    screen::expect_serial(stage, guest)
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
