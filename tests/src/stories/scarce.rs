//! Little memory: the restore takes what there is.

use super::restore::{expect_superpages, restore_paused};
use crate::machine::Options;
use crate::story::{Saved, Stage, Story, Telling, ensure};
use crate::survey::Survey;
use control::RegionKind;

/// No two free pages side by side.
pub(super) const FRAGMENTED: Story = Story {
    name: "stub-fragmented",
    proves: "where Xen has memory but none of it contiguous, the guest arrives in single pages with every byte",
    options: Options::default,
    tell: fragmented,
};

/// No page above what the guest owns.
pub(super) const MAX_PAGES: Story = Story {
    name: "stub-max-pages",
    proves: "where the guest may own no page more than the stream holds, it arrives with every byte and its superpages, its \
             pages in order or shuffled; where it may own 64 GiB, a stub of 16 MiB has room to keep track of it",
    options: Options::default,
    tell: max_pages,
};

/// Left unfragmented for the stub, page tables and what xl needs, in MiB; less than the guest is large.
const LEFT_MIB: u64 = 64;

/// The largest guest that README promises for a stub of 16 MiB.
const PAGES_OF_64_GIB: u64 = 64 << 18;

/// An example guest's configuration, blown up to own all but [`LEFT_MIB`] of the free memory. Its own page tables take a
/// part in a hundred more.
pub(super) fn hog(stage: &Stage) -> Telling<u64> {
    let free_mib = stage.free_kib()? / 1024;
    let mib = free_mib - free_mib / 64 - LEFT_MIB;
    let config = "/etc/xen/stubdom/guests/pvh-128.cfg";
    stage.sh(&format!("xl create -p -q {config} 'name=\"hog\"' memory={mib} maxmem={mib}"))?;
    Ok(mib)
}

fn fragmented(stage: &Stage) -> Telling {
    let guest = "pvh-256";
    let Saved { file, fresh } = stage.saved(guest)?;
    let mib = hog(stage)?;
    stage.say(stage.sh(&format!("nest-fragment $(xl domid hog) {mib}"))?);
    stage.say(format!("{} MiB free", stage.free_kib()? / 1024));
    restore_paused(stage, guest, &file)?;
    let now = Survey::take(stage, guest)?;
    let (had, has) = (fresh.count(RegionKind::Superpage), now.count(RegionKind::Superpage));
    stage.say(format!("{has} superpages, {had} when fresh; {} pages owned", now.nr_owned));
    ensure(has < had / 2, || format!("memory was not fragmented: {has} superpages of {had}"))?;
    let (had, has) = (fresh.nr_owned, now.nr_owned);
    ensure(had == has, || format!("{had} pages owned when fresh, {has} after the restore"))?;
    stage.sh(&format!("xl unpause {guest}"))?;
    stage.ask(guest, "verify")?;
    stage.sh(&format!("xl destroy {guest} && xl destroy hog"))?;
    stage.expect_alone()
}

fn max_pages(stage: &Stage) -> Telling {
    let (guest, shuffled) = ("pvh-128", "/var/lib/xen/save/shuffled");
    let Saved { file, fresh } = stage.saved(guest)?;
    stage.sh(&format!("nest-stream reorder {file} {shuffled} --shuffle-across --seed 6"))?;
    for source in [&file, shuffled] {
        restore_limited(stage, source, &file, fresh.nr_owned)?;
        expect_superpages(stage, &fresh, &Survey::take(stage, guest)?)?;
        stage.sh(&format!("xl unpause {guest}"))?;
        stage.ask(guest, "verify")?;
        stage.sh(&format!("xl destroy {guest}"))?;
        stage.expect_alone()?;
    }
    for transport in ["ring", "tcp"] {
        stage.sh(&format!("echo 'transport = \"{transport}\"' >/etc/xen/stubdom/{guest}.conf"))?;
        restore_limited(stage, &file, &file, PAGES_OF_64_GIB)?;
        expect_superpages(stage, &fresh, &Survey::take(stage, guest)?)?;
        stage.sh(&format!("xl destroy {guest}"))?;
        stage.expect_alone()?;
    }
    stage.sh(&format!("rm /etc/xen/stubdom/{guest}.conf")).map(drop)
}

/// Restores a guest that may own so many pages, without letting it run, and compares its memory with the file that
/// has its pages in order.
fn restore_limited(stage: &Stage, source: &str, in_order: &str, max_pages: u64) -> Telling {
    let through = format!("NEST_MAX_PAGES={max_pages} LIBXL_SAVE_HELPER=/usr/bin/nest-tight");
    stage.sh(&format!("{through} xl restore -p {source}"))?;
    let verdict = stage.sh(&format!("nest-oracle {in_order} $(xl domid pvh-128)"))?;
    stage.say(verdict.lines().next_back().unwrap_or_default());
    Ok(())
}
