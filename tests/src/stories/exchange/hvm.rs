//! Frames of a guest with a device model.

use super::refusals::expect_refusal;
use super::{bring_back, exchange, expect_offline, expect_superpages};
use crate::exchange::Frames;
use crate::machine::Options;
use crate::soak::Chance;
use crate::story::{Stage, Story, Telling, ensure};
use crate::survey::Survey;

/// A few frames of an HVM guest; `scripts/soak exchange-hvm` does a thousand.
pub(in crate::stories) const HVM_FRAMES: Story = Story {
    name: "exchange-hvm",
    proves: "frames of an HVM guest under load, its device model running, are exchanged one after another, superpages stay \
             superpages, no byte and no page is lost; what the device model shares with it is refused by name",
    options: Options::default,
    tell: frames_of_an_hvm_guest,
};

const GUEST: &str = "hvm-256";

/// How many frames of each kind.
const NR_FRAMES: usize = 5;

/// Pages of RAM that are exchanged; video memory and ROMs are beyond.
const NR_PAGES: usize = 0xf000;

/// Pages by the role that keeps them where they are, and the name of the refusal. libxc puts them there.
const SPECIAL: &[(&str, &str)] =
    &[("0xfeffd", "ioreq"), ("0xfeffb", "ioreq"), ("0xfeffc", "xenstore-ring"), ("0xfefff", "console-ring")];

/// A page of video memory: the firmware has the device model move it to where it puts the card's first region, in the hole
/// for devices below 4 GiB.
const VIDEO: &str = "for gfn in $(seq $((0xf0005)) 4096 $((0xfc005))); do \
     [ $(stubctl locate hvm-256 $gfn) = - ] || { echo $gfn; exit 0; }; done; exit 1";

fn frames_of_an_hvm_guest(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    let before = Survey::take(stage, GUEST)?;
    let video = stage.sh(VIDEO)?;
    for (gfn, reason) in SPECIAL.iter().copied().chain([(video.as_str(), "device-model")]) {
        let mfn = stage.sh(&format!("stubctl locate {GUEST} {gfn}"))?;
        expect_refusal(stage, &mfn, reason)?;
    }
    stage.sh(&format!("ask-witness {GUEST} rate 2000"))?;
    let mut frames = Frames::new(Chance::new(1));
    let whole = exchange(stage, GUEST, &frames.take(NR_FRAMES, NR_PAGES), "")?;
    let after = Survey::take(stage, GUEST)?;
    expect_superpages(&before, &after, whole.nr_with("scope", "split-by-neighbour"))?;
    let split = exchange(stage, GUEST, &frames.take(NR_FRAMES, NR_PAGES), "--split")?;
    for verdicts in [&whole, &split] {
        stage.say(verdicts.summary());
        stage.say(verdicts.times());
    }
    ensure(whole.nr("done") > 0 && split.nr("done") > 0, || "no frame of a kind was exchanged".into())?;
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    let (had, has) = (before.nr_owned, Survey::take(stage, GUEST)?.nr_owned);
    ensure(had == has, || format!("the guest had {had} frames, it has {has}"))?;
    expect_offline(stage, &[&whole, &split])?;
    stage.sh(&format!("xl destroy {GUEST}"))?;
    bring_back(stage, &[&whole, &split])?;
    stage.expect_alone()
}
