//! Little memory: the superpage is split, and without any memory nothing happens.

use super::state::State;
use super::{GUEST, NR_PAGES, exchange};
use crate::machine::Options;
use crate::stories::scarce::hog;
use crate::story::{Stage, Story, Telling, ensure};
use crate::survey::Survey;

/// Memory in single pages, then none.
pub(in crate::stories) const SCARCE: Story = Story {
    name: "exchange-scarce",
    proves: "where Xen has no 2 MiB of memory in one piece an exchange splits the superpage and says so; where it has no \
             page at all it refuses, and the guest is untouched; afterwards the next attempt succeeds",
    options: Options::default,
    tell: scarce,
};

/// A paused domain that takes all that is left, page by page; it begins to count its pages at so many MiB.
const FILLER: &str =
    "xl create -p -q /etc/xen/stubdom/guests/pv-128.cfg 'name=\"filler\"' && xl mem-max filler 32768";

fn fill(stage: &Stage, first_mib: u64) -> Telling {
    stage.sh(&format!("nest-fragment --fill $(xl domid filler) {first_mib}")).map(|said| stage.say(said))
}

fn scarce(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    stage.sh(FILLER)?;
    let mib = hog(stage)?;
    fill(stage, 1024)?;
    stage.say(stage.sh(&format!("nest-fragment $(xl domid hog) {mib}"))?);
    let before = Survey::take(stage, GUEST)?;
    let split = exchange(stage, GUEST, "0x9005", "")?;
    stage.say(split.texts());
    ensure(split.nr_with("scope", "split-for-memory") == 1, || split.texts())?;
    ensure(split.texts().contains("its superpage is split"), || split.texts())?;
    split.expect_map(&before, &Survey::take(stage, GUEST)?)?;
    fill(stage, 16384)?;
    stage.ask(GUEST, "freeze")?;
    let before = State::take(stage, GUEST, NR_PAGES)?;
    let none = exchange(stage, GUEST, "0xa005", "")?;
    stage.say(none.texts());
    ensure(none.nr_with("reason", "no-memory") == 1, || none.texts())?;
    before.expect_same(stage, GUEST, NR_PAGES)?;
    stage.ask(GUEST, "thaw")?;
    stage.sh("xl destroy hog && xl destroy filler")?;
    let again = exchange(stage, GUEST, "0xa005", "")?;
    ensure(again.nr_with("outcome", "superpage") == 1, || again.texts())?;
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("xl destroy {GUEST}"))?;
    super::bring_back(stage, &[&split, &again])
}
