//! The main job: a guest restored by stock xl through the stub, with every byte and its superpages.

use super::release::idle_stubs_sleep;
use crate::error::Doing;
use crate::machine::Options;
use crate::story::{Saved, Stage, Stop, Story, THROUGH_STUB, Telling, ensure};
use crate::survey::{MAX_LOST, Survey};
use control::RegionKind;
use serde_json::Value;

const PROVES: &str = "restored through the stub the guest equals the stream page by page, goes on with every byte, has \
     its superpages and no page more, as stubctl status tells, and can be saved, restored and shut down again";

/// A small PVH guest.
pub(super) const PVH_256: Story = Story {
    name: "stub-pvh-256",
    proves: PROVES,
    options: Options::default,
    tell: |stage| keeps_everything(stage, "pvh-256", "ring").map(drop),
};

/// A small HVM guest.
pub(super) const HVM_256: Story = Story {
    name: "stub-hvm-256",
    proves: PROVES,
    options: Options::default,
    tell: |stage| keeps_everything(stage, "hvm-256", "ring").map(drop),
};

/// A larger PVH guest.
pub(super) const PVH_1024: Story = Story {
    name: "stub-pvh-1024",
    proves: PROVES,
    options: Options::default,
    tell: |stage| tells_progress(&keeps_everything(stage, "pvh-1024", "ring")?),
};

/// A larger HVM guest.
pub(super) const HVM_1024: Story = Story {
    name: "stub-hvm-1024",
    proves: PROVES,
    options: Options::default,
    tell: |stage| tells_progress(&keeps_everything(stage, "hvm-1024", "tcp")?),
};

/// 1 GiB superpages.
pub(super) const ONE_GIB: Story = Story {
    name: "stub-1g",
    proves: "where Xen allows 1 GiB extents to a stub, a 3 GiB guest gets them, and all other superpages",
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
    proves: "by TCP and by shared pages the guest equals the stream page by page, with its superpages; its stub has a vif \
             only for TCP, on a bridge that stubctl makes, to which its port is tied, gets several packets in one \
             frame, uses no CPU when idle, and gives every page back",
    options: Options::default,
    tell: transports,
};

/// Gives what xl and stubctl said.
fn keeps_everything(stage: &Stage, guest: &str, transport: &str) -> Telling<String> {
    let file = format!("/var/lib/xen/save/{guest}");
    choose(stage, guest, transport)?;
    stage.create(guest)?;
    let fresh = Survey::take(stage, guest)?;
    stage.ask(guest, "freeze")?;
    let before = stage.ask(guest, "verify")?;
    stage.sh(&format!("xl save {guest} {file}"))?;
    let said = restore_paused(stage, guest, &file)?;
    let now = Survey::take(stage, guest)?;
    expect_superpages(stage, &fresh, &now)?;
    status_agrees(stage, guest, &now)?;
    stage.sh(&format!("xl unpause {guest}"))?;
    let after = stage.ask(guest, "verify")?;
    let (before, after) = (before.value("sum")?, after.value("sum")?);
    ensure(before == after, || format!("the checksum was {before} and is {after}"))?;
    lives_on(stage, guest, &file)?;
    stage.sh(&format!("rm /etc/xen/stubdom/{guest}.conf"))?;
    Ok(said)
}

/// Restores through the stub without letting the guest run, and compares its memory with the stream; gives what xl and
/// stubctl said.
pub(super) fn restore_paused(stage: &Stage, guest: &str, file: &str) -> Telling<String> {
    let said = stage.sh(&format!("{THROUGH_STUB}xl restore -p {file}"))?;
    let verdict = stage.sh(&format!("nest-oracle {file} $(xl domid {guest})"))?;
    stage.say(verdict.lines().next_back().unwrap_or_default());
    Ok(said)
}

/// `stubctl status` tells of the one stub what the survey finds, as JSON and as a table.
fn status_agrees(stage: &Stage, guest: &str, now: &Survey) -> Telling {
    let superpages = now.count(RegionKind::Superpage) as u64;
    let text = stage.sh("stubctl status --json")?;
    let rows: Value = serde_json::from_str(&text).doing("reading stubctl status --json")?;
    let told = |key: &str| &rows[0][key];
    ensure(
        rows.as_array().is_some_and(|rows| rows.len() == 1)
            && told("guest") == guest
            && told("phase") == "restored"
            && told("superpages_2m") == superpages
            && told("superpages_1g") == now.nr_contiguous_1g,
        || format!("expected {guest} to be restored with {superpages} superpages, stubctl status: {text}"),
    )?;
    let table = stage.sh("stubctl status")?;
    let row = table.lines().find(|line| line.contains(guest)).unwrap_or_default();
    let has = |word: &str| row.split_whitespace().any(|found| found == word);
    ensure(has("restored") && has(&superpages.to_string()), || {
        format!("expected a row with {guest}, restored and {superpages}, stubctl status:\n{table}")
    })
}

