//! What must be left alone, and is: with a name for each, and the guest as it was.

use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};
use crate::survey::Survey;

/// What must be left alone.
pub(in crate::stories) const REFUSALS: Story = Story {
    name: "exchange-refusals",
    proves: "special and broken pages, pages mapped by a network and a disk back end, dom0's, Xen's and absent frames, and all of a \
             guest with passed-through devices are refused, each by its own name, and the guest is untouched; \
             the stock tool gives up on an ordinary page of the same guest, which is then exchanged",
    options: Options::default,
    tell: refusals,
};

/// A guest with a vif.
const GUEST: &str = "pvh-net";

/// Gives it a disk.
const CREATE: &str = "dd if=/dev/zero of=/run/disk bs=1M count=8 2>/dev/null && losetup /dev/loop0 /run/disk && \
     xl create -q /etc/xen/stubdom/guests/pvh-net.cfg 'disk=[\"phy:/dev/loop0,xvda,w\"]' && ask-witness pvh-net ready";

/// Pages by the role that keeps them where they are, and the name of the refusal. libxc puts them there.
const SPECIAL: &[(u64, &str)] = &[(0xfeffc, "xenstore-ring"), (0xfefff, "console-ring")];

/// A frame of dom0's: Xen says at its start which ones it gave it, and goes on in the middle of them.
const DOM0S: &str = "xl dmesg | sed -n 's/.*Dom0 alloc.: *\\([0-9a-f]*\\)000->.*/\\1/p' | \
     while read -r first; do printf '%#x' $((0x$first + 0x2000)); done";

/// Fewest pages that the back ends have mapped: the vif's two rings and the disk's one.
const NR_RINGS: usize = 3;

fn refusals(stage: &Stage) -> Telling {
    stage.sh(CREATE)?;
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    stage.ask(GUEST, "freeze")?;
    let before = state(stage)?;
    let dom0s = stage.sh(DOM0S)?;
    for (gfn, reason) in SPECIAL {
        let mfn = stage.sh(&format!("stubctl locate {GUEST} {gfn:#x}"))?;
        expect_refusal(stage, &mfn, reason)?;
    }
    granted(stage)?;
    expect_refusal(stage, "0xffffffff", "nonexistent")?;
    expect_refusal(stage, "0x1", "no-owner")?;
    expect_refusal(stage, "--careless 0x1", "xens")?;
    stage.sh("xen-hptool mem-online 0x1")?;
    expect_refusal(stage, &dom0s, "dom0s")?;
    let mfn = stage.sh(&format!("stubctl locate {GUEST} 0x4321"))?;
    let devices = "/local/domain/0/backend/pci/$(xl domid pvh-net)";
    stage.sh(&format!("xenstore-write {devices}/0/online 1"))?;
    expect_refusal(stage, &mfn, "passthrough")?;
    stage.sh(&format!("xenstore-rm {devices}"))?;
    // This Xen may crash when a frame that is still marked is freed, with its guest or by dom0.
    let pages = stage.sh("stubctl pages")?;
    ensure(pages.ends_with("is offline, pending or broken"), || format!("marks of refused frames: {pages}"))?;
    let checked = stage.sh(&format!("stubctl offline --check --json {mfn}"))?;
    ensure(checked.contains("\"fit\""), || format!("a check of an ordinary page: {checked}"))?;
    stock(stage, &mfn)?;
    let after = state(stage)?;
    ensure(after == before, || format!("the refusals changed the guest: {before:?}, {after:?}"))?;
    stage.ask(GUEST, "thaw")?;
    ordinary(stage, &mfn)?;
    stage.ask(GUEST, "verify")?;
    broken(stage)?;
    stage.sh(&format!("xl destroy {GUEST} && losetup -d /dev/loop0"))?;
    free(stage, &mfn)
}

/// A page whose contents Xen holds for lost; the guest must not touch it, so it does not go on.
fn broken(stage: &Stage) -> Telling {
    let mfn = stage.sh(&format!("stubctl locate {GUEST} 0x5005"))?;
    stage.sh(&format!("xl pause {GUEST} && nest-break $(xl domid {GUEST}) {}", 0x5005))?;
    expect_refusal(stage, &mfn, "not-memory")
}

