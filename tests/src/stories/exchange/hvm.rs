//! Frames of a guest with a device model.

use super::deaths::{Death, another, survive};
use super::monitor::outlive_a_slow_monitor;
use super::refusals::expect_refusal;
use super::state::{State, limits};
use super::{bring_back, expect_offline, save_and_restore, some};
use crate::exchange::{Frames, Verdicts};
use crate::machine::Options;
use crate::soak::Chance;
use crate::story::{Stage, Story, Telling, ensure};

/// A few frames of an HVM guest; `scripts/soak exchange-hvm` does a thousand.
pub(in crate::stories) const HVM_FRAMES: Story = Story {
    name: "exchange-hvm",
    proves: "frames of an HVM guest under load, its device model running, are exchanged one after another, superpages stay \
             superpages, no byte and no page is lost, and the guest can be saved and restored; what the device model shares \
             with it is refused by name and left as it was; a stub is started for one exchange where there is none; when \
             stubctl dies while the device model is stopped both run on, and so they do when the device model is slow to answer; a \
             paused guest is refused",
    options: Options::default,
    tell: frames_of_an_hvm_guest,
};

const GUEST: &str = "hvm-256";

/// How many frames of each kind.
const NR_FRAMES: usize = 5;

/// Pages of RAM that are exchanged; video memory and ROMs are beyond.
const NR_PAGES: usize = 0xf000;

/// Pages to exchange in other ways.
const BY_A_NEW_STUB: &str = "0x9005";
const UNDER_A_DEATH: u64 = 0xa005;

/// Pages by the role that keeps them where they are, and the name of the refusal. libxc puts them there.
const SPECIAL: &[(&str, &str)] = &[
    ("0xfeffb", "ioreq"),
    ("0xfeffc", "xenstore-ring"),
    ("0xfeffd", "ioreq"),
    ("0xfeffe", "identity-page-table"),
    ("0xfefff", "console-ring"),
];

/// A page of video memory: the firmware has the device model move it to where it puts the card's first region, in the hole
/// for devices below 4 GiB.
const VIDEO: &str = "for gfn in $(seq $((0xf0005)) 4096 $((0xfc005))); do \
     [ $(stubctl locate hvm-256 $gfn) = - ] || { echo $gfn; exit 0; }; done; exit 1";

fn frames_of_an_hvm_guest(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    special(stage)?;
    let before = limits(stage, GUEST, "")?;
    stage.sh(&format!("ask-witness {GUEST} rate 2000"))?;
    let mut frames = Frames::new(Chance::new(1));
    let whole = some(stage, GUEST, &frames.take(NR_FRAMES, NR_PAGES), "")?;
    let split = some(stage, GUEST, &frames.take(NR_FRAMES, NR_PAGES), "--split")?;
    let single = by_a_new_stub(stage)?;
    survive(stage, GUEST, &Death::Stubctl(2), UNDER_A_DEATH)?;
    survive(stage, GUEST, &Death::Both(3), another(UNDER_A_DEATH, 1))?;
    outlive_a_slow_monitor(stage, GUEST, another(UNDER_A_DEATH, 2))?;
    paused(stage, another(UNDER_A_DEATH, 3))?;
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    let after = limits(stage, GUEST, "")?;
    ensure(before == after, || format!("the guest had {before}, it has {after}"))?;
    let all = [&whole, &split, &single];
    expect_offline(stage, &all)?;
    save_and_restore(stage, GUEST)?;
    stage.sh(&format!("xl destroy {GUEST}"))?;
    bring_back(stage, &all)?;
    stage.expect_alone()
}

/// Refuses what the device model, Xen and the toolstack share with the guest, which is then as it was.
fn special(stage: &Stage) -> Telling {
    let video = stage.sh(VIDEO)?;
    stage.ask(GUEST, "freeze")?;
    let before = State::take(stage, GUEST, NR_PAGES)?;
    for (gfn, reason) in SPECIAL.iter().copied().chain([(video.as_str(), "device-model")]) {
        let mfn = stage.sh(&format!("stubctl locate {GUEST} {gfn}"))?;
        expect_refusal(stage, &mfn, reason)?;
    }
    before.expect_same(stage, GUEST, NR_PAGES)?;
    stage.ask(GUEST, "thaw").map(drop)
}

/// A guest that somebody has paused would never have its device model let go of an old frame.
fn paused(stage: &Stage, gfn: u64) -> Telling {
    let mfn = stage.sh(&format!("stubctl locate {GUEST} {gfn:#x} && xl pause {GUEST}"))?;
    expect_refusal(stage, &mfn, "paused")?;
    let state = stage.sh(&format!("xl list {GUEST} | awk 'NR == 2 {{ print $5 }}'"))?;
    ensure(state.contains('p'), || format!("it is not paused any more: {state}"))?;
    stage.sh(&format!("xl unpause {GUEST}")).map(drop)
}

/// A guest without a stub gets one for the exchange, and has none afterwards.
fn by_a_new_stub(stage: &Stage) -> Telling<Verdicts> {
    let mfn =
        stage.sh(&format!("stubctl locate {GUEST} {BY_A_NEW_STUB} && stubctl detach {GUEST} >/dev/null"))?;
    let nr_stubs = "xl list | grep -c stubdom || true";
    ensure(stage.sh(nr_stubs)? == "0", || "the stub is still there".into())?;
    let verdicts = Verdicts::parse(&stage.sh(&format!("stubctl offline --json {mfn}"))?)?;
    verdicts.expect_most(1, 0)?;
    stage.say(format!("by a stub of its own: {}", verdicts.texts()));
    ensure(stage.sh(nr_stubs)? == "0", || "the stub stays".into())?;
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    Ok(verdicts)
}
