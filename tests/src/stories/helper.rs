//! stubctl as libxl's save helper, where no stub comes to serve.

use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};

/// What passes on to the packaged helper, and what ends with one clear line.
pub(super) const SAVE_HELPER: Story = Story {
    name: "save-helper",
    proves: "guests without stub go to the packaged helper, and saves whose stub does not start, also where stubctl has its \
             place, and so does a guest whose stub is not to be had, unless that is forbidden: then it ends in one clear line \
             and leaves nothing behind; neither PATH nor names nor other domains are in the way",
    options: Options::default,
    tell: save_helper,
};

const SAVED: &str = "/var/lib/xen/save/pvh-128";
const CONF: &str = "/etc/xen/stubdom/pvh-128.conf";

/// A stub that is no stub: a Linux that runs and never offers a control channel.
const SILENT_STUB: &str = "/run/silent.cfg";
/// One that crashes at once: a Linux without a root.
const CRASHING_STUB: &str = "/run/crashing.cfg";
/// One that cannot be created. xl begins with a remark about the TSC.
const MISSING_STUB: &str = "/run/missing.cfg";

/// What xl says of [`MISSING_STUB`], behind its remark.
const MISSING: &str = "xl create of the stub failed: xc: error: ";

fn save_helper(stage: &Stage) -> Telling {
    write_stubs(stage)?;
    stage.create("pvh-128")?;
    stage.ask("pvh-128", "freeze")?;
    stage.sh(&format!("LIBXL_SAVE_HELPER=/usr/sbin/stubctl xl save pvh-128 {SAVED}"))?;
    installed(stage)?;
    let free = stage.settled_free_kib()?;
    passes_on(stage)?;
    falls_back(stage)?;
    refuses_otherwise(stage)?;
    names(stage)?;
    stage.expect_free(free)?;
    for (conf, expected) in REFUSALS {
        refuses(stage, conf, "", expected)?;
        stage.expect_free(free)?;
    }
    autoballooning(stage)?;
    abort(stage)?;
    stage.expect_free(free)?;
    stage.sh(&format!("rm {CONF} {SAVED}")).map(drop)
}

/// Configurations of the guest, and what the operator reads.
const REFUSALS: [(&str, &str); 6] = [
    ("enabled = true\\ncolour = \"blue\"", "/etc/xen/stubdom/pvh-128.conf:2: unknown field `colour`"),
    ("fallback = \"refuse\"\\nconfig = \"/nowhere.cfg\"", "/nowhere.cfg is not there"),
    ("fallback = \"refuse\"\\nconfig = \"/run/missing.cfg\"", MISSING),
    (
        "fallback = \"refuse\"\\nconfig = \"/run/silent.cfg\"\\nmemory = 128\\nstart_timeout_s = 10",
        "the stub did not answer within 10 s, expected it to offer its control channel",
    ),
    (
        "fallback = \"refuse\"\\nconfig = \"/run/crashing.cfg\"\\nmemory = 128\\nstart_timeout_s = 60",
        "crashed: its last words are in",
    ),
    ("transport = \"udp\"", "/etc/xen/stubdom/pvh-128.conf:1: unknown variant `udp`"),
];

fn write_stubs(stage: &Stage) -> Telling {
    let common = "type=\"pv\"\\nkernel=\"/boot/vmlinux\"\\non_crash=\"preserve\"";
    stage.sh(&format!(
        "printf '{common}\\nramdisk=\"/boot/witness.cpio\"\\nextra=\"witness.mb=8\"\\n' >{SILENT_STUB}"
    ))?;
    stage.sh(&format!("printf '{common}\\nextra=\"panic=1\"\\n' >{CRASHING_STUB}"))?;
    let missing = "type=\"pv\"\\nkernel=\"/nowhere\"\\nmemory=16\\ntsc_mode=\"native\"";
    stage.sh(&format!("printf '{missing}\\n' >{MISSING_STUB}")).map(drop)
}

