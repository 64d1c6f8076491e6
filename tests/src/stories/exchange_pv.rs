//! Frames taken from under a PV guest, with dom0's rights.

use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};

const GUEST: &str = "pv-128";

const SAVED: &str = "/var/lib/xen/save/pv-128";

/// How many frames of data.
const NR_FRAMES: usize = 100;

/// How many of them in a call, for which the guest is suspended once.
const BATCH: usize = 10;

/// How many page tables of each level.
const NR_TABLES: usize = 4;

/// The PV original.
pub(super) const EXCHANGE_PV: Story = Story {
    name: "exchange-pv",
    proves: "frames of a running PV guest, data and page tables, are exchanged where the stock tool gives up; its rings \
             are refused by name; no byte and no page is lost, xl goes on watching the guest, \
             and it can be saved and restored afterwards",
    options: Options::default,
    tell: exchange_pv,
};

fn exchange_pv(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    let watchers = nr_watchers(stage)?;
    let pages = stage.sh(&format!("xl list {GUEST} | awk 'NR == 2 {{ print $3 }}'"))?;
    let data = frames(stage, "type 0x0)", NR_FRAMES)?;
    let first = data.first().map_or("", String::as_str);
    stock(stage, first)?;
    stage.ask(GUEST, "ticking")?;
    let said = stage.sh(&format!("timeout -k 5 150 stubctl offline {first}"))?;
    stage.say(format!("stubctl offline {first}: {said}"));
    for part in data[1..].chunks(BATCH) {
        exchange(stage, part)?;
    }
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    let mut marked = data;
    for level in 1..=3 {
        let tables = frames(stage, &format!("L{level}"), NR_TABLES)?;
        exchange(stage, &tables)?;
        stage.ask(GUEST, "verify")?;
        marked.extend(tables);
    }
    refuses(stage, "store/ring-ref", "xenstore-ring")?;
    refuses(stage, "console/ring-ref", "console-ring")?;
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    let now = stage.sh(&format!("xl list {GUEST} | awk 'NR == 2 {{ print $3 }}'"))?;
    ensure(now == pages, || format!("the guest had {pages} MiB, it has {now}"))?;
    ensure(nr_watchers(stage)? == watchers, || "xl does not watch the guest any more".into())?;
    // Saving translates every entry of every page table by the machine-to-phys table and back.
    stage.sh(&format!("xl save {GUEST} {SAVED} && xl restore {SAVED}"))?;
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("xl shutdown -w {GUEST}"))?;
    stage.expect_alone()?;
    // They are sound, and other stories want the memory.
    stage.sh(&format!("for mfn in {}; do xen-hptool mem-online $mfn; done", marked.join(" "))).map(drop)
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

/// Exchanges frames of which each has to end offline, but for a root that is loaded, what Xen holds, and a frame whose
/// neighbour may be free.
fn exchange(stage: &Stage, mfns: &[String]) -> Telling {
    // Exit code 8: some are refused, by name.
    let said =
        stage.sh(&format!("timeout -k 5 150 stubctl offline --json {} || [ $? -eq 8 ]", mfns.join(" ")))?;
    let count = |what: &str| said.lines().filter(|line| line.contains(what)).count();
    let (done, offline) = (count("\"result\":\"done\""), count("\"state\":\"offline\""));
    let names = ["page-table-root", "in-use-by-xen", "beside-free"];
    let named: usize = names.iter().map(|name| count(&format!("\"reason\":\"{name}\""))).sum();
    let pause =
        said.split("\"pause_us\":").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or_default();
    stage.say(format!(
        "{done} of {} frames exchanged, {named} refused by name; suspended {pause} us",
        mfns.len()
    ));
    ensure(done == offline && done > 0 && done + named == mfns.len(), || format!("{mfns:?}:\n{said}"))
}

/// A frame that a node of xenstore names is refused with this reason.
fn refuses(stage: &Stage, node: &str, reason: &str) -> Telling {
    let mfn = format!("$(xenstore-read /local/domain/$(xl domid {GUEST})/{node})");
    let said = stage.sh(&format!("stubctl offline --json {mfn} || [ $? -eq 8 ]"))?;
    ensure(said.contains(&format!("\"reason\":\"{reason}\"")), || format!("expected {reason}: {said}"))
}

/// How many xl wait for the end of a guest.
fn nr_watchers(stage: &Stage) -> Telling<String> {
    stage.sh("ps | grep -c '[x]l create' || true")
}
