//! The other job: failing frames taken from under a running guest.

use crate::exchange::{Frames, Verdicts};
use crate::machine::Options;
use crate::soak::{Chance, Soak};
use crate::story::{Stage, Story, Telling, ensure};
use crate::survey::Survey;
use control::RegionKind;

const GUEST: &str = "pvh-256";

/// How many frames of each kind `scripts/test` exchanges; `scripts/soak` does thousands.
const NR_FRAMES: usize = 20;

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

/// What must be left alone.
pub(super) const REFUSALS: Story = Story {
    name: "exchange-refusals",
    proves: "special pages, dom0's, Xen's and absent frames are refused, each by its own name, and the guest is untouched; \
             the stock tool gives up on an ordinary page of the same guest",
    options: Options::default,
    tell: refusals,
};

/// Who dies at which moment.
pub(super) const DEATHS: Story = Story {
    name: "exchange-deaths",
    proves: "whenever stubctl or the stub dies during an exchange the guest runs on whole, and the next attempt succeeds",
    options: Options::default,
    tell: deaths,
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
    let mut all = [Verdicts::default(), Verdicts::default()];
    let rounds = usize::try_from(rounds).unwrap_or(usize::MAX);
    for (nr, first) in (0..rounds).step_by(BATCH).enumerate() {
        let gfns = frames.take(BATCH.min(rounds - first), NR_PAGES);
        let how = if nr % 2 == 0 { "" } else { "--split" };
        all[nr % 2].extend(exchange(stage, guest, &gfns, how)?);
        stage.ask(guest, "ticking")?;
    }
    let [whole, split] = &all;
    stage.say(format!("superpages whole: {}", whole.summary()));
    stage.say(format!("single pages: {}", split.summary()));
    stage.ask(guest, "verify")?;
    let (had, has) = (before.nr_owned, Survey::take(stage, guest)?.nr_owned);
    ensure(had == has, || format!("the guest owned {had} pages, it owns {has}"))?;
    expect_offline(stage, &[whole, split])?;
    let file = "/var/lib/xen/save/soak";
    stage.sh(&format!("xl save {guest} {file} && xl restore {file}"))?;
    stage.ask(guest, "verify")?;
    stage.sh(&format!("xl destroy {guest}")).map(drop)
}

fn frames_of_a_guest_under_load(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    let before = Survey::take(stage, GUEST)?;
    stage.sh(&format!("ask-witness {GUEST} rate 4000"))?;
    let mut frames = Frames::new(Chance::new(1));
    let whole = exchange(stage, GUEST, &frames.take(NR_FRAMES, NR_PAGES), "")?;
    let after = Survey::take(stage, GUEST)?;
    expect_superpages(&before, &after)?;
    let split = exchange(stage, GUEST, &frames.take(NR_FRAMES, NR_PAGES), "--split")?;
    stage.say(format!("superpages whole: {}", whole.summary()));
    stage.say(format!("single pages: {}", split.summary()));
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

/// Every region that was a superpage is one still.
fn expect_superpages(before: &Survey, after: &Survey) -> Telling {
    let (had, has) = (before.count(RegionKind::Superpage), after.count(RegionKind::Superpage));
    ensure(has >= had, || format!("{had} superpages before, {has} after exchanges of whole superpages"))
}

/// Xen says of every frame exchanged that it is out of use, asked by the stock tool.
fn expect_offline(stage: &Stage, all: &[&Verdicts]) -> Telling {
    for mfn in all.iter().flat_map(|verdicts| verdicts.mfns("done")) {
        let said = stage.sh(&format!("xen-hptool mem-status {mfn:#x} 2>&1"))?;
        ensure(said.contains("offlined"), || format!("frame {mfn}: {said}"))?;
    }
    Ok(())
}

/// Gives the frames back to Xen: they are sound, and other stories want the memory.
fn bring_back(stage: &Stage, all: &[&Verdicts]) -> Telling {
    let mfns: Vec<String> =
        all.iter().flat_map(|verdicts| verdicts.mfns("done")).map(|mfn| format!("{mfn:#x}")).collect();
    stage.sh(&format!("for mfn in {}; do xen-hptool mem-online $mfn; done", mfns.join(" ")))?;
    Ok(())
}

/// Pages by the role that keeps them where they are, and the name of the refusal. libxc puts the special ones there.
const SPECIAL: &[(u64, &str)] = &[(0xfeffc, "xenstore-ring"), (0xfefff, "console-ring")];

fn refusals(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    let (before, sum) = untouched(stage)?;
    for (gfn, reason) in SPECIAL {
        let mfn = stage.sh(&format!("stubctl locate {GUEST} {gfn:#x}"))?;
        expect_refusal(stage, &mfn, reason)?;
    }
    expect_refusal(stage, "0xffffffff", "nonexistent")?;
    expect_refusal(stage, "0x1", "xens")?;
    let mfn = stage.sh(&format!("stubctl locate {GUEST} 0x4321"))?;
    let checked = stage.sh(&format!("stubctl offline --check --json {mfn}"))?;
    ensure(checked.contains("\"fit\""), || format!("a check of an ordinary page: {checked}"))?;
    let stock = stage.run(&format!("xen-hptool mem-offline {mfn}"))?;
    ensure(stock.text.contains("try live migration"), || format!("the stock tool said: {}", stock.text))?;
    stage.say(format!("xen-hptool mem-offline: {}", stock.text.trim().replace('\n', " / ")));
    ensure(untouched(stage)? == (before, sum), || "the refusals changed the guest".into())?;
    let done = stage.sh(&format!("stubctl offline {mfn}"))?;
    stage.say(format!("stubctl offline: {done}"));
    let again = stage.sh(&format!("stubctl offline --json {mfn}"))?;
    ensure(again.contains("\"already\""), || format!("the second time: {again}"))?;
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("xl destroy {GUEST} && xen-hptool mem-online {mfn}"))?;
    Ok(())
}

