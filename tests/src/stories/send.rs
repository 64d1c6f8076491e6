//! A guest that leaves through its stub.

use crate::machine::Options;
use crate::story::{Stage, Story, THROUGH_STUB, Telling, ensure};

/// A PVH guest, saved and migrated.
pub(super) const PVH: Story = Story {
    name: "send-pvh",
    proves: "a PVH guest saved through its stub is the guest that the packaged helper saves, page by page; both receivers \
             restore it; while it writes its memory it migrates live to the packaged receiver and to ours; nothing stays \
             behind, nor after a receiver or stubctl died",
    options: Options::default,
    tell: |stage| sends(stage, "pvh-128"),
};

/// The same with a device model.
pub(super) const HVM: Story = Story {
    name: "send-hvm",
    proves: "the same of an HVM guest with its device model, which writes to the guest's memory too",
    options: Options::default,
    tell: |stage| sends(stage, "hvm-256"),
};

const FILE: &str = "/var/lib/xen/save/send";
const STOCK_FILE: &str = "/var/lib/xen/save/send.stock";

/// A script that receives a part of a stream.
const RECEIVER: &str = "/run/send-receiver";
/// What a receiver says first (`tools/xl/xl_migrate.c`).
const BANNER: &str = "printf 'xl migration receiver ready, send binary domain data.\\n'";

/// Pages that the witness writes in a second.
const BUSY: u64 = 512;

fn sends(stage: &Stage, guest: &str) -> Telling {
    stage.create(guest)?;
    saves_the_same(stage, guest)?;
    restores(stage, guest)?;
    migrates(stage, guest)?;
    breaks_off(stage, guest)?;
    stage.sh(&format!("xl destroy {guest}; rm {FILE} {STOCK_FILE}"))?;
    stage.expect_alone()
}

/// Both helpers save the same suspended guest, one after the other.
fn saves_the_same(stage: &Stage, guest: &str) -> Telling {
    let said = stage.sh(&format!(
        "NEST_SECOND={STOCK_FILE} LIBXL_SAVE_HELPER=/usr/bin/nest-twice xl save {guest} {FILE} 2>&1"
    ))?;
    sent(&said)?;
    stage.say(stage.sh(&format!("nest-same {FILE} {STOCK_FILE}"))?);
    Ok(())
}

/// The packaged helper and ours restore what was saved; a guest that goes on after its save does so at once.
fn restores(stage: &Stage, guest: &str) -> Telling {
    stage.sh(&format!("xl restore {FILE}"))?;
    stage.ask(guest, "verify")?;
    sent(&stage.sh(&format!("{THROUGH_STUB}xl save -c {guest} {FILE} 2>&1"))?)?;
    stage.ask(guest, "verify")?;
    stage.sh(&format!("xl destroy {guest} && {THROUGH_STUB}xl restore {FILE}"))?;
    stage.ask(guest, "verify").map(drop)
}

/// Live, while it writes: to the packaged receiver, to ours, and to ours that compares.
fn migrates(stage: &Stage, guest: &str) -> Telling {
    stage.ask(guest, &format!("rate {BUSY}"))?;
    for (options, receiver) in [
        ("", "env -u LIBXL_SAVE_HELPER xl migrate-receive"),
        ("", "xl migrate-receive"),
        ("--debug", "xl migrate-receive"),
    ] {
        let said = stage.sh(&migrate(guest, options, receiver))?;
        stage.say(sent(&said)?);
        stage.ask(guest, "verify")?;
    }
    Ok(())
}

/// A receiver that dies, and a stubctl that is killed, leave the guest running and its writes unlogged.
fn breaks_off(stage: &Stage, guest: &str) -> Telling {
    let killed = "kill -9 $(ps -o pid,args | awk '/[s]tubctl --save-domain/ { print $1 }'); sleep 5";
    for (deed, expected) in [("", "whoever takes the stream is gone"), (killed, "died due to fatal signal")] {
        stage.sh(&format!(
            "cat >{RECEIVER} <<'END'\n#!/bin/bash\n{BANNER}\nhead -c 20000000 >/dev/null\n{deed}\nEND\nchmod +x {RECEIVER}"
        ))?;
        let outcome = stage.run(&migrate(guest, "", RECEIVER))?;
        ensure(outcome.code != 0 && outcome.text.contains(expected), || {
            format!("expected a failure that says \"{expected}\", got {}:\n{}", outcome.code, outcome.text)
        })?;
        let guardian = "for i in $(seq 50); do ps -o args | grep -q '[g]uard-send' || break; sleep 0.2; done";
        let log = stage.sh(&format!("{guardian}; nest-log $(xl domid {guest})"))?;
        ensure(log == "off", || format!("the guest's writes are still logged: {log}"))?;
        stage.ask(guest, "verify")?;
        stage.ask(guest, "ticking")?;
    }
    Ok(())
}

fn migrate(guest: &str, options: &str, receiver: &str) -> String {
    format!("{THROUGH_STUB}timeout 200 xl migrate {options} -s '' {guest} \"{receiver}\" 2>&1")
}

/// The line in which stubctl says what it has sent.
fn sent(said: &str) -> Telling<String> {
    let line = said.lines().find(|line| line.starts_with("stubctl: info") && line.contains("sent in"));
    ensure(line.is_some(), || format!("not sent through the stub:\n{said}"))?;
    Ok(line.unwrap_or_default().to_owned())
}
