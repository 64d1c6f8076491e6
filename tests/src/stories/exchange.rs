//! The other job: failing frames taken from under a running guest.

mod deaths;
mod hvm;
mod refusals;
mod saving;
mod scarce;
mod watch;

pub(super) use deaths::{ALL_DEATHS, DEATHS};
pub(super) use hvm::HVM_FRAMES;
pub(super) use refusals::REFUSALS;
pub(super) use saving::SAVING;
pub(super) use scarce::SCARCE;
pub(super) use watch::WATCH;

use crate::exchange::{Frames, Verdicts};
use crate::machine::Options;
use crate::soak::{Chance, Soak};
use crate::stories::live::local_migration;
use crate::story::{Stage, Stop, Story, Telling, ensure};
use crate::survey::Survey;
use control::RegionKind;

const GUEST: &str = "pvh-256";

/// How many frames of each kind `scripts/test` exchanges; `scripts/soak` does thousands.
const NR_FRAMES: usize = 10;

/// Pages of the guest's RAM.
const NR_PAGES: usize = 0x10000;

/// Frames of one command of a soak.
const BATCH: usize = 50;

/// Frames under a guest that works.
pub(super) const PVH_FRAMES: Story = Story {
    name: "exchange-pvh",
    proves: "frames of a guest under load are exchanged one after another, superpages stay superpages, every old frame \
             is out of use, no byte and no page is lost, and the guest can be saved and restored afterwards",
    options: Options::default,
    tell: frames_of_a_guest_under_load,
};

const SOAK_PROVES: &str = "random frames of a guest under load are exchanged one after another, every second batch page by page, \
     without a wrong byte; how long the guest stood still";

/// A thousand frames of a PVH guest.
pub(super) const SOAK_PVH: Soak = Soak {
    name: "exchange-pvh",
    proves: SOAK_PROVES,
    options: Options::default,
    rounds: 1000,
    tell: |stage, chance, rounds| soak(stage, "pvh-256", chance, rounds),
};

/// A thousand frames of an HVM guest.
pub(super) const SOAK_HVM: Soak = Soak {
    name: "exchange-hvm",
    proves: SOAK_PROVES,
    options: Options::default,
    rounds: 1000,
    tell: |stage, chance, rounds| soak(stage, "hvm-256", chance, rounds),
};

fn soak(stage: &Stage, guest: &str, chance: &mut Chance, rounds: u32) -> Telling {
    stage.create(guest)?;
    stage.sh(&format!("stubctl attach {guest} && ask-witness {guest} rate 2000"))?;
    let before = Survey::take(stage, guest)?;
    let mut frames = Frames::new(chance.clone());
    let mut all = Verdicts::default();
    let rounds = usize::try_from(rounds).unwrap_or(usize::MAX);
    // Page by page last: a superpage that is split never is one again.
    for first in (0..rounds).step_by(BATCH) {
        let gfns = frames.take(BATCH.min(rounds - first), NR_PAGES);
        let how = if first < rounds / 2 { "" } else { "--split" };
        all.extend(exchange(stage, guest, &gfns, how)?);
        stage.ask(guest, "ticking")?;
        stage.say(format!("{first} and {BATCH} more: {}", all.summary()));
    }
    let right = stage.ask(guest, "verify")?;
    let (had, has) = (before.nr_owned, Survey::take(stage, guest)?.nr_owned);
    ensure(had == has, || format!("the guest owned {had} pages, it owns {has}"))?;
    expect_offline(stage, &[&all])?;
    stage.say(format!("superpages: {}", all.with_outcome("superpage").times()));
    stage.say(format!("single pages: {}", all.with_outcome("page").times()));
    let file = "/var/lib/xen/save/soak";
    stage.sh(&format!("xl save {guest} {file} && xl restore {file}"))?;
    stage.ask(guest, "verify")?;
    let wrong = right.value("wrong_pages")?;
    stage.say(format!(
        "{guest}: {}; {wrong} wrong pages; {has} pages owned, as before; saved and restored",
        all.summary()
    ));
    beside(stage, guest)?;
    stage.sh(&format!("xl destroy {guest}")).map(drop)
}

/// How often a guest may fall by itself before there is nothing to compare with.
const FALLS: u32 = 3;

/// What stock Xen offers instead, with the same guest: a live migration to its own host.
fn beside(stage: &Stage, guest: &str) -> Telling {
    for _ in 0..FALLS {
        stage.ask(guest, "rate 500")?;
        match local_migration(stage, guest) {
            Err(Stop::Skip(fell)) => {
                stage.say(format!(
                    "beside it a local live migration with stock xl: {fell}; once more with a new one"
                ));
                stage.run(&format!("xl destroy {guest}"))?;
                stage.create(guest)?;
            }
            down => {
                let down = down?.as_millis();
                stage.say(format!("beside it a local live migration with stock xl: {down} ms down"));
                return stage.ask(guest, "verify").map(drop);
            }
        }
    }
    Err(Stop::Failure(format!("{FALLS} guests fell by themselves")))
}

