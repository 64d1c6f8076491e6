//! The daemon that takes reports of errors.

use super::GUEST;
use crate::machine::Options;
use crate::story::{Stage, Stop, Story, Telling, ensure};

/// Fed by the hooks that are shipped.
pub(in crate::stories) const WATCH: Story = Story {
    name: "exchange-watch",
    proves: "stubctl watch, fed by the hooks for mcelog and rasdaemon, by a file that grows, by a command and by Xen's own \
             machine checks, takes a frame out of use at the threshold and not before, several of one superpage all \
             together, also while another guest's stub hangs; after a kill -9, between two reports or in the midst of an exchange, \
             it goes on where it was; and a page that is in use again is dealt with again, by time and after a reboot",
    options: Options::default,
    tell: watch,
};

/// The hooks as they are shipped.
const HOOKS: [(&str, &str); 2] = [
    ("mcelog", include_str!("../../../../dist/mcelog-page-trigger")),
    ("rasdaemon", include_str!("../../../../dist/rasdaemon-mc-trigger")),
];

const LOG: &str = "/run/watch.log";

/// The guest whose stub does not hang.
const OTHER: &str = "pvh-128";

/// Starts the daemon.
const START: &str = "setsid stubctl watch --spool /run/spool --file /run/errors \
     --command 'mv /run/reports /run/reported 2>/dev/null && cat /run/reported; true' \
     --state /run/watch.json --threshold 3 --interval-s 1 --retry-s 2 --patience-s 2 \
     >>/run/watch.log 2>&1 </dev/null & echo $! >/run/watch.pid";

/// Ends the daemon and waits for its workers.
const END: &str =
    "kill $(cat /run/watch.pid); for i in $(seq 300); do pidof stubctl || exit 0; sleep 0.1; done; exit 1";

/// An ECC error of DRAM as AMD's family 0Fh reports it: valid, enabled, an address, corrected.
const ECC: &str = "0x9400400000080813";

fn watch(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!(
        "stubctl attach {GUEST}; mkdir -p /run/hooks; rm -rf {LOG} /run/spool /run/watch.json /run/errors /run/reports"
    ))?;
    for (name, text) in HOOKS {
        stage.sh(&format!("cat >/run/hooks/{name} <<'END_OF_HOOK'\n{text}END_OF_HOOK"))?;
    }
    let located = stage
        .sh(&format!("stubctl locate {GUEST} 0x9005 0xa005 0xb005 0xc005 0x6008 0x6009 0x600b 0x7005"))?;
    let mfns: Vec<&str> = located.lines().collect();
    let [one, other, third, fourth, row @ .., machine_check] = &mfns[..] else {
        return Err(Stop::Failure(format!("expected eight frames: {located}")));
    };
    stage.sh(START)?;
    by_the_hooks(stage, one, other)?;
    stage.sh(&format!("echo 'page {third} 3' >>/run/errors"))?;
    expect_line(stage, &format!("mfn:{third}: 3 errors of 3, /run/errors"))?;
    expect_line(stage, &format!("mfn:{third} of .*: exchanged for"))?;
    a_row_of_one_superpage(stage, row)?;
    by_machine_checks(stage, machine_check)?;
    one_guest_hangs(stage, fourth)?;
    for mfn in &mfns {
        let said = stage.sh(&format!("stubctl offline --json {mfn}"))?;
        ensure(said.contains("\"already\""), || format!("not out of use: {said}"))?;
    }
    in_use_again(stage, one)?;
    stage.sh(END)?;
    let log = stage.sh(&format!("cat {LOG}"))?;
    log.lines().for_each(|line| stage.say(line));
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    stage.ask(OTHER, "verify")?;
    stage.sh(&format!(
        "for mfn in {}; do xen-hptool mem-online $mfn; done >/dev/null",
        located.replace('\n', " ")
    ))?;
    stage.sh(&format!("xl destroy {GUEST}; xl destroy {OTHER}"))?;
    stage.expect_alone()
}

/// Errors that rasdaemon and mcelog report; the daemon is killed between two of them.
fn by_the_hooks(stage: &Stage, one: &str, other: &str) -> Telling {
    expect_line(stage, "watching, 3 corrected errors")?;
    stage.sh("for i in $(seq 100); do test -d /run/spool && exit 0; sleep 0.1; done; exit 1")?;
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
    expect_line(stage, &format!("mfn:{one}: 8 errors of 3"))?;
    ensure(!log_has(stage, &format!("mfn:{one}: it failed again"))?, || "Xen has it out of use".into())
}

/// Frames of one superpage that are reported at once: each is out of use afterwards, two of a pair among them.
fn a_row_of_one_superpage(stage: &Stage, row: &[&str]) -> Telling {
    let lines: String = row.iter().map(|mfn| format!("page {mfn} 3\\n")).collect();
    stage.sh(&format!("printf '{lines}' >/run/spool/.row && mv /run/spool/.row /run/spool/row"))?;
    for mfn in row {
        // On a Xen that takes free frames out of use one exchange of the superpage frees the others.
        expect_line(stage, &format!("mfn:{mfn}\\( of .*\\)\\?: \\(exchanged for\\|nobody used it\\)"))?;
    }
    Ok(())
}

