//! The main job: a guest restored by stock xl through the stub, with every byte and its superpages.

use crate::machine::Options;
use crate::story::{Stage, Stop, Story, THROUGH_STUB, Telling, ensure};
use crate::survey::Survey;
use control::RegionKind;

const PROVES: &str = "restored through the stub the guest equals the stream page by page, goes on with every byte, has \
     its superpages and no page more, and can be saved, restored and shut down again";

/// A small PVH guest.
pub(super) const PVH_256: Story = Story {
    name: "stub-pvh-256",
    proves: PROVES,
    options: Options::default,
    tell: |stage| keeps_everything(stage, "pvh-256"),
};

/// A small HVM guest.
pub(super) const HVM_256: Story = Story {
    name: "stub-hvm-256",
    proves: PROVES,
    options: Options::default,
    tell: |stage| keeps_everything(stage, "hvm-256"),
};

/// A larger PVH guest.
pub(super) const PVH_1024: Story = Story {
    name: "stub-pvh-1024",
    proves: PROVES,
    options: Options::default,
    tell: |stage| keeps_everything(stage, "pvh-1024"),
};

/// A larger HVM guest.
pub(super) const HVM_1024: Story = Story {
    name: "stub-hvm-1024",
    proves: PROVES,
    options: Options::default,
    tell: |stage| keeps_everything(stage, "hvm-1024"),
};

/// 1 GiB superpages.
pub(super) const ONE_GIB: Story = Story {
    name: "stub-1g",
    proves: "where Xen allows 1 GiB extents to a stub, a 3 GiB guest gets them",
    options: || Options {
        mem_mib: 12288,
        dom0_mib: 5120,
        xen_args: "memop-max-order=18,18,18,18".into(),
        ..Options::default()
    },
    tell: one_gib,
};

/// Both ways from the relay to the stub.
pub(super) const TRANSPORTS: Story = Story {
    name: "stub-transports",
    proves: "by TCP and by shared pages the guest equals the stream page by page, and its stub has a vif only for TCP",
    options: Options::default,
    tell: transports,
};

/// How many 2 MiB superpages fewer than the fresh guest's a restored one may have.
const MAX_LOST: usize = 2;

fn keeps_everything(stage: &Stage, guest: &str) -> Telling {
    let file = format!("/var/lib/xen/save/{guest}");
    stage.create(guest)?;
    let fresh = Survey::take(stage, guest)?;
    stage.ask(guest, "freeze")?;
    let before = stage.ask(guest, "verify")?;
    stage.sh(&format!("xl save {guest} {file}"))?;
    restore_paused(stage, guest, &file)?;
    expect_superpages(stage, &fresh, &Survey::take(stage, guest)?)?;
    stage.sh(&format!("xl unpause {guest}"))?;
    let after = stage.ask(guest, "verify")?;
    let (before, after) = (before.value("sum")?, after.value("sum")?);
    ensure(before == after, || format!("the checksum was {before} and is {after}"))?;
    lives_on(stage, guest, &file)
}

/// Restores through the stub without letting the guest run, and compares its memory with the stream.
pub(super) fn restore_paused(stage: &Stage, guest: &str, file: &str) -> Telling {
    stage.sh(&format!("{THROUGH_STUB}xl restore -p {file}"))?;
    let verdict = stage.sh(&format!("nest-oracle {file} $(xl domid {guest})"))?;
    stage.say(verdict.lines().next_back().unwrap_or_default());
    Ok(())
}

/// At least as many superpages as before, less two, and as many pages.
pub(super) fn expect_superpages(stage: &Stage, fresh: &Survey, now: &Survey) -> Telling {
    let superpages = |survey: &Survey| survey.count(RegionKind::Superpage);
    let (had, has) = (superpages(fresh), superpages(now));
    stage.say(format!("{has} superpages, {had} when fresh; {} pages owned", now.nr_owned));
    ensure(has + MAX_LOST >= had, || format!("{had} superpages when fresh, {has} after the restore"))?;
    let (had, has) = (fresh.nr_owned, now.nr_owned);
    ensure(had == has, || format!("{had} pages owned when fresh, {has} after the restore"))
}

/// Writes on, is saved and restored by stock xl, and shuts down when asked.
fn lives_on(stage: &Stage, guest: &str, file: &str) -> Telling {
    stage.ask(guest, "thaw")?;
    stage.ask(guest, "ticking")?;
    stage.ask(guest, "verify")?;
    stage.sh(&format!("xl save {guest} {file} && xl restore {file}"))?;
    stage.ask(guest, "verify")?;
    stage.sh(&format!("xl shutdown -w {guest}"))?;
    stage.expect_alone()
}

fn transports(stage: &Stage) -> Telling {
    let (guest, file) = ("pvh-128", "/var/lib/xen/save/pvh-128");
    stage.create(guest)?;
    stage.sh(&format!("xl save {guest} {file}"))?;
    for (transport, vifs) in [("tcp", 1), ("ring", 0)] {
        stage.sh(&format!("echo transport = {transport} >/etc/xen/stubdom/{guest}.conf"))?;
        restore_paused(stage, guest, file)?;
        let found = stage.sh("ls /sys/class/net | grep -c '^vif' || true")?;
        ensure(found == vifs.to_string(), || {
            format!("{found} vifs in a restore by {transport}, expected {vifs}")
        })?;
        stage.sh(&format!("xl unpause {guest}"))?;
        stage.ask(guest, "verify")?;
        stage.sh(&format!("xl destroy {guest}"))?;
        stage.expect_alone()?;
    }
    stage.sh(&format!("rm /etc/xen/stubdom/{guest}.conf {file}")).map(drop)
}

fn one_gib(stage: &Stage) -> Telling {
    let (guest, file) = ("pvh-3072", "/var/lib/xen/save/pvh-3072");
    stage.create(guest)?;
    let fresh = Survey::take(stage, guest)?;
    stage.sh(&format!("xl save {guest} {file}"))?;
    restore_paused(stage, guest, file)?;
    let now = Survey::take(stage, guest)?;
    stage.say(format!("{} regions of 1 GiB, {} when fresh", now.nr_contiguous_1g, fresh.nr_contiguous_1g));
    stage.sh(&format!("xl unpause {guest}"))?;
    stage.ask(guest, "verify")?;
    stage.sh(&format!("xl destroy {guest}"))?;
    if now.nr_contiguous_1g == 0 {
        return Err(Stop::Failure("no 1 GiB superpage".into()));
    }
    stage.expect_alone()
}
