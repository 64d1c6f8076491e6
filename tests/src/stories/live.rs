//! Live migration through the stub: a running guest, sent by stock xl while it writes its memory.

mod downtime;
mod eight;
mod exchange;
mod failures;
mod receiver;
mod screen;
mod traces;
mod two_hosts;
mod watched;

use super::restore::expect_superpages;
use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};
use crate::survey::Survey;
pub(super) use downtime::{DOWNTIME, local_migration};
pub(super) use eight::EIGHT;
use exchange::Exchange;
pub(super) use failures::{FAILURES, MATRIX, MATRIX_TCP, SOAK};
use receiver::Receiver;
pub(super) use two_hosts::TWO_HOSTS;
use watched::Watched;

/// A PVH guest that writes its memory meanwhile.
pub(super) const PVH: Story = Story {
    name: "live-pvh",
    proves: "a PVH guest that keeps writing its memory migrates live to its own host through the stub: several passes, \
             every byte, its superpages; whoever watches sees a bar, rates and what comes again",
    options: Options::default,
    tell: |stage| busy_guest_moves(stage, "pvh-128", 2048),
};

/// The same with a device model, whose records pass behind the libxc stream.
pub(super) const HVM: Story = Story {
    name: "live-hvm",
    proves: "an HVM guest with its device model migrates live through the stub: several passes, every byte, its \
             superpages, the same picture on its screen, its serial port at work; and it can be saved and restored by \
             stock xl after",
    options: Options::default,
    tell: device_model_moves,
};

fn device_model_moves(stage: &Stage) -> Telling {
    let (guest, file) = ("hvm-256", "/var/lib/xen/save/hvm-256");
    stage.create_with(guest, "'vga=\"stdvga\"' memory=384")?; // 16 MiB are the card's
    screen::dump(stage, guest, "before")?;
    moves(stage, guest, 1024)?;
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
    tell: connection_survives,
};

fn connection_survives(stage: &Stage) -> Telling {
    let guest = "pvh-net";
    stage.create(guest)?;
    let exchange = Exchange::start(stage, "10.80.0.2")?;
    let migration = Receiver::through_stub(stage)?.migrate(stage, guest)?;
    migration.expect_success()?;
    let (nr_answers, gap_s) = exchange.finish(stage)?;
    stage.say(format!("{nr_answers} answers over one connection, the longest wait {gap_s:.1} s"));
    stage.ask(guest, "verify")?;
    stage.sh(&format!("xl destroy {guest}"))?;
    stage.expect_alone()
}

/// Migrates a new guest under the eyes of `stubctl status --watch`.
fn busy_guest_moves(stage: &Stage, guest: &str, rate: u64) -> Telling {
    stage.create(guest)?;
    let watched = Watched::start(stage)?;
    moves(stage, guest, rate)?;
    stage.say(watched.finish(stage)?);
    stage.sh(&format!("xl destroy {guest}"))?;
    stage.expect_alone()
}

/// Migrates a guest whose witness writes `rate` pages a second.
fn moves(stage: &Stage, guest: &str, rate: u64) -> Telling {
    let fresh = Survey::take(stage, guest)?;
    stage.ask(guest, &format!("rate {rate}"))?;
    // The stream waits once, before its last part, for those who watch once a second.
    let migration = Receiver::with_deed(stage, guest, "state", "sleep 2")?.migrate(stage, guest)?;
    migration.expect_success()?;
    let nr_passes = migration.nr_passes()?;
    stage.say(format!("{nr_passes} passes; {}", migration.line("restored in")?));
    ensure(nr_passes > 2, || format!("expected more than two passes over memory, got {nr_passes}"))?;
    let nr_lines = migration.text.lines().filter(|line| line.starts_with("stubctl: info")).count();
    ensure(nr_lines <= 12, || format!("{nr_lines} lines of stubctl's in the log, expected at most 12"))?;
    expect_superpages(stage, &fresh, &Survey::take(stage, guest)?)?;
    stage.ask(guest, "verify")?;
    stage.ask(guest, "ticking").map(drop)
}