/// In the place of the packaged helper, as README says it: nobody names stubctl. A restore and a save go through the stub,
/// a save whose stub does not start, and all of a guest without one, go on to the packaged one.
fn installed(stage: &Stage) -> Telling {
    let helper = "/usr/lib/xen-4.17/bin/libxl-save-helper";
    stage.sh(&format!("mv {helper} {helper}.distrib && ln -s /usr/sbin/stubctl {helper}"))?;
    let restore = format!("xl restore {SAVED} 2>&1");
    let said = stage.sh(&format!("rm -f {CONF}; {restore}"))?;
    ensure(said.contains("stubctl: info: ") && said.contains("restored in "), || {
        format!("not through the stub:\n{said}")
    })?;
    stage.ask("pvh-128", "verify")?;
    let save = format!("xl save -c pvh-128 {SAVED} 2>&1");
    let said = stage.sh(&save)?;
    ensure(said.contains("sent in ") && !said.contains("xc: info"), || {
        format!("not saved through the stub:\n{said}")
    })?;
    let said = stage.sh(&format!("echo 'config = \"/nowhere.cfg\"' >{CONF}; {save}"))?;
    let warning = "the guest is saved without its stub: /nowhere.cfg is not there";
    ensure(said.contains(warning) && said.contains("xc: info: Saving domain"), || {
        format!("not saved by the packaged helper after a warning:\n{said}")
    })?;
    let said = stage.sh(&format!("echo send = false >{CONF}; xl save pvh-128 {SAVED} 2>&1"))?;
    ensure(said.contains("xc: info: Saving domain") && !said.contains("stubctl"), || {
        format!("not saved by the packaged helper:\n{said}")
    })?;
    let said = stage.sh(&format!("echo enabled = false >{CONF}; {restore}"))?;
    ensure(said.contains("xc: info: Restore successful"), || format!("not the packaged helper:\n{said}"))?;
    stage.ask("pvh-128", "verify")?;
    stage.sh(&format!("xl destroy pvh-128 && rm {helper} && mv {helper}.distrib {helper}")).map(drop)
}

/// A guest that has no stub is restored by the packaged helper, with a warning, since its sender chose its name; and nobody
/// gives it a stub later.
fn passes_on(stage: &Stage) -> Telling {
    stage.sh(&format!("echo enabled = false >{CONF}"))?;
    restored_by_packaged(stage, &format!("enabled = false in {CONF}"))?;
    let attached = stage.run("stubctl attach pvh-128 2>&1")?;
    ensure(attached.code == 3 && attached.text.contains("is to have no stub: enabled = false in"), || {
        format!("attached with {}: {}", attached.code, attached.text)
    })?;
    stage.sh("xl destroy pvh-128").map(drop)
}

/// A guest whose stub is not to be had is restored by the packaged helper: the warning and the report name the cause.
fn falls_back(stage: &Stage) -> Telling {
    stage.sh(&format!("echo 'config = \"{MISSING_STUB}\"' >{CONF}"))?;
    restored_by_packaged(stage, MISSING)?;
    let report = stage.sh("cat /var/lib/xen-stubdom/reports/pvh-128.json")?;
    ensure(report.contains("\"passed_on\": true") && report.contains(MISSING), || {
        format!("the report does not say so:\n{report}")
    })?;
    stage.sh("xl destroy pvh-128")?;
    nothing_is_left(stage)
}

/// The packaged helper restores the guest, and stubctl has one warning, with `why` in it.
fn restored_by_packaged(stage: &Stage, why: &str) -> Telling {
    let said = stage.sh(&restore())?;
    ensure(said.contains("xc: info: Restore successful"), || format!("not the packaged helper:\n{said}"))?;
    let is_ours =
        |line: &&str| line.starts_with("stubctl: warning: ") || line.starts_with("stubctl: error: ");
    let lines: Vec<&str> = said.lines().filter(is_ours).collect();
    ensure(lines.len() == 1 && lines[0].contains(why), || {
        format!("expected one warning with \"{why}\", got {lines:?} in\n{said}")
    })?;
    stage.say(lines[0]);
    stage.ask("pvh-128", "verify").map(drop)
}

/// What a sender may choose does not lead around the stub where the host says so.
fn refuses_otherwise(stage: &Stage) -> Telling {
    let default = "/etc/xen/stubdom/default.conf";
    stage.sh(&format!("sed -i 's/^otherwise = .*/otherwise = \"refuse\"/' {default}"))?;
    refuses(stage, "enabled = false", "", "no stub serves this restore (enabled = false in")?;
    stage.sh(&format!("sed -i 's/^otherwise = .*/otherwise = \"packaged\"/' {default}")).map(drop)
}

