//! An exchange while the guest is being migrated.

use super::refusals::expect_refusal;
use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};

/// Refused until the guest has moved.
pub(in crate::stories) const SAVING: Story = Story {
    name: "exchange-saving",
    proves: "while a guest is being migrated live its frames are refused, the copy that arrives has no wrong byte, and \
             the frame that the domain left behind has no mark over which this Xen could crash; frames of a guest that the \
             packaged helper is restoring are refused until it runs",
    options: Options::default,
    tell: saving,
};

const GUEST: &str = "pvh-128";

fn saving(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("stubctl attach {GUEST} && ask-witness {GUEST} rate 2000"))?;
    let mfn = stage.sh(&format!("stubctl locate {GUEST} 0x4005"))?;
    let said = stage.run(&format!(
        "printf '#!/bin/bash\\nexec xl migrate-receive\\n' >/run/receive.sh; chmod +x /run/receive.sh; \
         timeout 200 xl migrate -s '' {GUEST} /run/receive.sh >/run/migrate.log 2>&1 & \
         until pidof libxl-save-helper >/dev/null; do sleep 0.05; done; sleep 0.5; \
         stubctl offline --json {mfn}; echo \"ended with $?\"; wait $!; echo \"xl migrate: $?\""
    ))?;
    let is_refused = said.text.contains("\"being-saved\"") && said.text.contains("ended with 8");
    stage.say(said.text.trim().replace('\n', " / "));
    ensure(is_refused, || format!("expected being-saved: {}", said.text))?;
    ensure(said.text.contains("xl migrate: 0"), || format!("the migration failed: {}", said.text))?;
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    let pages = stage.sh("stubctl pages")?;
    ensure(!pages.contains(&mfn), || format!("{mfn} of the domain that is gone is still marked: {pages}"))?;
    arriving(stage)
}

/// Where the stream of a restore waits: the guest has memory by then, and its helper wants more of the stream.
const PART: u32 = 40 << 20;

/// A restore that waits in the midst of its stream, until there is a file.
fn arriving(stage: &Stage) -> Telling {
    let (file, pipe, go) = ("/var/lib/xen/save/arriving", "/run/arriving", "/run/arrive");
    stage.sh(&format!(
        "xl save {GUEST} {file} && mkfifo {pipe}
        (head -c {PART} {file}; until [ -e {go} ]; do sleep 0.1; done; tail -c +{} {file}) >{pipe} &
        setsid xl restore {pipe} >/run/restore.log 2>&1 </dev/null &
        for i in $(seq 300); do xl domid {GUEST} >/dev/null 2>&1 && stubctl attach {GUEST} && exit 0; sleep 0.2; done; exit 1",
        PART + 1
    ))?;
    // Frames come one after another: some are there by now.
    let mfn = stage.sh(&format!(
        "for i in $(seq 100); do mfn=$(stubctl locate {GUEST} 0x105); [ $mfn = - ] || {{ echo $mfn; exit 0; }}; sleep 0.2; \
         done; exit 1"
    ))?;
    expect_refusal(stage, &mfn, "being-built")?;
    stage.sh(&format!(
        "touch {go}; for i in $(seq 300); do pidof libxl-save-helper >/dev/null || exit 0; sleep 0.2; done; exit 1"
    ))?;
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("stubctl offline {mfn} && xen-hptool mem-online {mfn}"))?;
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("xl destroy {GUEST}; rm {file} {pipe} {go}")).map(drop)
}
