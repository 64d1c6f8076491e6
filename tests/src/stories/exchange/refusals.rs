//! What must be left alone, and is: with a name for each, and the guest as it was.

use super::state::{State, limits};
use crate::exchange::Verdicts;
use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};

/// What must be left alone.
pub(in crate::stories) const REFUSALS: Story = Story {
    name: "exchange-refusals",
    proves: "special and broken pages, pages mapped by a network and a disk back end, dom0's, Xen's, the stub's and absent frames, \
             and all of a guest with passed-through devices are refused, each by its own name, and the guest is untouched; \
             the stock tool gives up on an ordinary page of the same guest, which is then exchanged; no frame is marked when \
             its guest goes before the exchange has begun",
    options: Options::default,
    tell: refusals,
};

/// A guest with a vif.
const GUEST: &str = "pvh-net";

/// Pages of its RAM.
const NR_PAGES: usize = 0x8000;

/// Makes it a disk, of which the back end is to keep mapped what it has mapped for longer than a minute.
const MAKE_DISK: &str = "echo 3600 >/sys/module/xen_blkback/parameters/persistent_grant_unused_seconds && \
     dd if=/dev/zero of=/run/disk bs=1M count=8 2>/dev/null && losetup /dev/loop0 /run/disk";

/// The guest writes the disk at its start.
const DISK: &str = "'disk=[\"phy:/dev/loop0,xvda,w\"]' 'extra+=\" nest.disk\"'";

/// Pages by the role that keeps them where they are, and the name of the refusal. libxc puts them there.
const SPECIAL: &[(u64, &str)] =
    &[(0xfeffc, "xenstore-ring"), (0xfeffe, "identity-page-table"), (0xfefff, "console-ring")];

/// A frame of Xen's image: Xen says at its start where it moves to, and its text begins 2 MiB behind.
const IMAGE: &str = "xl dmesg | sed -n 's/.*New Xen image base address: 0x\\([0-9a-f]*\\)000$/\\1/p' | \
     while read -r first; do printf '%#x' $((0x$first + 0x210)); done";

/// A frame of dom0's: Xen says at its start which ones it gave it, and goes on in the middle of them.
const DOM0S: &str = "xl dmesg | sed -n 's/.*Dom0 alloc.: *\\([0-9a-f]*\\)000->.*/\\1/p' | \
     while read -r first; do printf '%#x' $((0x$first + 0x2000)); done";

/// The vif's two rings and the disk's one.
const NR_RINGS: usize = 3;

/// Fewest pages besides that the disk's back end keeps mapped: those of one request of 64 KiB, of which the guest has made 16.
const NR_PERSISTENT: usize = 16;

fn refusals(stage: &Stage) -> Telling {
    stage.sh(MAKE_DISK)?;
    stage.create_with(GUEST, DISK)?;
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    stage.ask(GUEST, "freeze")?;
    let before = State::take(stage, GUEST, NR_PAGES)?;
    let dom0s = stage.sh(DOM0S)?;
    for (gfn, reason) in SPECIAL {
        let mfn = stage.sh(&format!("stubctl locate {GUEST} {gfn:#x}"))?;
        expect_refusal(stage, &mfn, reason)?;
    }
    granted(stage)?;
    xens_for_the_guest(stage)?;
    of_another(stage)?;
    of_the_stub(stage)?;
    expect_refusal(stage, "0xffffffff", "nonexistent")?;
    expect_refusal(stage, "0x1", "no-owner")?;
    expect_refusal(stage, "--careless 0x1", "xens")?;
    stage.sh("xen-hptool mem-online 0x1")?;
    expect_refusal(stage, &format!("--careless {}", stage.sh(IMAGE)?), "xens")?;
    expect_refusal(stage, &dom0s, "dom0s")?;
    let mfn = stage.sh(&format!("stubctl locate {GUEST} 0x4321"))?;
    stage.say("no PCI device on this machine: the node in xenstore that tells of one is made up");
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
    before.expect_same(stage, GUEST, NR_PAGES)?;
    stage.ask(GUEST, "thaw")?;
    ordinary(stage, &mfn)?;
    stage.ask(GUEST, "verify")?;
    broken(stage)?;
    stage.sh(&format!("xl destroy {GUEST} && losetup -d /dev/loop0"))?;
    free(stage, &mfn)?;
    goes_meanwhile(stage)
}