/// What a refusal must not change: frames, superpages, contents.
fn state(stage: &Stage) -> Telling<(Survey, String)> {
    let sum = stage.ask(GUEST, "verify")?.value("sum")?.to_owned();
    Ok((Survey::take(stage, GUEST)?, sum))
}

/// Every page that a back end has mapped, as Xen's debug key tells.
fn granted(stage: &Stage) -> Telling {
    let mapped = stage.sh(&format!(
        "xl debug-keys g; xl dmesg | awk -v \"guest=grant-table for remote d$(xl domid {GUEST}) \" \
         '/grant-table for remote/ {{ ours = index($0, guest); if (ours) n = 0 }} \
         ours && $2 ~ /^\\[0x/ {{ mfn[n++] = $4 }} END {{ while (n) print mfn[--n] }}'"
    ))?;
    let mut nr_granted = 0;
    for mfn in mapped.lines() {
        let said = expect_one_of(stage, mfn, &["granted", "xenstore-ring", "console-ring"])?;
        nr_granted += usize::from(said.contains("\"granted\""));
    }
    stage.say(format!("{nr_granted} pages mapped by back ends"));
    ensure(nr_granted >= NR_RINGS, || format!("expected {NR_RINGS} rings and more, got\n{mapped}"))
}

/// The stock tool does not do this case.
fn stock(stage: &Stage, mfn: &str) -> Telling {
    let stock = stage.run(&format!("xen-hptool mem-offline {mfn} 2>&1"))?;
    stage.say(format!("xen-hptool mem-offline: {}", stock.text.trim().replace('\n', " / ")));
    ensure(stock.text.contains("try live migration"), || format!("the stock tool said: {}", stock.text))
}

fn ordinary(stage: &Stage, mfn: &str) -> Telling {
    let pages = stage.sh("stubctl pages")?;
    ensure(pages.contains("pending, owned by pvh-net"), || format!("stubctl pages: {pages}"))?;
    stage.say(format!("stubctl offline: {}", stage.sh(&format!("stubctl offline {mfn}"))?));
    let again = stage.sh(&format!("stubctl offline --json {mfn}"))?;
    ensure(again.contains("\"already\""), || format!("the second time: {again}"))?;
    let pages = stage.sh("stubctl pages")?;
    ensure(pages.lines().any(|line| line == format!("mfn:{mfn}: offline")), || {
        format!("{mfn} is not among stubctl pages: {pages}")
    })
}

/// A frame that nobody uses is left alone, since this Xen might crash over it.
fn free(stage: &Stage, mfn: &str) -> Telling {
    stage.sh(&format!("xen-hptool mem-online {mfn}"))?;
    expect_refusal(stage, mfn, "no-owner")?;
    let pages = stage.sh("stubctl pages")?;
    ensure(!pages.contains(mfn), || format!("{mfn} is still among stubctl pages: {pages}"))
}

/// Expects that a frame is refused for this reason.
pub(super) fn expect_refusal(stage: &Stage, mfn: &str, reason: &str) -> Telling {
    let said = expect_one_of(stage, mfn, &[reason])?;
    let text = said.split("\"text\":\"").nth(1).and_then(|rest| rest.split('"').next());
    stage.say(format!("{reason}: {}", text.unwrap_or_default()));
    Ok(())
}

/// Expects exit code 8 and one of these names; gives all that was said.
fn expect_one_of(stage: &Stage, mfn: &str, reasons: &[&str]) -> Telling<String> {
    let outcome = stage.run(&format!("stubctl offline --json {mfn}"))?;
    let named = reasons.iter().any(|reason| outcome.text.contains(&format!("\"reason\":\"{reason}\"")));
    ensure(outcome.code == 8 && named, || format!("expected {reasons:?} of {mfn}: {}", outcome.text))?;
    Ok(outcome.text)
}
