//! The daemon that takes reports of errors.

use super::GUEST;
use crate::machine::Options;
use crate::story::{Stage, Stop, Story, Telling, ensure};

/// Fed by the hooks that are shipped.
pub(in crate::stories) const WATCH: Story = Story {
    name: "exchange-watch",
    proves: "stubctl watch, fed by the hooks for mcelog and rasdaemon, by a file that grows and by a command, takes a frame out \
             of use at the threshold and not before, says so in a line for each decision, and after a kill -9, between two \
             reports or in the midst of an exchange, goes on where it was, without counting a report or exchanging a frame \
             twice",
    options: Options::default,
    tell: watch,
};

/// The hooks as they are shipped.
const HOOKS: [(&str, &str); 2] = [
    ("mcelog", include_str!("../../../../dist/mcelog-page-trigger")),
    ("rasdaemon", include_str!("../../../../dist/rasdaemon-mc-trigger")),
];

const LOG: &str = "/run/watch.log";

/// Starts the daemon.
const START: &str = "setsid stubctl watch --spool /run/spool --file /run/errors \
     --command 'mv /run/reports /run/reported 2>/dev/null && cat /run/reported; true' \
     --state /run/watch.json --threshold 3 --interval-s 1 >>/run/watch.log 2>&1 </dev/null & echo $! >/run/watch.pid";

/// How many frames are taken out of use, and how often that is begun.
const NR_DONE: usize = 4;
const NR_BEGUN: usize = 5;

fn watch(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!(
        "stubctl attach {GUEST}; mkdir -p /run/spool /run/hooks; rm -f {LOG} /run/watch.json /run/errors /run/reports"
    ))?;
    for (name, text) in HOOKS {
        stage.sh(&format!("cat >/run/hooks/{name} <<'END_OF_HOOK'\n{text}END_OF_HOOK"))?;
    }
    let located = stage.sh(&format!("stubctl locate {GUEST} 0x9005 0xa005 0xb005 0xc005"))?;
    let mfns: Vec<&str> = located.lines().collect();
    let [one, other, third, fourth] = mfns[..] else {
        return Err(Stop::Failure(format!("expected four frames: {located}")));
    };
    stage.sh(START)?;
    by_the_hooks(stage, one, other)?;
    stage.sh(&format!("echo '{:#x} 3' >>/run/errors", address(third)))?;
    expect_line(stage, &format!("mfn:{third}: 3 errors of 3, /run/errors"))?;
    expect_line(stage, &format!("mfn:{third} of .*: exchanged for"))?;
    killed_in_an_exchange(stage, fourth)?;
    stage.sh("sleep 2; kill $(cat /run/watch.pid); for i in $(seq 50); do pidof stubctl || exit 0; sleep 0.1; done; exit 1")?;
    let log = stage.sh(&format!("cat {LOG}"))?;
    log.lines().for_each(|line| stage.say(line));
    let (nr_done, nr_begun) = (log.matches(": exchanged for").count(), log.matches("taking it").count());
    ensure((nr_done, nr_begun) == (NR_DONE, NR_BEGUN), || {
        format!("{nr_begun} exchanges begun, {nr_done} done, expected {NR_BEGUN} and {NR_DONE}")
    })?;
    for mfn in mfns {
        let said =
            stage.sh(&format!("stubctl offline --json {mfn} && xen-hptool mem-online {mfn} >/dev/null"))?;
        ensure(said.contains("\"already\""), || format!("not out of use: {said}"))?;
    }
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("xl destroy {GUEST}"))?;
    stage.expect_alone()
}

/// Errors that rasdaemon and mcelog report; the daemon is killed between two of them.
fn by_the_hooks(stage: &Stage, one: &str, other: &str) -> Telling {
    rasdaemon(stage, one, 2)?;
    rasdaemon(stage, other, 1)?;
    expect_line(stage, &format!("mfn:{one}: 2 errors of 3"))?;
    ensure(!stage.sh(&format!("cat {LOG}"))?.contains("taking it"), || "below the threshold".into())?;
    stage.sh("kill -9 $(cat /run/watch.pid)")?;
    rasdaemon(stage, one, 1)?;
    stage.sh(START)?;
    expect_line(stage, &format!("mfn:{one}: 3 errors of 3"))?;
    expect_line(stage, &format!("mfn:{one} of .*: exchanged for"))?;
    // mcelog names an address and does the counting itself, so it reports a page once.
    for _ in 0..2 {
        let message = format!("Corrected memory errors on page {:x} exceed threshold", address(other));
        stage.sh(&format!(
            "XEN_STUBDOM_SPOOL=/run/spool MESSAGE='{message}' sh /run/hooks/mcelog; sleep 1.1"
        ))?;
    }
    expect_line(stage, &format!("mfn:{other}: 3 errors of 3"))?;
    expect_line(stage, &format!("mfn:{other} of .*: exchanged for"))?;
    rasdaemon(stage, one, 5)?;
    expect_line(stage, &format!("mfn:{one}: 8 errors of 3"))
}

/// Errors that the command reports, once; the daemon is killed while it waits for the stub, which is held still for that.
fn killed_in_an_exchange(stage: &Stage, mfn: &str) -> Telling {
    let stub = stage.sh("xl list | awk '/stubdom/ { print $2 }'")?;
    stage.sh(&format!("xl pause {stub}"))?;
    stage.sh(&format!("echo '{:#x} 3' >/run/new && mv /run/new /run/reports", address(mfn)))?;
    expect_line(stage, &format!("mfn:{mfn}: taking it out of use"))?;
    let pages = stage.sh("sleep 1; kill -9 $(cat /run/watch.pid) && stubctl pages")?;
    ensure(pages.contains(&format!("mfn:{mfn}: pending")), || {
        format!("the exchange of {mfn} was not under way: {pages}")
    })?;
    stage.sh(&format!("xl unpause {stub}"))?;
    stage.sh(START)?;
    expect_line(stage, &format!("mfn:{mfn} of .*: exchanged for"))
}

/// Reports as rasdaemon does.
fn rasdaemon(stage: &Stage, mfn: &str, count: u32) -> Telling {
    let report = format!("TYPE=Corrected ADDRESS={:#x} COUNT={count}", address(mfn) | 0x40);
    stage.sh(&format!("XEN_STUBDOM_SPOOL=/run/spool {report} sh /run/hooks/rasdaemon")).map(drop)
}

/// The physical address of a frame.
fn address(mfn: &str) -> u64 {
    u64::from_str_radix(mfn.trim_start_matches("0x"), 16).unwrap_or_default() << 12
}

/// Waits for a line of the daemon's with this pattern.
fn expect_line(stage: &Stage, pattern: &str) -> Telling {
    let wait = format!(
        "for i in $(seq 100); do grep -q '{pattern}' {LOG} && exit 0; sleep 0.2; done; cat {LOG}; exit 1"
    );
    stage.sh(&wait).map(drop)
}