/// Errors that Xen finds: one of a cache, which names no page of memory that fails, and three of DRAM.
///
/// Xen before 4.20.2 looks into no bank (`mca_cap_init`, "fix mca_allbanks updating"), and watch says so at its start.
fn by_machine_checks(stage: &Stage, mfn: &str) -> Telling {
    if stage.sh("xl info | sed -n 's/^xen_version *: //p'")?.starts_with("4.17") {
        stage.say("machine checks: skipped: this Xen does not collect them");
        expect_line(stage, "collects no machine checks")?;
        stage.sh(&format!("echo 'page {mfn} 3' >>/run/errors"))?;
    } else {
        stage.sh(&format!("xen-mceinj -c 0 -t 3 -p {:#x}", address(mfn)))?;
        expect_line(stage, "/dev/mcelog: bank 1, .* not one of memory: not counted")?;
        for nr in 1..=3 {
            stage.sh(&format!("nest-mce 4 {ECC} {:#x}", address(mfn) | 0x40))?;
            expect_line(stage, &format!("mfn:{mfn}: {nr} errors of 3, /dev/mcelog"))?;
        }
    }
    expect_line(stage, &format!("mfn:{mfn} of .*: exchanged for"))
}

/// Errors that the command reports, of a guest whose stub hangs. Another guest's frame is exchanged meanwhile. Then the daemon is
/// killed in the midst of it, and the next one deals with the frame.
fn one_guest_hangs(stage: &Stage, mfn: &str) -> Telling {
    stage.create(OTHER)?;
    let stub = stage.sh("xl list | awk '/stubdom/ { print $2 }'")?;
    let other = stage.sh(&format!("stubctl attach {OTHER} >/dev/null; stubctl locate {OTHER} 0x4005"))?;
    stage.sh(&format!("xl pause {stub}"))?;
    stage.sh(&format!("echo '{:#x} 3' >/run/new && mv /run/new /run/reports", address(mfn)))?;
    expect_line(stage, &format!("mfn:{mfn}: taking it out of use"))?;
    stage.sh(&format!("echo 'page {other} 3' >>/run/errors"))?;
    expect_line(stage, &format!("mfn:{other} of {OTHER} .*: exchanged for"))?;
    ensure(!log_has(stage, &format!("mfn:{mfn} of .*: exchanged"))?, || {
        format!("{mfn}: its stub is paused")
    })?;
    stage.sh(&format!("kill -9 $(cat /run/watch.pid); xl unpause {stub}"))?;
    stage.sh(START)?;
    expect_line(stage, &format!("mfn:{mfn} of .*: exchanged for"))?;
    stage.sh(&format!("xen-hptool mem-online {other}")).map(drop)
}

/// A page that Xen has in use again, as after a reboot: its next error has watch ask Xen. On a Xen that takes no free
/// frame out of use it is tried again and again, by time.
fn in_use_again(stage: &Stage, mfn: &str) -> Telling {
    stage.sh(&format!("xen-hptool mem-online {mfn}"))?;
    stage.sh(&format!("echo 'page {mfn}' >>/run/errors"))?;
    expect_line(stage, &format!("mfn:{mfn}: it failed again: it was out of use, and Xen has it in use"))?;
    let ending = format!("mfn:{mfn}: \\(refused (no-owner)\\|nobody used it\\)");
    expect_line(stage, &ending)?;
    if log_has(stage, &format!("mfn:{mfn}: refused (no-owner)"))? {
        expect_line(stage, &format!("mfn:{mfn}: tried again in 4 s"))?;
    }
    stage.sh(END)?;
    stage.sh(&format!(
        "sed -i 's/\"boot\":\"[^\"]*\"/\"boot\":\"another\"/; s/\"fate\":\"waiting\"/\"fate\":\"offline\"/' /run/watch.json; \
         xen-hptool mem-online {mfn}; : >{LOG}"
    ))?;
    stage.sh(START)?;
    expect_line(stage, &format!("mfn:{mfn}: it was out of use, and Xen has it in use again"))?;
    expect_line(stage, &ending)
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

fn log_has(stage: &Stage, pattern: &str) -> Telling<bool> {
    Ok(stage.sh(&format!("grep -c '{pattern}' {LOG} || true"))?.trim() != "0")
}

/// Waits for a line of the daemon's with this pattern.
fn expect_line(stage: &Stage, pattern: &str) -> Telling {
    let wait = format!(
        "for i in $(seq 300); do grep -q '{pattern}' {LOG} && exit 0; sleep 0.2; done; echo 'no {pattern}'; cat {LOG}; exit 1"
    );
    stage.sh(&wait).map(drop)
}
