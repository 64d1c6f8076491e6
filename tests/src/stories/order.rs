//! The order of pages in the stream, and how they are cut into records, do not matter.

use super::restore::{expect_superpages, restore_paused};
use crate::machine::Options;
use crate::story::{Stage, Story, Telling};
use crate::survey::Survey;

/// Shuffled, cut otherwise, repeated.
pub(super) const ANY_ORDER: Story = Story {
    name: "stub-any-order",
    proves: "pages shuffled within and across batches, in batches of 1, 7 and 1024, with repeats: the same memory and the \
             same superpages",
    options: Options::default,
    tell: any_order,
};

/// As nest-stream takes them.
const ORDERS: &[&str] = &[
    "--shuffle-within --seed 1",
    "--shuffle-across --seed 2",
    "--batch 1 --drop-holes",
    "--batch 7",
    "--batch 7 --shuffle-across --seed 3",
    "--batch 1024 --repeat-permille 200 --seed 4",
    "--shuffle-across --repeat-permille 200 --seed 5",
];

fn any_order(stage: &Stage) -> Telling {
    let (guest, file, other) = ("pvh-128", "/var/lib/xen/save/pvh-128", "/var/lib/xen/save/other");
    stage.create(guest)?;
    let fresh = Survey::take(stage, guest)?;
    stage.sh(&format!("xl save {guest} {file}"))?;
    for order in ORDERS {
        stage.say(order);
        stage.sh(&format!("nest-stream reorder {file} {other} {order}"))?;
        restore_paused(stage, guest, other)?;
        stage.sh(&format!("nest-oracle {file} $(xl domid {guest})"))?;
        expect_superpages(stage, &fresh, &Survey::take(stage, guest)?)?;
        stage.sh(&format!("xl unpause {guest}"))?;
        stage.ask(guest, "verify")?;
        stage.sh(&format!("xl destroy {guest}"))?;
        stage.expect_alone()?;
    }
    Ok(())
}