/// libxl has printed how far the stub was.
fn tells_progress(said: &str) -> Telling {
    let told =
        said.lines().any(|line| line.starts_with("stubctl: progress: Memory: ") && line.ends_with('%'));
    ensure(told, || format!("no line of progress in\n{said}"))
}

/// Has the guest's stream come by a transport.
fn choose(stage: &Stage, guest: &str, transport: &str) -> Telling {
    stage.sh(&format!("echo 'transport = \"{transport}\"' >/etc/xen/stubdom/{guest}.conf")).map(drop)
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
    let guest = "pvh-128";
    let saved = stage.saved(guest)?;
    stage.sh("ip link delete xenstub0 2>/dev/null; rm -f /var/log/xen/guest-pvh-128-stubdom-*.log")?;
    round(stage, guest, ("tcp", 1), &saved)?;
    aggregates(stage, guest)?;
    port_is_tied(stage)?;
    idle_stubs_sleep(stage, 1, 0.1)?; // DHCP asks now and then
    leave(stage, guest)?;
    stage.sh("test -d /sys/class/net/xenstub0/bridge")?;
    round(stage, guest, ("ring", 0), &saved)?;
    leave(stage, guest)?;
    let free = stage.settled_free_kib()?;
    round(stage, guest, ("tcp", 1), &saved)?;
    leave(stage, guest)?;
    stage.expect_free(free)?;
    stage.sh(&format!("rm /etc/xen/stubdom/{guest}.conf")).map(drop)
}

/// One restore by a transport, whose stub has so many vifs.
fn round(stage: &Stage, guest: &str, (transport, vifs): (&str, u32), saved: &Saved) -> Telling {
    choose(stage, guest, transport)?;
    restore_paused(stage, guest, &saved.file)?;
    expect_superpages(stage, &saved.fresh, &Survey::take(stage, guest)?)?;
    let found = stage.sh("ls /sys/class/net | grep -c '^vif' || true")?;
    ensure(found == vifs.to_string(), || {
        format!("{found} vifs in a restore by {transport}, expected {vifs}")
    })?;
    stage.sh(&format!("xl unpause {guest}"))?;
    stage.ask(guest, "verify").map(drop)
}

/// The stub's port reaches dom0 only, and keeps the MAC that it has; dom0 has forgotten the address behind it.
fn port_is_tied(stage: &Stage) -> Telling {
    let found = stage.sh("vif=$(ls /sys/class/net | grep '^vif'); cd /sys/class/net/$vif/brport
         mac=$(xenstore-read /local/domain/0/backend/vif/$(echo ${vif#vif} | tr . /)/mac)
         echo $(cat isolated learning unicast_flood) \
             $(bridge fdb show brport $vif | grep \"^$mac \" | grep -q 'sticky.*static' && echo tied) \
             $(ip -6 neigh show dev xenstub0 nud permanent | wc -l)")?;
    ensure(found == "1 0 0 tied 0", || {
        format!("expected isolated 1, learning 0, unicast_flood 0, tied, 0 neighbours, got {found}")
    })
}

fn leave(stage: &Stage, guest: &str) -> Telling {
    stage.sh(&format!("xl destroy {guest}"))?;
    stage.expect_alone()
}

/// A frame brought more than an Ethernet packet: the host's stack had aggregated them for the stub (GSO).
fn aggregates(stage: &Stage, guest: &str) -> Telling {
    let log = format!("/var/log/xen/guest-{guest}-stubdom-*.log");
    let line = stage.sh(&format!("tr -d '\\r' <$(ls {log}) | grep 'network: received'"))?;
    stage.say(&line);
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [.., nr_frames, nr_bytes] = numbers[..] else {
        return Err(Stop::Failure(format!("no numbers of frames and bytes in \"{line}\"")));
    };
    ensure(nr_bytes > 1500 * nr_frames, || format!("{nr_bytes} bytes in {nr_frames} frames: no aggregates"))
}

fn one_gib(stage: &Stage) -> Telling {
    let (guest, file) = ("pvh-3072", "/var/lib/xen/save/pvh-3072");
    stage.create(guest)?;
    let fresh = Survey::take(stage, guest)?;
    stage.sh(&format!("xl save {guest} {file}"))?;
    restore_paused(stage, guest, file)?;
    let now = Survey::take(stage, guest)?;
    stage.say(format!("{} regions of 1 GiB, {} when fresh", now.nr_contiguous_1g, fresh.nr_contiguous_1g));
    expect_superpages(stage, &fresh, &now)?;
    stage.sh(&format!("xl unpause {guest}"))?;
    stage.ask(guest, "verify")?;
    stage.sh(&format!("xl destroy {guest}"))?;
    if now.nr_contiguous_1g == 0 {
        return Err(Stop::Failure("no 1 GiB superpage".into()));
    }
    stage.expect_alone()
}
