//! The other job: failing frames taken from under a running guest.

mod deaths;
mod held;
mod hvm;
mod monitor;
mod network;
mod refusals;
mod saving;
mod scarce;
mod scrubbed;
mod state;
mod watch;

pub(super) use deaths::{ALL_DEATHS, DEATHS};
pub(super) use hvm::HVM_FRAMES;
pub(super) use network::NETWORK;
pub(super) use refusals::{REFUSALS, mapped_by_back_ends};
pub(super) use saving::SAVING;
pub(super) use scarce::SCARCE;
pub(super) use scrubbed::SCRUBBED;
pub(super) use state::limits;
pub(super) use watch::WATCH;

use crate::exchange::{Frames, Verdicts};
use crate::machine::Options;
use crate::soak::{Chance, Soak};
use crate::stories::live::local_migration;
use crate::story::{Stage, Stop, Story, Telling, ensure};
use crate::survey::Survey;
use refusals::expect_refusal;

const GUEST: &str = "pvh-256";

/// How many frames of each kind `scripts/test` exchanges; `scripts/soak` does thousands.
const NR_FRAMES: usize = 10;

/// Pages of the guest's RAM.
const NR_PAGES: usize = 0x10000;

/// Frames of one command of a soak.
const BATCH: usize = 50;

/// How many frames of a soak may be refused: those that must stay, and those beside free memory.
const REFUSED_PERCENT: usize = 5;

/// Frames under a guest that works.
pub(super) const PVH_FRAMES: Story = Story {
    name: "exchange-pvh",
    proves: "frames of a guest under load are exchanged one after another, superpages stay superpages, every old frame \
             is out of use, no byte and no page is lost, and the guest can be saved and restored afterwards; an old frame that \
             somebody holds unknown to all is reported with what to do",
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
    let limits_before = limits(stage, guest, "")?;
    let mut before = Survey::take(stage, guest)?;
    let mut frames = Frames::new(chance.clone());
    let mut all = Verdicts::default();
    let rounds = usize::try_from(rounds).unwrap_or(usize::MAX);
    // Page by page last: a superpage that is split never is one again.
    for first in (0..rounds).step_by(BATCH) {
        let gfns = frames.take(BATCH.min(rounds - first), NR_PAGES);
        let how = if first < rounds / 2 { "" } else { "--split" };
        let verdicts = exchange(stage, guest, &gfns, how)?;
        let after = Survey::take(stage, guest)?;
        verdicts.expect_map(&before, &after)?;
        before = after;
        all.extend(verdicts);
        stage.ask(guest, "ticking")?;
        stage.say(format!("{first} and {BATCH} more: {}", all.summary()));
    }
    all.expect_most(rounds, 1.max(rounds * REFUSED_PERCENT / 100))?;
    let right = stage.ask(guest, "verify")?;
    let limits_after = limits(stage, guest, "")?;
    ensure(limits_before == limits_after, || {
        format!("the guest had {limits_before}, it has {limits_after}")
    })?;
    expect_offline(stage, &[&all])?;
    stage.say(format!("superpages: {}", all.with_outcome("superpage").times()));
    stage.say(format!("single pages: {}", all.with_outcome("page").times()));
    save_and_restore(stage, guest)?;
    let wrong = right.value("wrong_pages")?;
    stage.say(format!(
        "{guest}: {}; {wrong} wrong pages; {} pages owned, as before; saved and restored",
        all.summary(),
        before.nr_owned
    ));
    beside(stage, guest)?;
    stage.sh(&format!("xl destroy {guest}")).map(drop)
}

/// Saves a guest whose frames were exchanged and restores it with stock xl; its witness finds every byte.
pub(super) fn save_and_restore(stage: &Stage, guest: &str) -> Telling {
    let file = format!("/var/lib/xen/save/{guest}-again");
    stage.sh(&format!("xl save {guest} {file} && xl restore {file} && rm {file}"))?;
    stage.ask(guest, "verify").map(drop)
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
    let limits_before = limits(stage, GUEST, "")?;
    stage.sh(&format!("ask-witness {GUEST} rate 4000"))?;
    let mut frames = Frames::new(Chance::new(1));
    let mut whole = some(stage, GUEST, &frames.take(NR_FRAMES, NR_PAGES), "")?;
    whole.extend(beside_xens_own(stage)?);
    let split = some(stage, GUEST, &frames.take(NR_FRAMES, NR_PAGES), "--split")?;
    held::held(stage)?;
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    let limits_after = limits(stage, GUEST, "")?;
    ensure(limits_before == limits_after, || {
        format!("the guest had {limits_before}, it has {limits_after}")
    })?;
    expect_offline(stage, &[&whole, &split])?;
    save_and_restore(stage, GUEST)?;
    stage.sh(&format!("xl shutdown -w {GUEST}"))?;
    bring_back(stage, &[&whole, &split])
}

