//! A device model that is slow: what was stopped for an exchange goes on in the end.

use super::deaths::{await_limits, runs};
use super::state::limits;
use crate::story::{Stage, Telling, ensure};

/// Longer than stubctl waits for an answer, and than the guardian waits for a greeting: it has to try more than once.
const SECONDS: u32 = 24;

/// Where stubctl notes what of a guest has to be put right.
const RECORD: &str = "/local/domain/$(xl domid {guest})/stubdom-exchange";

/// Has the answer to `cont` come too late, so that the device model stays stopped; says so, and sees it go on all the same.
pub(super) fn outlive_a_slow_monitor(stage: &Stage, guest: &str, gfn: u64) -> Telling {
    let before = limits(stage, guest, "")?;
    let mfn = stage.sh(&format!("stubctl locate {guest} {gfn:#x}"))?;
    stage.sh(&format!(
        "setsid nest-monitor /var/run/xen/qmp-libxl-$(xl domid {guest}) cont {SECONDS} >/run/monitor 2>&1 </dev/null & \
         echo $! >/run/monitor.pid; until grep -q ready /run/monitor; do sleep 0.1; done"
    ))?;
    let late = stage.run(&format!("timeout 120 stubctl offline {mfn} 2>&1"))?;
    let told = late.text.contains("did not answer \"cont\" within 10 s")
        && late.text.contains("xl qemu-monitor-command");
    ensure(late.code == 1 && told, || {
        format!("expected it to fail at \"cont\", it ended with {}: {}", late.code, late.text)
    })?;
    let record = RECORD.replace("{guest}", guest);
    let noted = stage.run(&format!("xenstore-read {record}"))?;
    ensure(noted.text.contains("\"device_model_stopped\":true"), || {
        format!("nothing is noted: {}", noted.text)
    })?;
    // The guardian goes on trying, and nobody else does anything.
    stage.sh(&format!(
        "for i in $(seq 600); do xenstore-read {record} >/dev/null 2>&1 || exit 0; sleep 0.2; done; exit 1"
    ))?;
    stage.sh(&format!(
        "kill $(cat /run/monitor.pid); cd /var/run/xen && mv -f qmp-libxl-$(xl domid {guest}).real qmp-libxl-$(xl domid {guest})"
    ))?;
    runs(stage, guest)?;
    await_limits(stage, guest, &before)?;
    let again =
        stage.sh(&format!("timeout 60 stubctl offline {mfn} && xen-hptool mem-online {mfn} >/dev/null"))?;
    stage.say(format!("a device model that answers \"cont\" too late: {}; then: {again}", late.text.trim()));
    stage.ask(guest, "verify").map(drop)
}
