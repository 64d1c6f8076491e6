//! What the stock toolstack does: the ground on which ours is compared.

use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};

/// Stock `xl save` and `xl restore`.
pub(super) const SAVE_AND_RESTORE: Story = Story {
    name: "stock-restore",
    proves: "a PVH guest saved and restored by stock xl goes on with every byte, and gives all its memory back",
    options: Options::default,
    tell: save_and_restore,
};

fn save_and_restore(stage: &Stage) -> Telling {
    stage.create("pvh-128")?;
    stage.ask("pvh-128", "freeze")?;
    let before = stage.ask("pvh-128", "verify")?;
    stage.sh("xl save pvh-128 /var/lib/xen/save/pvh-128")?;
    let free = stage.settled_free_kib()?;
    stage.sh("xl restore /var/lib/xen/save/pvh-128")?;
    let after = stage.ask("pvh-128", "verify")?;
    let (before, after) = (before.value("sum")?, after.value("sum")?);
    ensure(before == after, || format!("the checksum was {before} and is {after}"))?;
    stage.say(format!("checksum {after}, {free} KiB free"));
    stage.ask("pvh-128", "thaw")?;
    stage.ask("pvh-128", "ticking")?;
    stage.sh("xl shutdown -w pvh-128")?;
    stage.expect_free(free)
}
