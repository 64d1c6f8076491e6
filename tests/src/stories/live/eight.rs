//! Eight guests restored at once, each through its own stub.

use crate::machine::Options;
use crate::soak::Soak;
use crate::story::{Stage, THROUGH_STUB, Telling, ensure};
use std::time::{Duration, Instant};

/// A benchmark that also judges.
pub(in crate::stories) const EIGHT: Soak = Soak {
    name: "eight-at-once",
    proves: "eight guests restored at once through eight stubs all arrive; how long that takes against one after another, \
             and how much memory stubs and stubctl take",
    options: Options::default,
    rounds: 1,
    tell: |stage, _, rounds| (0..rounds).try_for_each(|_| eight(stage)),
};

const GUEST: &str = "pvh-128";
const FILE: &str = "/var/lib/xen/save/pvh-128";
const ALL: &str = "1 2 3 4 5 6 7 8";

/// Xen's table of dom0's mappings grows by what eight rings of 1 MiB need (257 mappings of 16 bytes each), and stays so.
const GROWN_KIB: u64 = 64;

/// Longest time for the eight.
const LIMIT: Duration = Duration::from_secs(900);

fn eight(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("xl save {GUEST} {FILE}"))?;
    stage.sh(&format!(
        "for n in {ALL}; do sed \"s/^name.*/name = \\\"eight-$n\\\"/\" /etc/xen/stubdom/guests/{GUEST}.cfg >/run/eight-$n.cfg; done"
    ))?;
    // What Xen and dom0 allocate once, for a first stub and ring, is not to count.
    timed(stage, &format!("n=1; {}; xl destroy eight-1", restore("-p")))?;
    stage.expect_alone()?;
    let free = stage.settled_free_kib()?;
    let one_by_one = timed(stage, &format!("for n in {ALL}; do {}; done", restore("-p")))?;
    stage.say(format!("one by one {:.1} s", one_by_one.as_secs_f32()));
    clear(stage, free)?;
    let at_once = timed(stage, &all_at_once("-p", ""))?;
    stage.say(format!("at once {:.1} s", at_once.as_secs_f32()));
    clear(stage, free)?;
    timed(stage, &all_at_once("", SAMPLE))?;
    let taken = free.saturating_sub(stage.settled_free_kib()?);
    let stubs = stage.sh("xl list | awk '/-stubdom-/ { n++; mib += $3 } END { print n, mib }'")?;
    ensure(stubs.starts_with("8 "), || format!("expected 8 stubs, got {stubs}"))?;
    for n in ALL.split(' ') {
        stage.ask(&format!("eight-{n}"), "verify")?;
    }
    let peak = stage.sh("sort -n /run/peak | tail -n 1")?;
    stage.say(format!(
        "stubs and their MiB: {stubs}; eight guests of 128 MiB and their stubs took {} MiB of Xen's memory; \
         all stubctl together at most {peak} KiB of their own",
        taken / 1024
    ));
    clear(stage, free)
}

/// What all stubctl take of their own, again and again until the restores have ended; it takes a good part of dom0's only
/// processor, so that it does not run beside what is timed.
const SAMPLE: &str = "for i in $(seq 4000); do
         cat /proc/[0-9]*/status 2>/dev/null | awk '/^Name:/ { is = $2 == \"stubctl\" } /^RssAnon/ && is { kib += $2 }
             END { print kib + 0 }' >>/run/peak
         kill -0 $pids 2>/dev/null || break; sleep 0.3
     done";

/// Starts all, does something meanwhile, and waits for all.
fn all_at_once(options: &str, meanwhile: &str) -> String {
    format!(
        "rm -f /run/peak; for n in {ALL}; do ({}) & pids=\"$pids $!\"; done
         {meanwhile}
         for pid in $pids; do wait $pid || exit; done",
        restore(options)
    )
}

/// Restores number `$n`, and shows what was said when that fails. What is timed restores with `-p`: the guests that have
/// arrived would else run beside those that arrive.
fn restore(options: &str) -> String {
    format!(
        "{THROUGH_STUB}xl restore {options} /run/eight-$n.cfg {FILE} >/run/eight-$n.log 2>&1 || \
         {{ code=$?; echo \"eight-$n:\"; tail -n 6 /run/eight-$n.log; exit $code; }}"
    )
}

fn timed(stage: &Stage, script: &str) -> Telling<Duration> {
    let began = Instant::now();
    let outcome = stage.machine.dom0.run(script, LIMIT)?;
    let took = began.elapsed();
    ensure(outcome.code == 0, || format!("a restore ended with {}:\n{}", outcome.code, outcome.text))?;
    Ok(took)
}

fn clear(stage: &Stage, free: u64) -> Telling {
    stage.sh(&format!("for n in {ALL}; do xl destroy eight-$n; done"))?;
    stage.expect_alone()?;
    stage.expect_nearly_free(free, GROWN_KIB)
}
