//! Frames taken from under a PV guest, with dom0's rights.

use crate::exchange::Verdicts;
use crate::machine::Options;
use crate::stories::exchange::{limits, mapped_by_back_ends};
use crate::story::{Stage, Story, Telling, ensure};

const GUEST: &str = "pv-128";

const SAVED: &str = "/var/lib/xen/save/pv-128";

/// How many frames of data.
const NR_FRAMES: usize = 100;

/// How many of them have to be exchanged at least; the others are refused by name.
const NR_DONE: usize = 90;

/// How many of them in a call, for which the guest is suspended once.
const BATCH: usize = 10;

/// How many page tables of each level.
const NR_TABLES: usize = 4;

/// More page tables of the highest level than the guest has.
const ALL_ROOTS: usize = 100;

/// The vif's two rings.
const NR_RINGS: usize = 2;

/// The guest gets a vif. What xl tells of the making of the guest names its start_info.
const CREATE: &str = "rm -f /var/log/xen/guest-pv-128.log
xl -vvv create /etc/xen/stubdom/guests/pv-128.cfg 'vif=[\"bridge=xenbr0\"]' >/run/create.log 2>&1 && \
ask-witness pv-128 ready";

/// The machine frame of its start_info.
const START_INFO: &str = "pfn=$(sed -n 's/.*start info .*(pfn \\(0x[0-9a-f]*\\)).*/\\1/p' /run/create.log | head -n 1); \
xen-mfndump dump-p2m $(xl domid pv-128) | grep \"pfn=$pfn \" | sed -n 's/.*mfn=\\(0x[0-9a-f]*\\).*/\\1/p'";

/// The PV original.
pub(super) const EXCHANGE_PV: Story = Story {
    name: "exchange-pv",
    proves: "frames of a running PV guest, data and page tables, are exchanged where the stock tool gives up; its rings, \
             granted pages, start_info, shared_info and the roots that are loaded are refused by name; no byte and no page is \
             lost, xl goes on watching the guest, and it can be saved and restored afterwards",
    // The stock tool marks from the second processor, see `stock`.
    options: || Options { nr_cpus: Some(2), ..Options::default() },
    tell: exchange_pv,
};

fn exchange_pv(stage: &Stage) -> Telling {
    stage.sh(CREATE)?;
    let watchers = nr_watchers(stage)?;
    let before = limits(stage, GUEST, "")?;
    let data = frames(stage, "type 0x0)", NR_FRAMES)?;
    on_cpu_0(stage, data.last().map_or("", String::as_str))?;
    ensure(data.len() == NR_FRAMES, || format!("{} frames of data", data.len()))?;
    let first = data.first().map_or("", String::as_str);
    stock(stage, first)?;
    stage.ask(GUEST, "ticking")?;
    let said = stage.sh(&format!("timeout -k 5 150 stubctl offline {first}"))?;
    stage.say(format!("stubctl offline {first}: {said}"));
    let mut nr_done = 1;
    for part in data[1..].chunks(BATCH) {
        nr_done += exchange(stage, part)?.nr("done");
    }
    stage.say(format!("{nr_done} of {NR_FRAMES} frames of data exchanged"));
    ensure(nr_done >= NR_DONE, || format!("{nr_done} frames exchanged, expected {NR_DONE} at least"))?;
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    let mut marked = data;
    for level in 1..=3 {
        let tables = frames(stage, &format!("L{level}"), NR_TABLES)?;
        ensure(exchange(stage, &tables)?.nr("done") > 0, || format!("no table of level {level} exchanged"))?;
        stage.ask(GUEST, "verify")?;
        marked.extend(tables);
    }
    let roots = frames(stage, "L4", ALL_ROOTS)?;
    let verdicts = exchange(stage, &roots)?;
    ensure(verdicts.nr_with("reason", "page-table-root") > 0, || "no root is loaded".into())?;
    marked.extend(roots);
    refusals(stage)?;
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    let now = limits(stage, GUEST, "")?;
    ensure(now == before, || format!("the guest had {before}, it has {now}"))?;
    ensure(nr_watchers(stage)? == watchers, || "xl does not watch the guest any more".into())?;
    // Saving translates every entry of every page table by the machine-to-phys table and back.
    stage.sh(&format!("xl save {GUEST} {SAVED} && xl restore {SAVED}"))?;
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("xl shutdown -w {GUEST}"))?;
    stage.expect_alone()?;
    // They are sound, and other stories want the memory.
    stage.sh(&format!("for mfn in {}; do xen-hptool mem-online $mfn; done", marked.join(" ")))?;
    beside_stock(stage)
}

