//! The library's smallest guest: comes up, sleeps, ends, and faults where it must.

use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};

/// What a PV domain made with xen-front does without being a stub.
pub(super) const BRING_UP: Story = Story {
    name: "bring-up",
    proves: "a PV guest made with xen-front comes up in 16 MiB, sleeps without using CPU, ends with xl shutdown, cannot \
             write to its text and constants, execute data, follow a null pointer or leave its stack, and its panics \
             are seen",
    options: Options::default,
    tell: bring_up,
};

/// What is touched, and the words that must be on the console then.
const FAULTS: &[(&str, &str)] = &[
    ("text", "exception 14, error code 0x3"),
    ("rodata", "exception 14, error code 0x3"),
    ("data", "exception 14, error code 0x11"),
    ("null", "exception 14, error code 0x0"),
    ("undefined", "exception 6, error code 0x0"),
    ("panic", "asked to"),
];

fn bring_up(stage: &Stage) -> Telling {
    create(stage, "clock")?; // what Xen allocates once for a first guest is not to count
    stage.sh("xl destroy clock")?;
    stage.expect_alone()?;
    let free = stage.settled_free_kib()?;
    for touch in ["clock", "m2p"] {
        create(stage, touch)?;
        await_line(stage, touch, "ready")?;
        stage.say(console(stage, touch, touch)?);
    }
    let before = cpu_time(stage)?;
    stage.sh("xl shutdown -w m2p")?;
    for &(touch, words) in FAULTS {
        crashes(stage, touch)?;
        let line = console(stage, touch, words)?;
        stage.say(format!("{touch}: {line}"));
        stage.sh(&format!("xl destroy {touch}"))?;
    }
    let after = cpu_time(stage)?;
    ensure(before == after, || format!("asleep it had {before} s of CPU time, and later {after}"))?;
    stage.sh("xl shutdown -w clock")?;
    stack_is_guarded(stage)?;
    stage.expect_alone()?;
    stage.expect_free(free)
}

/// A guest of 16 MiB named after what it touches.
fn create(stage: &Stage, touch: &str) -> Telling {
    stage.sh(&format!(
        "rm -f /var/log/xen/guest-{touch}.log; xl create -q /dev/null 'name=\"{touch}\"' 'type=\"pv\"' 'memory=16' \
         'kernel=\"/usr/lib/xen-stubdom/bring_up\"' 'extra=\"touch={touch}\"' 'on_crash=\"preserve\"'"
    ))?;
    Ok(())
}

fn await_line(stage: &Stage, touch: &str, words: &str) -> Telling {
    stage.sh(&format!(
        "for i in $(seq 100); do grep -q '{words}' /var/log/xen/guest-{touch}.log && exit 0; sleep 0.2; done; \
         cat /var/log/xen/guest-{touch}.log; exit 1"
    ))?;
    Ok(())
}

/// The line of a guest's console with these words.
fn console(stage: &Stage, touch: &str, words: &str) -> Telling<String> {
    stage.sh(&format!("tr -d '\\r' </var/log/xen/guest-{touch}.log | grep '{words}'"))
}

/// The CPU time of the guest that sleeps, which xl tells to the tenth of a second.
fn cpu_time(stage: &Stage) -> Telling<String> {
    stage.sh("xl list clock | awk 'NR == 2 { print $6 }'")
}

/// Creates the guest and waits until it has crashed.
fn crashes(stage: &Stage, touch: &str) -> Telling {
    create(stage, touch)?;
    stage.sh(&format!(
        "for i in $(seq 100); do xl list {touch} | awk 'NR == 2 {{ exit $5 !~ /c/ }}' && exit 0; sleep 0.2; done; \
         xl list; cat /var/log/xen/guest-{touch}.log; exit 1"
    ))?;
    Ok(())
}

/// Where the stack ends Xen itself cannot push an exception frame: it crashes the domain and says so in its own log.
fn stack_is_guarded(stage: &Stage) -> Telling {
    crashes(stage, "stack")?;
    let log =
        stage.sh("xl dmesg | grep -A1 -F \"domain_crash_sync\" | grep \"Domain $(xl domid stack) \"")?;
    stage.say(format!("stack: {log}"));
    ensure(stage.run("grep 'no fault' /var/log/xen/guest-stack.log")?.code != 0, || "no fault".into())?;
    stage.sh("xl destroy stack")?;
    Ok(())
}
