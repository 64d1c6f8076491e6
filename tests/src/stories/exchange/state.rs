//! All of a guest that a refusal must not change.

use crate::story::{Stage, Telling, ensure};
use crate::survey::Survey;

/// The special pages, the regions in which new pages wait, and what a device model has at the end of 4 GiB, besides RAM.
const HIGH: &str = "0xf0000:0x100000";

/// Of RAM the frame behind one page in so many is compared: several in each 2 MiB, whose contiguity the survey tells.
const STEP: usize = 16;

/// What a frozen guest has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// Which of its regions are superpages, and how many pages it owns.
    survey: Survey,
    /// Pages that it owns and may own, and the type of every page, as runs.
    types: String,
    /// A hash over the frames behind its pages.
    frames: String,
    /// The witness's sum over its contents.
    sum: String,
}

impl State {
    /// Looks at a guest with a stub, whose witness is frozen and whose RAM has so many pages.
    pub(super) fn take(stage: &Stage, guest: &str, nr_pages: usize) -> Telling<Self> {
        let last = nr_pages - 1;
        Ok(Self {
            survey: Survey::take(stage, guest)?,
            types: limits(stage, guest, &format!("0:{nr_pages} {HIGH}"))?,
            frames: stage.sh(&format!(
                "set -o pipefail; stubctl locate {guest} $(seq 0 {STEP} {last}) $(seq $((0xfeff0)) $((0xfefff))) | md5sum"
            ))?,
            sum: stage.ask(guest, "verify")?.value("sum")?.to_owned(),
        })
    }

    /// Sees that the guest is as it was.
    pub(super) fn expect_same(&self, stage: &Stage, guest: &str, nr_pages: usize) -> Telling {
        let now = Self::take(stage, guest, nr_pages)?;
        ensure(self.survey == now.survey, || {
            format!("{guest} had the regions {:?}, it has {:?}", self.survey, now.survey)
        })?;
        let parts = [("types", &self.types, &now.types), ("frames", &self.frames, &now.frames)];
        for (what, was, is) in parts.into_iter().chain([("contents", &self.sum, &now.sum)]) {
            ensure(was == is, || format!("the {what} of {guest} were\n{was}\nthey are\n{is}"))?;
        }
        Ok(())
    }
}

/// How many pages a domain owns and may own, and the runs of equal memory types in these ranges.
pub(in crate::stories) fn limits(stage: &Stage, guest: &str, ranges: &str) -> Telling<String> {
    stage.sh(&format!("nest-domain $(xl domid {guest}) {ranges}"))
}