/// A guest with a very long name, restored by an xl without PATH, while other domains have the names that matter: one of them
/// lives, of the other only the name is left.
fn names(stage: &Stage) -> Telling {
    let stub_config = "/etc/xen/stubdom/stubdom.cfg";
    stage.sh(&format!(
        "rm {CONF}; xl create -p -q {stub_config} 'name=\"pvh-128-stubdom-1\"'; xenstore-write /local/domain/900/name pvh-128"
    ))?;
    let restore = |what: &str| {
        let through = "env -i PATH=/nowhere LIBXL_SAVE_HELPER=/usr/sbin/stubctl $(command -v xl)";
        let said = stage.sh(&format!("{through} restore -p {what} 2>&1"))?;
        ensure(said.contains("restored in "), || format!("not through the stub:\n{said}"))
    };
    restore(SAVED)?;
    stage.sh("stubctl map pvh-128")?;
    let stubs = stage.sh("xl list | awk '/-stubdom-/ { print $1 }'")?;
    ensure(stubs == "pvh-128-stubdom-1\npvh-128-stubdom-2", || format!("expected a second name:\n{stubs}"))?;
    stage.sh("xl destroy pvh-128; xl destroy pvh-128-stubdom-1; xenstore-rm /local/domain/900")?;
    let (long, config) = ("x".repeat(240), "/run/long.cfg");
    let guest = "/etc/xen/stubdom/guests/pvh-128.cfg";
    stage.sh(&format!("sed 's/^name.*/name=\"{long}\"/' {guest} >{config}"))?;
    restore(&format!("{config} {SAVED}"))?;
    stage.sh(&format!("xl list | grep -q '^x\\{{128\\}}-[0-9a-f]*-stubdom-1 ' && xl destroy {long}"))?;
    nothing_is_left(stage)?;
    let logs = stage.sh("ls /var/log/xen | grep -o 'pvh-128-stubdom-[0-9]*' | sort -u | wc -l")?;
    ensure(logs == "2", || format!("logs of {logs} stubs of pvh-128, which had two at once"))
}

fn restore() -> String {
    format!("LIBXL_SAVE_HELPER=/usr/sbin/stubctl xl restore {SAVED} 2>&1")
}

/// With `conf`, the restore fails, says `expected` once, and leaves no domain and no link.
fn refuses(stage: &Stage, conf: &str, before: &str, expected: &str) -> Telling {
    stage.sh(&format!("printf '{conf}\\n' >{CONF}"))?;
    let outcome = stage.run(&format!("{before}\n{}", restore()))?;
    ensure(outcome.code != 0, || format!("the restore succeeded with {conf}"))?;
    let lines: Vec<&str> = outcome.text.lines().filter(|line| line.starts_with("stubctl: error")).collect();
    let [line] = lines[..] else {
        return ensure(false, || format!("expected one line of stubctl, got {lines:?} in\n{}", outcome.text));
    };
    ensure(line.contains(expected), || format!("expected \"{expected}\", got \"{line}\""))?;
    stage.say(line);
    nothing_is_left(stage)
}

/// Only dom0 lives, no vif is on the bridge; Xen frees the last of a domain a moment after xl's return.
fn nothing_is_left(stage: &Stage) -> Telling {
    stage.sh("for i in $(seq 50); do [ \"$(xl list | wc -l)\" = 2 ] && break; sleep 0.2; done; xl list")?;
    let domains = stage.sh("xenstore-list /local/domain; ls /sys/class/net | grep vif || true")?;
    ensure(domains == "0", || format!("left behind:\n{domains}"))
}

/// xl holds its lock while it restores: a nested `xl create` would wait for ever.
fn autoballooning(stage: &Stage) -> Telling {
    stage.sh("cp /etc/xen/xl.conf /run/xl.conf; echo 'autoballoon=\"on\"' >>/etc/xen/xl.conf")?;
    let conf = "fallback = \"refuse\"";
    let result = refuses(stage, conf, "", "holds /var/lock/xl while it restores");
    stage.sh("mv /run/xl.conf /etc/xen/xl.conf")?;
    result
}

/// libxl's abort is SIGTERM to its helper.
fn abort(stage: &Stage) -> Telling {
    let conf = "config = \"/run/silent.cfg\"\\nmemory = 128";
    let kill =
        "(until xl list 2>/dev/null | grep -q stubdom; do sleep 0.2; done; sleep 1; kill $(pidof stubctl)) &";
    refuses(stage, conf, kill, "aborted by a signal")
}