/// A guest that is destroyed while stubctl waits for its stub, which is held still. A frame that it had marked would be freed so,
/// which damages this Xen: it is not marked by then. That stubctl waits shows in its guardian, whose name is that of
/// /proc/self/exe.
fn goes_meanwhile(stage: &Stage) -> Telling {
    let guest = "pvh-128";
    stage.create(guest)?;
    let mfn = stage.sh(&format!("stubctl attach {guest} >/dev/null && stubctl locate {guest} {OF_OTHER}"))?;
    let said = stage.sh(&format!(
        "stub=$(xenstore-read /local/domain/$(xl domid {guest})/stubdom); xl pause $stub
        stubctl offline --json {mfn} >/run/meanwhile 2>&1 & offline=$!
        until pidof exe >/dev/null; do kill -0 $offline || exit 1; sleep 0.05; done
        xen-hptool mem-status {mfn} 2>&1
        xl destroy {guest}; xl unpause $stub; wait $offline; echo \"ended with $?\"; cat /run/meanwhile
        xen-hptool mem-status {mfn} 2>&1"
    ))?;
    stage.say(said.replace('\n', " / "));
    let is_named = ["dying", "changing-hands"].iter().any(|reason| said.contains(&format!("\"{reason}\"")));
    ensure(is_named && said.contains("ended with 8"), || format!("expected a refusal by name: {said}"))?;
    ensure(said.matches("[ PAGE_ONLINED").count() == 2, || {
        format!("the frame was marked when its guest went: {said}")
    })
}

/// A page whose contents Xen holds for lost; the guest must not touch it, so it does not go on.
fn broken(stage: &Stage) -> Telling {
    let mfn = stage.sh(&format!("stubctl locate {GUEST} 0x5005"))?;
    stage.sh(&format!("xl pause {GUEST} && nest-break $(xl domid {GUEST}) {}", 0x5005))?;
    expect_refusal(stage, &mfn, "broken")
}

/// A guest that was never let run.
const OTHER: &str =
    "xl create -p -q /etc/xen/stubdom/guests/pvh-128.cfg 'name=\"other\"' && stubctl attach other";

/// A page of the other guest, at a gfn that this guest has too.
const OF_OTHER: &str = "0x4005";

/// Frames that Xen itself has for the guest (its `shared_info`, its grant table), as Xen's debug key tells.
const XENS_FOR_THE_GUEST: &str = "xl debug-keys q; xl dmesg | awk -v \"guest=General information for domain $(xl domid pvh-net):\" \
     '/General information for domain/ { ours = index($0, guest); if (ours) n = 0 } \
     ours && $2 == \"XenPage\" { sub(\":\", \"\", $3); mfn[n++] = $3 } END { while (n) print \"0x\" mfn[--n] }'";

/// They would be refused, though the guest has some of them at places of its own: asked by a check, since an exchange of
/// them would take the guest's grants or events away.
fn xens_for_the_guest(stage: &Stage) -> Telling {
    let mfns = stage.sh(XENS_FOR_THE_GUEST)?;
    let said = stage.run(&format!("stubctl offline --check --json {}", mfns.replace('\n', " ")))?;
    let verdicts = Verdicts::parse(&said.text)?;
    stage.say(format!("Xen's for the guest: {}", verdicts.summary()));
    let nr_named: usize = ["no-owner", "shared-info", "xens"]
        .iter()
        .map(|reason| verdicts.mfns_refused_as(reason).count())
        .sum();
    let nr_frames = mfns.lines().count();
    ensure(said.code == 8 && nr_frames > 1 && nr_named == nr_frames, || {
        format!("expected {mfns} to be refused: {}", said.text)
    })
}

