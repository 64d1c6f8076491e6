//! The daemon that takes reports of errors.

use super::GUEST;
use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};

/// Fed by the hooks that are shipped.
pub(in crate::stories) const WATCH: Story = Story {
    name: "exchange-watch",
    proves: "stubctl watch, fed by the hooks for mcelog and rasdaemon, takes a frame out of use at the threshold and not \
             before, says so in a line for each decision, and after a kill -9 goes on where it was, without counting a \
             report or touching a frame twice",
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
const START: &str = "setsid stubctl watch --spool /run/spool --state /run/watch.json --threshold 3 --interval-s 1 \
     >>/run/watch.log 2>&1 </dev/null & echo $! >/run/watch.pid";

fn watch(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!(
        "stubctl attach {GUEST}; mkdir -p /run/spool /run/hooks; rm -f {LOG} /run/watch.json"
    ))?;
    for (name, text) in HOOKS {
        stage.sh(&format!("cat >/run/hooks/{name} <<'END_OF_HOOK'\n{text}END_OF_HOOK"))?;
    }
    let located = stage.sh(&format!("stubctl locate {GUEST} 0x9005 0xa005"))?;
    let (one, other) = located.split_once('\n').unwrap_or_default();
    stage.sh(START)?;
    rasdaemon(stage, one, 2)?;
    rasdaemon(stage, other, 1)?;
    expect_line(stage, &format!("mfn:{one}: 2 errors of 3"))?;
    ensure(!stage.sh(&format!("cat {LOG}"))?.contains("taking it"), || "below the threshold".into())?;
    stage.sh("kill -9 $(cat /run/watch.pid)")?;
    rasdaemon(stage, one, 1)?;
    stage.sh(START)?;
    expect_line(stage, &format!("mfn:{one}: 3 errors of 3"))?;
    expect_line(stage, "exchanged for")?;
    // mcelog names an address and does the counting itself, so it reports a page once.
    for _ in 0..2 {
        let message = format!("Corrected memory errors on page {:x}000 exceed threshold", number(other));
        stage.sh(&format!(
            "XEN_STUBDOM_SPOOL=/run/spool MESSAGE='{message}' sh /run/hooks/mcelog; sleep 1.1"
        ))?;
    }
    expect_line(stage, &format!("mfn:{other}: 3 errors of 3"))?;
    rasdaemon(stage, one, 5)?;
    expect_line(stage, &format!("mfn:{one}: 8 errors of 3"))?;
    stage.sh("sleep 2; kill $(cat /run/watch.pid); for i in $(seq 50); do pidof stubctl || exit 0; sleep 0.1; done; exit 1")?;
    let log = stage.sh(&format!("cat {LOG}"))?;
    log.lines().for_each(|line| stage.say(line));
    let nr_done = log.matches("exchanged for").count();
    ensure(nr_done == 2 && log.matches("taking it").count() == 2, || {
        format!("{nr_done} exchanges, expected 2")
    })?;
    for mfn in [one, other] {
        let said =
            stage.sh(&format!("stubctl offline --json {mfn} && xen-hptool mem-online {mfn} >/dev/null"))?;
        ensure(said.contains("\"already\""), || format!("not out of use: {said}"))?;
    }
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("xl destroy {GUEST}")).map(drop)
}

/// Reports as rasdaemon does.
fn rasdaemon(stage: &Stage, mfn: &str, count: u32) -> Telling {
    let address = format!("{:#x}", number(mfn) << 12 | 0x40);
    let report = format!("TYPE=Corrected ADDRESS={address} COUNT={count}");
    stage.sh(&format!("XEN_STUBDOM_SPOOL=/run/spool {report} sh /run/hooks/rasdaemon")).map(drop)
}

fn number(mfn: &str) -> u64 {
    u64::from_str_radix(mfn.trim_start_matches("0x"), 16).unwrap_or_default()
}

fn expect_line(stage: &Stage, text: &str) -> Telling {
    let wait = format!(
        "for i in $(seq 100); do grep -qF '{text}' {LOG} && exit 0; sleep 0.2; done; cat {LOG}; exit 1"
    );
    stage.sh(&wait).map(drop)
}