/// Exchanges some frames, of which a fifth may be refused; the guest's map is what they should make of it.
fn some(stage: &Stage, guest: &str, gfns: &str, how: &str) -> Telling<Verdicts> {
    let before = Survey::take(stage, guest)?;
    let verdicts = exchange(stage, guest, gfns, how)?;
    verdicts.expect_map(&before, &Survey::take(stage, guest)?)?;
    stage.say(verdicts.summary());
    stage.say(verdicts.times());
    let nr_frames = gfns.split(' ').count();
    verdicts.expect_most(nr_frames, nr_frames / 5)?;
    let nr_superpages = verdicts.nr_with("outcome", "superpage");
    ensure(how == "--split" || nr_superpages * 2 >= nr_frames, || {
        format!("{nr_superpages} superpages exchanged whole for {nr_frames} frames: {}", verdicts.summary())
    })?;
    Ok(verdicts)
}

/// Exchanges the frames behind gfns, which are RAM; each may be refused, with a reason, none may stay half done.
fn exchange(stage: &Stage, guest: &str, gfns: &str, how: &str) -> Telling<Verdicts> {
    let located = stage.sh(&format!("stubctl locate {guest} {gfns}"))?;
    let mfns: Vec<&str> = located.lines().collect();
    let nr_frames = gfns.split(' ').count();
    ensure(mfns.len() == nr_frames && !mfns.contains(&"-"), || {
        format!("expected a frame behind each of {nr_frames} pages: {located}")
    })?;
    let outcome = stage.run(&format!("stubctl offline --json {how} {}", mfns.join(" ")))?;
    let verdicts = Verdicts::parse(&outcome.text)?;
    let nr_told = verdicts.nr("done") + verdicts.nr("refused");
    ensure(verdicts.len() == nr_frames && nr_told == nr_frames, || {
        format!("{nr_frames} frames to be exchanged or refused, told of: {}", outcome.text)
    })?;
    let code = if verdicts.nr("refused") > 0 { 8 } else { 0 };
    ensure(outcome.code == code, || format!("expected exit code {code}, got {}", outcome.code))?;
    Ok(verdicts)
}

/// A page beside one that Xen writes to (the control block of the guest's event channels): the page goes alone, and the
/// guest goes on hearing of its timer. The control block itself is refused.
fn beside_xens_own(stage: &Stage) -> Telling<Verdicts> {
    let verdicts = exchange(stage, GUEST, &format!("{BESIDE_CONTROL_BLOCK:#x}"), "")?;
    ensure(verdicts.nr_with("scope", "split-by-neighbour") == 1, || {
        format!("expected the page alone: {}", verdicts.summary())
    })?;
    expect_refusal(stage, &pinned(stage)?, "looks-pinned")?;
    stage.ask(GUEST, "ticking")?;
    Ok(verdicts)
}

/// The frame of a page of that superpage that would be refused for its look.
fn pinned(stage: &Stage) -> Telling<String> {
    for first in (BESIDE_CONTROL_BLOCK..BESIDE_CONTROL_BLOCK + 512).step_by(CHUNK) {
        let located = stage.sh(&format!("stubctl locate {GUEST} $(seq {first} {})", first + CHUNK - 1))?;
        let checked = stage.run(&format!("stubctl offline --check --json {}", located.replace('\n', " ")))?;
        let found = Verdicts::parse(&checked.text)?.mfns_refused_as("looks-pinned").next();
        if let Some(mfn) = found {
            return Ok(format!("{mfn:#x}"));
        }
    }
    Err(Stop::Failure("no page beside looks as if Xen writes to it".into()))
}

/// How many pages are looked at by one command.
const CHUNK: usize = 64;

/// In the superpage where the guest's kernel puts its control block, at every start; the place in it depends on what is
/// loaded with the kernel.
const BESIDE_CONTROL_BLOCK: usize = 0x5000;

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
