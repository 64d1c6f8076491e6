//! stubctl as libxl's save helper, where no stub comes to serve.

use crate::machine::Options;
use crate::story::{Stage, Story, Telling, ensure};

/// What passes on to the packaged helper, and what ends with one clear line.
pub(super) const SAVE_HELPER: Story = Story {
    name: "save-helper",
    proves: "saves and guests without stub go to the packaged helper, also where stubctl has its place; a stub that cannot \
             serve ends in one clear line and leaves nothing behind",
    options: Options::default,
    tell: save_helper,
};

const SAVED: &str = "/var/lib/xen/save/pvh-128";
const CONF: &str = "/etc/xen/stubdom/pvh-128.conf";

/// A stub that is no stub: a Linux that runs and never offers a control channel.
const SILENT_STUB: &str = "/run/silent.cfg";
/// One that crashes at once: a Linux without a root.
const CRASHING_STUB: &str = "/run/crashing.cfg";

fn save_helper(stage: &Stage) -> Telling {
    write_stubs(stage)?;
    stage.create("pvh-128")?;
    stage.ask("pvh-128", "freeze")?;
    stage.sh(&format!("LIBXL_SAVE_HELPER=/usr/sbin/stubctl xl save pvh-128 {SAVED}"))?;
    installed(stage)?;
    let free = stage.settled_free_kib()?;
    passes_on(stage)?;
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
const REFUSALS: [(&str, &str); 5] = [
    ("enabled = yes\\ncolour = blue", "/etc/xen/stubdom/pvh-128.conf:2: unknown key \"colour\""),
    ("config = /nowhere.cfg", "/nowhere.cfg is not there"),
    ("config = /run/silent.cfg\\nmemory = 4", "xl create of the stub failed"),
    (
        "config = /run/silent.cfg\\nmemory = 128\\nstart_timeout_s = 10",
        "the stub did not answer within 10 s, expected it to offer its control channel",
    ),
    ("config = /run/crashing.cfg\\nmemory = 128\\nstart_timeout_s = 60", "crashed: its last words are in"),
];

fn write_stubs(stage: &Stage) -> Telling {
    let common = "type=\"pv\"\\nkernel=\"/boot/vmlinux\"\\non_crash=\"preserve\"";
    stage.sh(&format!(
        "printf '{common}\\nramdisk=\"/boot/witness.cpio\"\\nextra=\"witness.mb=8\"\\n' >{SILENT_STUB}"
    ))?;
    stage.sh(&format!("printf '{common}\\nextra=\"panic=1\"\\n' >{CRASHING_STUB}")).map(drop)
}

/// In the place of the packaged helper, as README says it: nobody names stubctl. A restore comes through the stub, a save
/// and the restore of a guest without stub go on to the packaged one.
fn installed(stage: &Stage) -> Telling {
    let helper = "/usr/lib/xen-4.17/bin/libxl-save-helper";
    stage.sh(&format!("mv {helper} {helper}.distrib && ln -s /usr/sbin/stubctl {helper}"))?;
    let restore = format!("xl restore {SAVED} 2>&1");
    let said = stage.sh(&format!("rm -f {CONF}; {restore}"))?;
    ensure(said.contains("stubctl: info: ") && said.contains("restored in "), || {
        format!("not through the stub:\n{said}")
    })?;
    stage.ask("pvh-128", "verify")?;
    let said = stage.sh(&format!("xl save pvh-128 {SAVED} 2>&1"))?;
    ensure(said.contains("xc: info: Saving domain"), || {
        format!("not saved by the packaged helper:\n{said}")
    })?;
    let said = stage.sh(&format!("echo enabled = no >{CONF}; {restore}"))?;
    ensure(said.contains("xc: info: Restore successful"), || format!("not the packaged helper:\n{said}"))?;
    stage.ask("pvh-128", "verify")?;
    stage.sh(&format!("xl destroy pvh-128 && rm {helper} && mv {helper}.distrib {helper}")).map(drop)
}

/// A guest that has no stub is restored by the packaged helper.
fn passes_on(stage: &Stage) -> Telling {
    stage.sh(&format!("echo enabled = no >{CONF}"))?;
    let said = stage.sh(&restore())?;
    ensure(said.contains("xc: info: Restore successful"), || format!("not the packaged helper:\n{said}"))?;
    stage.ask("pvh-128", "verify")?;
    stage.sh("xl destroy pvh-128").map(drop)
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
    let result = refuses(stage, "enabled = yes", "", "holds /var/lock/xl while it restores");
    stage.sh("mv /run/xl.conf /etc/xen/xl.conf")?;
    result
}

/// libxl's abort is SIGTERM to its helper.
fn abort(stage: &Stage) -> Telling {
    let conf = "config = /run/silent.cfg\\nmemory = 128";
    let kill =
        "(until xl list 2>/dev/null | grep -q stubdom; do sleep 0.2; done; sleep 1; kill $(pidof stubctl)) &";
    refuses(stage, conf, kill, "aborted by a signal")
}