/// Another guest's frame is refused by the stub, which is asked for it against all order; the other guest is as it was.
fn of_another(stage: &Stage) -> Telling {
    stage.sh(OTHER)?;
    let limits = || limits(stage, "other", &format!("0:{NR_PAGES}"));
    let frames = || stage.sh("stubctl map --json other && stubctl locate other $(seq 16384 1 16896)");
    let before = (limits()?, frames()?);
    let mfn = stage.sh(&format!("stubctl locate other {OF_OTHER}"))?;
    expect_refusal(stage, &format!("--debug-ask {GUEST} {mfn}"), "not-the-guests")?;
    let after = (limits()?, frames()?);
    ensure(before == after, || format!("the other guest was {before:?}, it is {after:?}"))?;
    stage.sh("xl destroy other").map(drop)
}

/// A stub cannot suspend, so it is not asked to: the refusal says how to end it.
fn of_the_stub(stage: &Stage) -> Telling {
    let stub = stage.sh(&format!("xenstore-read /local/domain/$(xl domid {GUEST})/stubdom"))?;
    let ring = stage.sh(&format!("xenstore-read /local/domain/{stub}/store/ring-ref"))?;
    expect_refusal(stage, &ring, "stubs-own")?;
    stage.sh(&format!("stubctl status | grep -q {GUEST}")).map(drop)
}

/// Refuses every page that a back end has mapped, among them those that the disk's keeps mapped between requests.
fn granted(stage: &Stage) -> Telling {
    let mapped = mapped_by_back_ends(stage, GUEST)?;
    let said = stage.run(&format!("stubctl offline --json {mapped}"))?;
    let verdicts = Verdicts::parse(&said.text)?;
    let nr_named: Vec<usize> = ["granted", "xenstore-ring", "console-ring"]
        .map(|reason| verdicts.mfns_refused_as(reason).count())
        .to_vec();
    let nr_mapped = mapped.split(' ').count();
    stage.say(format!("{nr_mapped} pages mapped by back ends: {}", verdicts.summary()));
    ensure(said.code == 8 && nr_named.iter().sum::<usize>() == nr_mapped, || {
        format!("expected all of {mapped} to be refused as granted: {}", said.text)
    })?;
    ensure(nr_named[0] >= NR_RINGS + NR_PERSISTENT, || {
        format!("expected {NR_RINGS} rings and {NR_PERSISTENT} pages of requests and more, got\n{mapped}")
    })
}

/// The frames of a guest that other domains have mapped by grants, as Xen's debug key tells.
pub(in crate::stories) fn mapped_by_back_ends(stage: &Stage, guest: &str) -> Telling<String> {
    let mapped = stage.sh(&format!(
        "xl debug-keys g; xl dmesg | awk -v \"guest=grant-table for remote d$(xl domid {guest}) \" \
         '/grant-table for remote/ {{ ours = index($0, guest); if (ours) n = 0 }} \
         ours && $2 ~ /^\\[0x/ {{ mfn[n++] = $4 }} END {{ while (n) print mfn[--n] }}'"
    ))?;
    Ok(mapped.replace('\n', " "))
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

/// Expects exit code 8, and that a frame is refused for this reason.
pub(super) fn expect_refusal(stage: &Stage, mfn: &str, reason: &str) -> Telling {
    let said = stage.run(&format!("stubctl offline --json {mfn}"))?;
    let verdicts = Verdicts::parse(&said.text)?;
    let is_so = verdicts.len() == 1 && verdicts.mfns_refused_as(reason).count() == 1;
    ensure(said.code == 8 && is_so, || format!("expected {mfn} to be refused as {reason}: {}", said.text))?;
    stage.say(format!("{reason}: {}", verdicts.texts()));
    Ok(())
}