fn frames_of_a_guest_under_load(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    let before = Survey::take(stage, GUEST)?;
    stage.sh(&format!("ask-witness {GUEST} rate 4000"))?;
    let mut frames = Frames::new(Chance::new(1));
    let mut whole = exchange(stage, GUEST, &frames.take(NR_FRAMES, NR_PAGES), "")?;
    let after = Survey::take(stage, GUEST)?;
    expect_superpages(&before, &after, whole.nr_with("scope", "split-by-neighbour"))?;
    whole.extend(beside_xens_own(stage)?);
    let split = exchange(stage, GUEST, &frames.take(NR_FRAMES, NR_PAGES), "--split")?;
    for verdicts in [&whole, &split] {
        stage.say(verdicts.summary());
        stage.say(verdicts.times());
    }
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    let after = Survey::take(stage, GUEST)?;
    let (had, has) = (before.nr_owned, after.nr_owned);
    ensure(had == has, || format!("the guest had {had} frames, it has {has}"))?;
    expect_offline(stage, &[&whole, &split])?;
    let file = "/var/lib/xen/save/exchange";
    stage.sh(&format!("xl save {GUEST} {file} && xl restore {file}"))?;
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("xl shutdown -w {GUEST}"))?;
    bring_back(stage, &[&whole, &split])
}

/// Exchanges the frames behind gfns; each may be refused, with a reason, none may stay half done.
fn exchange(stage: &Stage, guest: &str, gfns: &str, how: &str) -> Telling<Verdicts> {
    let located = stage.sh(&format!("stubctl locate {guest} {gfns}"))?;
    let mfns: Vec<&str> = located.lines().filter(|mfn| *mfn != "-").collect();
    let outcome = stage.run(&format!("stubctl offline --json {how} {}", mfns.join(" ")))?;
    let verdicts = Verdicts::parse(&outcome.text)?;
    ensure(verdicts.len() == mfns.len(), || format!("{} frames, told of: {}", mfns.len(), outcome.text))?;
    ensure(verdicts.nr("held") == 0, || format!("an old frame is held: {}", outcome.text))?;
    Ok(verdicts)
}

/// A page beside one that Xen writes to (the control block of the guest's event channels): the page goes alone, and the
/// guest goes on hearing of its timer.
fn beside_xens_own(stage: &Stage) -> Telling<Verdicts> {
    let verdicts = exchange(stage, GUEST, BESIDE_CONTROL_BLOCK, "")?;
    ensure(verdicts.nr_with("scope", "split-by-neighbour") == 1, || {
        format!("expected the page alone: {}", verdicts.summary())
    })?;
    stage.ask(GUEST, "ticking")?;
    Ok(verdicts)
}

/// In the superpage where the guest's kernel puts its control block, at every start.
const BESIDE_CONTROL_BLOCK: &str = "0x5000";

/// Every region that was a superpage is one still, but for those that hold what must stay.
fn expect_superpages(before: &Survey, after: &Survey, nr_split: usize) -> Telling {
    let (had, has) = (before.count(RegionKind::Superpage), after.count(RegionKind::Superpage));
    ensure(has + nr_split >= had, || {
        format!(
            "{had} superpages before, {has} after exchanges of whole superpages, {nr_split} had to be split"
        )
    })
}

/// Xen says of every frame exchanged that it is out of use, asked by the stock tool.
fn expect_offline(stage: &Stage, all: &[&Verdicts]) -> Telling {
    let mfns: Vec<String> =
        all.iter().flat_map(|verdicts| verdicts.mfns("done")).map(|mfn| format!("{mfn:#x}")).collect();
    let not = stage.sh(&format!(
        "for mfn in {}; do said=$(xen-hptool mem-status $mfn 2>&1); \
         case $said in *PAGE_OFFLINED*) ;; *) echo \"$mfn: $said\";; esac; done",
        mfns.join(" ")
    ))?;
    ensure(not.is_empty(), || format!("not out of use: {not}"))
}

/// Gives the frames back to Xen: they are sound, and other stories want the memory.
fn bring_back(stage: &Stage, all: &[&Verdicts]) -> Telling {
    let mfns: Vec<String> =
        all.iter().flat_map(|verdicts| verdicts.mfns("done")).map(|mfn| format!("{mfn:#x}")).collect();
    stage.sh(&format!("for mfn in {}; do xen-hptool mem-online $mfn; done", mfns.join(" ")))?;
    Ok(())
}
