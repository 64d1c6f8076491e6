//! The order of pages in the stream, and how they are cut into records, do not matter.

use super::restore::{expect_superpages, restore_paused};
use crate::machine::Options;
use crate::soak::{Chance, Soak};
use crate::story::{Saved, Stage, Story, THROUGH_STUB, Telling, ensure};
use crate::survey::Survey;

/// Shuffled, cut otherwise, repeated.
pub(super) const ANY_ORDER: Story = Story {
    name: "stub-any-order",
    proves: "pages shuffled within and across batches, in batches of 1, 7 and 1024, with repeats: the same memory and the \
             same superpages, region by region, as when they come in order",
    options: Options::default,
    tell: any_order,
};

/// Any of it together.
pub(super) const SOAK: Soak = Soak {
    name: "any-order",
    proves: "in whatever order pages come and however they are cut and repeated: the same memory and the same superpages",
    options: Options::default,
    rounds: 30,
    tell: soak,
};

/// As nest-stream takes them. A page list of the guest's holes is long: only one of the three restores has it.
const ORDERS: &[&str] = &[
    "--batch 1 --drop-holes --shuffle-across --seed 1",
    "--batch 7 --drop-holes --shuffle-within --repeat-permille 200 --seed 2",
    "--batch 1024 --shuffle-across --repeat-permille 200 --seed 3",
];

const GUEST: &str = "pvh-128";

fn any_order(stage: &Stage) -> Telling {
    let (file, in_order) = in_order(stage)?;
    ORDERS.iter().try_for_each(|order| arrives(stage, &file, &in_order, order))
}

fn soak(stage: &Stage, chance: &mut Chance, rounds: u32) -> Telling {
    let (file, in_order) = in_order(stage)?;
    (0..rounds).try_for_each(|_| arrives(stage, &file, &in_order, &any(chance)))
}

/// Draws what nest-stream is to do.
fn any(chance: &mut Chance) -> String {
    let mut one_of = |choices: &[&'static str]| chance.pick(choices).copied().unwrap_or_default();
    let words = [
        one_of(&["--batch 1", "--batch 7", "--batch 100", "--batch 1024"]),
        one_of(&["", "--shuffle-within", "--shuffle-across"]),
        one_of(&["", "--repeat-permille 200", "--repeat-permille 900"]),
        one_of(&["", "--drop-holes"]),
    ];
    format!("{} --seed {}", words.join(" "), chance.below(1 << 16))
}

/// A file, and the guest's map after a restore in order.
fn in_order(stage: &Stage) -> Telling<(String, Survey)> {
    let Saved { file, fresh } = stage.saved(GUEST)?;
    restore_paused(stage, GUEST, &file)?;
    let now = Survey::take(stage, GUEST)?;
    expect_superpages(stage, &fresh, &now)?;
    stage.sh(&format!("xl destroy {GUEST}"))?;
    stage.expect_alone()?;
    Ok((file, now))
}

/// Restores the file in another order; what arrives is compared with the file as it was, and with what came in order.
fn arrives(stage: &Stage, file: &str, in_order: &Survey, order: &str) -> Telling {
    let other = "/var/lib/xen/save/other";
    stage.say(order);
    stage.sh(&format!("nest-stream reorder {file} {other} {order}"))?;
    stage.sh(&format!("{THROUGH_STUB}xl restore -p {other}"))?;
    let verdict = stage.sh(&format!("nest-oracle {file} $(xl domid {GUEST})"))?;
    stage.say(verdict.lines().next_back().unwrap_or_default());
    let now = Survey::take(stage, GUEST)?;
    ensure(now == *in_order, || format!("in order\n{in_order:?}\nin another\n{now:?}"))?;
    stage.sh(&format!("xl unpause {GUEST}"))?;
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("xl destroy {GUEST}"))?;
    stage.expect_alone()
}
