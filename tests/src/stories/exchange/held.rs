//! An old frame that somebody holds whom nothing tells of.

use super::GUEST;
use super::state::limits;
use crate::exchange::Verdicts;
use crate::story::{Stage, Telling, ensure};

/// A page that is not exchanged otherwise.
const GFN: &str = "0x7205";

/// Dom0 maps the page beforehand, as no grant and no parameter tells: reported after the exchange. Once it is let go of the
/// frame is out of use, or in use again where its mark was taken back, which stubctl says.
pub(super) fn held(stage: &Stage) -> Telling {
    let before = limits(stage, GUEST, "")?;
    let mfn = stage.sh(&format!("stubctl locate {GUEST} {GFN}"))?;
    stage.sh(&format!(
        "setsid nest-hold $(xl domid {GUEST}) {GFN} >/run/held 2>&1 </dev/null & echo $! >/run/held.pid; \
         for i in $(seq 50); do ! grep -qx held /run/held || exit 0; sleep 0.1; done; cat /run/held; exit 1"
    ))?;
    let said = stage.run(&format!("stubctl offline --json --split {mfn}"))?;
    let verdicts = Verdicts::parse(&said.text)?;
    stage.say(format!("while dom0 holds the old frame: {}", verdicts.texts()));
    ensure(said.code == 9 && verdicts.nr("held") == 1, || {
        format!("expected held and exit code 9, got {}: {}", said.code, said.text)
    })?;
    ensure(verdicts.texts().contains("held by"), || format!("no word of a holder: {}", verdicts.texts()))?;
    let is_marked = stage.sh("stubctl pages")?.contains(&format!("mfn:{mfn}: pending"));
    ensure(is_marked != verdicts.texts().contains("its mark is taken back"), || {
        format!("is {mfn} marked? {is_marked}, against what was said: {}", verdicts.texts())
    })?;
    stage.ask(GUEST, "ticking")?;
    stage.sh("kill $(cat /run/held.pid)")?;
    await_status(stage, &mfn, if is_marked { "PAGE_OFFLINED" } else { "[ PAGE_ONLINED" })?;
    let after = limits(stage, GUEST, "")?;
    ensure(before == after, || format!("the guest had {before}, it has {after}"))?;
    if is_marked {
        stage.sh(&format!("xen-hptool mem-online {mfn}"))?;
    }
    Ok(())
}

/// Waits until Xen says this of a frame.
fn await_status(stage: &Stage, mfn: &str, word: &str) -> Telling {
    stage
        .sh(&format!(
            "for i in $(seq 50); do said=$(xen-hptool mem-status {mfn} 2>&1); \
             case $said in *\"{word}\"*) exit 0;; esac; sleep 0.1; done; echo \"$said\"; exit 1"
        ))
        .map(drop)
}