/// What a refusal must not change: frames, superpages, contents.
fn untouched(stage: &Stage) -> Telling<(Survey, String)> {
    stage.ask(GUEST, "freeze")?;
    let sum = stage.ask(GUEST, "verify")?.value("sum")?.to_owned();
    stage.ask(GUEST, "thaw")?;
    stage.ask(GUEST, "freeze")?;
    Ok((Survey::take(stage, GUEST)?, sum))
}

fn expect_refusal(stage: &Stage, mfn: &str, reason: &str) -> Telling {
    expect_one_of(stage, mfn, &[reason])
}

fn expect_one_of(stage: &Stage, mfn: &str, reasons: &[&str]) -> Telling {
    let outcome = stage.run(&format!("stubctl offline --json {mfn}"))?;
    let named = reasons.iter().any(|reason| outcome.text.contains(&format!("\"reason\":\"{reason}\"")));
    ensure(outcome.code == 8 && named, || format!("expected {reasons:?} of {mfn}: {}", outcome.text))
}

fn deaths(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    let owned = Survey::take(stage, GUEST)?.nr_owned;
    for step in 1..=4 {
        survive(stage, &format!("--debug-abort {step}"), owned)?;
    }
    for call in PAGE_CALLS {
        survive(stage, &format!("--split --debug-stub-panic {call}"), owned)?;
    }
    for call in SUPERPAGE_CALLS {
        survive(stage, &format!("--debug-stub-panic {call}"), owned)?;
    }
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("xl destroy {GUEST}"))?;
    Ok(())
}

/// Calls to Xen of the exchange of a page, counted from 0, before which the stub dies: the move, and looking at what came
/// of it.
const PAGE_CALLS: [u32; 2] = [20, 21];

/// The same of a superpage, whose pages are each asked for their type first: taking it away, populating its place anew,
/// mapping and filling that.
const SUPERPAGE_CALLS: [u32; 3] = [532, 533, 534];

/// Lets an exchange die, then looks at the guest and repeats the exchange.
fn survive(stage: &Stage, how: &str, owned: u64) -> Telling {
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    let mfn = stage.sh(&format!("stubctl locate {GUEST} 0x5000"))?;
    let died = stage.run(&format!("stubctl offline {how} {mfn} 2>&1"))?;
    stage.say(format!("{how}: ended with {}", died.code));
    stage.ask(GUEST, "ticking")?;
    stage.sh(&format!("stubctl attach {GUEST}; stubctl offline {mfn} && xen-hptool mem-online {mfn}"))?;
    let has = Survey::take(stage, GUEST)?.nr_owned;
    ensure(has == owned, || format!("{how}: the guest had {owned} frames, it has {has}"))?;
    stage.ask(GUEST, "verify").map(drop)
}