/// Where dom0 has no other CPU than the first, Xen may hang over such a frame.
fn on_cpu_0(stage: &Stage, mfn: &str) -> Telling {
    stage.sh("xl cpupool-cpu-remove Pool-0 1")?;
    let refused = refuses(stage, mfn, "dom0-on-cpu-0");
    stage.sh("xl cpupool-cpu-add Pool-0 1")?;
    refused
}

/// What must stay is refused by name, and is where it was.
fn refusals(stage: &Stage) -> Telling {
    let p2m = format!("xen-mfndump dump-p2m $(xl domid {GUEST}) | md5sum");
    let before = stage.sh(&p2m)?;
    for (node, reason) in [("store/ring-ref", "xenstore-ring"), ("console/ring-ref", "console-ring")] {
        let mfn = stage.sh(&format!("xenstore-read /local/domain/$(xl domid {GUEST})/{node}"))?;
        refuses(stage, &mfn, reason)?;
    }
    passthrough(stage)?;
    let start_info = stage.sh(START_INFO)?;
    refuses(stage, &start_info, "start-info")?;
    let limits = limits(stage, GUEST, "")?;
    let shared_info = limits.split("shared_info=").nth(1).unwrap_or_default();
    // It is Xen's, at no place of the guest's.
    refuses(stage, shared_info, "no-owner")?;
    let granted = mapped_by_back_ends(stage, GUEST)?;
    let said = stage.run(&format!("stubctl offline --json {granted}"))?;
    let verdicts = Verdicts::parse(&said.text)?;
    let nr_granted = verdicts.nr_with("reason", "granted");
    stage.say(format!("pages mapped by back ends: {}", verdicts.summary()));
    ensure(verdicts.nr("refused") == verdicts.len() && nr_granted >= NR_RINGS, || {
        format!("expected {NR_RINGS} rings of the vif to be refused as granted: {}", said.text)
    })?;
    let after = stage.sh(&p2m)?;
    ensure(before == after, || "the refusals changed the guest's p2m".into())
}

/// No device is there: the node in xenstore that names one is made up. The guest is not asked to suspend, which would write
/// the node that is watched.
fn passthrough(stage: &Stage) -> Telling {
    let mfn = frames(stage, "type 0x0)", 1)?.concat();
    let domid = stage.sh(&format!("xl domid {GUEST}"))?;
    let devices = format!("/local/domain/0/backend/pci/{domid}");
    stage.sh(&format!(
        "xenstore-write {devices}/0/online 1
        setsid xenstore-watch /local/domain/{domid}/control/shutdown >/run/asked 2>&1 </dev/null & echo $! >/run/asked.pid
        until [ -s /run/asked ]; do sleep 0.1; done; cp /run/asked /run/asked.first"
    ))?;
    refuses(stage, &mfn, "passthrough")?;
    stage.sh(&format!(
        "xenstore-rm {devices}; sleep 0.5; kill $(cat /run/asked.pid); cmp /run/asked /run/asked.first"
    ))?;
    Ok(())
}

/// Frames of the guest whose line in its p2m says `what`, at places that are the same each time.
fn frames(stage: &Stage, what: &str, nr: usize) -> Telling<Vec<String>> {
    let list = stage.sh(&format!(
        "xen-mfndump dump-p2m $(xl domid {GUEST}) | grep '{what}' | sed -n 's/.*mfn=\\(0x[0-9a-f]*\\).*/\\1/p' | \
         awk 'BEGIN {{ srand(7) }} {{ print rand(), $0 }}' | sort | awk 'NR <= {nr} {{ print $2 }}'"
    ))?;
    let frames: Vec<String> = list.lines().map(str::to_owned).collect();
    ensure(!frames.is_empty(), || format!("no frame with \"{what}\" in the guest's p2m"))?;
    Ok(frames)
}

