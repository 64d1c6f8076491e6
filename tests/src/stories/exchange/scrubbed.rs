//! What a guest leaves in memory that Xen hands to the next.

use super::{Verdicts, exchange};
use crate::machine::Options;
use crate::stories::restore::restore_paused;
use crate::stories::scarce::hog;
use crate::story::{Saved, Stage, Stop, Story, Telling, ensure};

/// Nothing of a guest in another's memory.
pub(in crate::stories) const SCRUBBED: Story = Story {
    name: "scrubbed",
    proves: "after a restore in which pages became holes, and after exchanges, whole and page by page, no page of the guest \
             is found in new guests that own all memory that was free, while it lives; a guest whose memory is far below its \
             maximum is restored as by the stock helper",
    options: Options::default,
    tell: scrubbed,
};

const GUEST: &str = "pvh-128";

/// What the guest whose pages became holes is called then.
const BALLOONED: &str = "ballooned";

/// All of the guest's pages.
const ALL: &str = "0:0x8000";

/// How many regions of the guest are exchanged whole, and then as many pages alone.
const NR_REGIONS: usize = 4;

/// What Xen and xl need for the second new guest besides its memory, in MiB.
const OVERHEAD_MIB: u64 = 16;

fn scrubbed(stage: &Stage) -> Telling {
    let Saved { file, .. } = stage.saved(GUEST)?;
    let balloon = "/var/lib/xen/save/balloon";
    let nr_holes = balloon_out(stage, &file, balloon)?;
    restore_paused(stage, GUEST, balloon)?;
    ensure(nr_holes >= 512, || format!("{nr_holes} pages of the witness became holes"))?;
    // What it lacks now it would miss when it ran; frames of a guest that has never run are not exchanged.
    stage.sh(&format!("xl rename {GUEST} {BALLOONED}"))?;
    restore_paused(stage, GUEST, &file)?;
    stage.sh(&format!("xl unpause {GUEST} && ask-witness {GUEST} verify"))?;
    let regions = witnessed_regions(stage)?;
    ensure(regions.len() >= NR_REGIONS, || format!("the witness has {} regions", regions.len()))?;
    stage.say(format!("{nr_holes} pages became holes; {} regions with pages of the witness", regions.len()));
    let pages = |offset: u64| -> String {
        let gfns = regions.iter().take(NR_REGIONS).map(|first| format!("{:#x}", first + offset));
        gfns.collect::<Vec<_>>().join(" ")
    };
    let whole = exchange(stage, GUEST, &pages(5), "")?;
    expect_most_done(&whole)?;
    let alone = exchange(stage, GUEST, &pages(9), "--split")?;
    expect_most_done(&alone)?;
    expect_nothing_elsewhere(stage)?;
    stage.sh(&format!(
        "ask-witness {GUEST} verify && xl destroy {GUEST} && xl destroy {BALLOONED} && rm {balloon}"
    ))?;
    super::bring_back(stage, &[&whole, &alone])?;
    far_below_its_maximum(stage)
}

/// Writes the stream with holes behind all contents; gives how many.
fn balloon_out(stage: &Stage, file: &str, to: &str) -> Telling<u64> {
    let told = stage.sh(&format!("nest-stream balloon {file} {to} 0x5000:0x6800"))?;
    told.trim().parse().map_err(|_| Stop::Failure(format!("nest-stream balloon printed {told:?}")))
}

/// Lists the first gfns of the guest's regions in which the witness has written.
fn witnessed_regions(stage: &Stage) -> Telling<Vec<u64>> {
    let found = stage.sh(&format!("nest-scan --regions $(xl domid {GUEST}) {ALL}"))?;
    let gfn = |line: &str| u64::from_str_radix(line.strip_prefix("0x")?, 16).ok();
    Ok(found.lines().filter_map(gfn).collect())
}

fn expect_most_done(verdicts: &Verdicts) -> Telling {
    verdicts.expect_most(NR_REGIONS, NR_REGIONS / 2)
}

/// Makes two guests over all free memory, paused, and looks for the witness in them.
fn expect_nothing_elsewhere(stage: &Stage) -> Telling {
    let config = "/etc/xen/stubdom/guests/pvh-128.cfg";
    let mib = hog(stage)?;
    let rest = (stage.free_kib()? / 1024).saturating_sub(OVERHEAD_MIB);
    stage.sh(&format!("xl create -p -q {config} 'name=\"rest\"' memory={rest} maxmem={rest}"))?;
    for (guest, mib) in [("hog", mib), ("rest", rest)] {
        let found = stage.sh(&format!("nest-scan $(xl domid {guest}) 0:{}", mib * 256))?;
        stage.say(format!("{guest}: {}", found.trim()));
        ensure(found.trim().ends_with(" witnessed=0"), || {
            format!("pages of {GUEST} in the memory of {guest}: {}", found.trim())
        })?;
    }
    stage.sh("xl destroy hog && xl destroy rest").map(drop)
}

/// Linux has pages at the top of its memory, wherever that is.
fn far_below_its_maximum(stage: &Stage) -> Telling {
    let (guest, file) = ("sparse", "/var/lib/xen/save/sparse");
    stage.sh(&format!(
        "sed -e 's/^name = .*/name = \"{guest}\"/' -e 's/^memory = .*/memory = 512\\nmaxmem = 5888/' \
             -e 's/witness.mb=40/witness.mb=100/' /etc/xen/stubdom/guests/{GUEST}.cfg >/run/{guest}.cfg
         xl create -q /run/{guest}.cfg && ask-witness {guest} ready && ask-witness {guest} verify"
    ))?;
    stage.sh(&format!("xl save {guest} {file}"))?;
    restore_paused(stage, guest, file)?;
    stage.sh(&format!(
        "xl unpause {guest} && ask-witness {guest} verify && xl destroy {guest} && rm {file}"
    ))?;
    stage.expect_alone()
}
