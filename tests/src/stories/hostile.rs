//! Bad input: one clear line, nothing left, and the next restore succeeds.

use crate::machine::Options;
use crate::soak::Chance;
use crate::story::{Stage, Story, THROUGH_STUB, Telling, ensure};

/// One thing wrong in the stream.
pub(super) const DAMAGED: Story = Story {
    name: "stub-damaged",
    proves: "each kind of damage to the stream gives one clear line and an exit code, leaves no domain and no page",
    options: Options::default,
    tell: damaged,
};

/// The stream ends early.
pub(super) const CUT: Story = Story {
    name: "stub-cut",
    proves: "a stream cut before any record or at any byte gives one clear line and an exit code, leaves no domain and no \
             page",
    options: Options::default,
    tell: cut,
};

const GUEST: &str = "pvh-128";
const FILE: &str = "/var/lib/xen/save/pvh-128";
const BAD: &str = "/var/lib/xen/save/bad";

/// The one damage of nest-stream that is none: an optional record of an unknown type is to be skipped.
const LEGAL: &str = "optional-record";

/// The one damage that libxl finds itself: the save helper must not read a byte behind END.
const LIBXLS: &str = "data-after-end";

/// Cuts at bytes that this seed chooses, besides the chosen ones.
const SEED: u64 = 2;
const NR_RANDOM_CUTS: usize = 6;

/// Makes the guest's file, restores it once, and gives Xen's free memory with no guest.
fn prepare(stage: &Stage) -> Telling<u64> {
    stage.create(GUEST)?;
    stage.sh(&format!("xl save {GUEST} {FILE}"))?;
    good_restore(stage, FILE)?;
    stage.settled_free_kib()
}

fn good_restore(stage: &Stage, file: &str) -> Telling {
    stage.sh(&format!(
        "{THROUGH_STUB}xl restore {file} && ask-witness {GUEST} verify && xl destroy {GUEST}"
    ))?;
    stage.expect_alone()
}

fn damaged(stage: &Stage) -> Telling {
    let free = prepare(stage)?;
    for damage in stage.sh("nest-stream damages")?.lines() {
        stage.sh(&format!("nest-stream damage {FILE} {BAD} {damage}"))?;
        if damage == LEGAL {
            good_restore(stage, BAD)?;
        } else {
            expect_refusal(stage, damage, free)?;
        }
    }
    good_restore(stage, FILE)
}

fn cut(stage: &Stage) -> Telling {
    let free = prepare(stage)?;
    let info = stage.sh(&format!("nest-stream info {FILE}"))?;
    let nr_records = info.lines().count();
    let last = info.lines().next_back().unwrap_or_default();
    let end = last.split("offset=").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap_or(0);
    ensure(nr_records > 8 && end > 0, || format!("no list of records in {FILE}:\n{info}"))?;
    // Records in the middle are all PAGE_DATA: the boundaries at both ends differ, one in the middle stands for the rest.
    let records = (0..6).chain([nr_records / 2]).chain(nr_records - 4..nr_records);
    let at_records = records.map(|number| format!("--record {number}"));
    let mut chance = Chance::new(SEED);
    let random: Vec<usize> = (0..NR_RANDOM_CUTS).map(|_| chance.below(end)).collect();
    let at_bytes = [1, 11, 24, 39, 41, 47, 1300, 1325, 9000, 4_000_001].into_iter().chain(random);
    let at_bytes = at_bytes.map(|byte| format!("--byte {byte}"));
    for place in at_records.chain(at_bytes) {
        stage.sh(&format!("nest-stream truncate {FILE} {BAD} {place}"))?;
        expect_refusal(stage, &place, free)?;
    }
    good_restore(stage, FILE)
}

/// The restore fails in a way that tells what and where, and everything is as before.
fn expect_refusal(stage: &Stage, what: &str, free: u64) -> Telling {
    let outcome = stage.run(&format!("{THROUGH_STUB}timeout 60 xl restore {BAD}"))?;
    ensure(outcome.code != 0, || format!("{what}: xl restore succeeded"))?;
    ensure(outcome.code != 124, || format!("{what}: xl restore did not end:\n{}", outcome.text))?;
    let words: &[&str] = if what == LIBXLS { &["Unrecognised record"] } else { &["expected", "ended"] };
    let told = outcome.text.lines().find(|line| words.iter().any(|word| line.contains(word)));
    let line =
        told.ok_or_else(|| crate::story::Stop::Failure(format!("{what}: no clear line:\n{}", outcome.text)))?;
    stage.say(format!("{what}: {line}"));
    stage.expect_alone()?;
    stage.expect_free(free)
}