/// The stock tool wants an event channel that upstream Linux does not offer. It is kept off physical CPU 0: a PV guest's
/// frame that is marked there leaves a lock behind over which Xen hangs at the next mark.
fn stock(stage: &Stage, mfn: &str) -> Telling {
    let outcome = stage.run(&format!(
        "xl vcpu-pin Domain-0 0 1; xen-hptool mem-offline {mfn} 2>&1; done=$?; xl vcpu-pin Domain-0 0 all; exit $done"
    ))?;
    stage.say(format!("xen-hptool mem-offline {mfn}: {}", outcome.text.trim().replace('\n', " / ")));
    let status = stage.sh(&format!("xen-hptool mem-status {mfn}"))?;
    ensure(outcome.code != 0 && status.contains("PENDING"), || format!("the stock tool did it: {status}"))
}

/// The stock tool led through its handshake: an event channel in the node where it looks for one (as stubctl has made it),
/// and a request to suspend once it has subscribed.
const LED: &str = "home=/local/domain/$(xl domid pv-128)
xenstore-write $home/device/suspend/event-channel $(xenstore-read $home/stubctl-suspend-port)
xl vcpu-pin Domain-0 0 1
timeout 60 xen-hptool mem-offline $mfn 2>&1 & tool=$!
sleep 2
xenstore-write $home/control/shutdown suspend
wait $tool; echo \"ended with $?\"
xenstore-rm $home/device/suspend
xl vcpu-pin Domain-0 0 all
xen-hptool mem-status $mfn
xl list pv-128 | tail -n 1
xen-hptool mem-online $mfn";

/// Both tools on a guest that may be lost: the stock tool gets to the guest's page tables, where it names dom0 as their owner,
/// and undoes what it did.
fn beside_stock(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    let data = frames(stage, "type 0x0)", 2)?;
    let ours = exchange(stage, &data[..1])?;
    ensure(ours.nr("done") == 1, || ours.texts())?;
    let said = stage.run(&format!("mfn={}\n{LED}", data[1]))?;
    stage.say(format!("xen-hptool mem-offline, led: {}", said.text.trim().replace('\n', " / ")));
    let is_so = said.text.contains("clear pte failed") && said.text.contains("PAGE_OFFLINE_PENDING");
    ensure(is_so, || format!("the stock tool, led through its handshake, said: {}", said.text))?;
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    // It is not saved: in some runs it does not hear of another suspension in the minute that xl gives it.
    stage.sh(&format!("xl destroy {GUEST}"))?;
    stage.sh(&format!("xen-hptool mem-online {}", data[0])).map(drop)
}

/// Exchanges frames of which each has to end offline, but for a root that is loaded, the one by which Linux says where its
/// p2m is, what Xen or a back end holds, and a frame whose neighbour may be free.
fn exchange(stage: &Stage, mfns: &[String]) -> Telling<Verdicts> {
    let said = stage.run(&format!("timeout -k 5 150 stubctl offline --json {}", mfns.join(" ")))?;
    let verdicts = Verdicts::parse(&said.text)?;
    let (nr_done, nr_offline) = (verdicts.nr("done"), verdicts.nr_with("state", "offline"));
    let names = ["page-table-root", "p2m", "in-use-by-xen", "beside-free", "granted"];
    let nr_named: usize = names.iter().map(|name| verdicts.mfns_refused_as(name).count()).sum();
    stage.say(format!("suspended {}: {}", verdicts.pause(), verdicts.summary()));
    let nr_p2m = verdicts.mfns_refused_as("p2m").count();
    ensure(nr_p2m <= 1, || {
        format!("{nr_p2m} frames are refused as p2m, expected the one root: {}", said.text)
    })?;
    // Exit code 8: some are refused, by name.
    let code = if nr_named > 0 { 8 } else { 0 };
    ensure(nr_done == nr_offline && nr_done + nr_named == mfns.len() && said.code == code, || {
        format!("{mfns:?}: ended with {}:\n{}", said.code, said.text)
    })?;
    Ok(verdicts)
}

/// A frame is refused with this reason.
fn refuses(stage: &Stage, mfn: &str, reason: &str) -> Telling {
    let said = stage.run(&format!("stubctl offline --json {mfn}"))?;
    let verdicts = Verdicts::parse(&said.text)?;
    ensure(said.code == 8 && verdicts.mfns_refused_as(reason).count() == 1, || {
        format!("expected {reason} of {mfn}: {}", said.text)
    })?;
    stage.say(format!("{reason}: {}", verdicts.texts()));
    Ok(())
}

/// How many xl wait for the end of a guest.
fn nr_watchers(stage: &Stage) -> Telling<String> {
    stage.sh("ps | grep -c '[x]l .*create' || true")
}
