//! How often each frame has failed, and what was done about it.
//!
//! **Takes** reports, outcomes, and Xen's word on frames. **Gives** the frames to deal with now, and its own text. **Never**
//! believes itself that a frame is out of use: Xen is asked at each start, and again at each new error of the frame. **Never**
//! names a frame again without a reason: its time has come, it has failed as often again, or its owner is another.

use super::report::Report;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use xen_abi::types::{Domid, Mfn, Order};

/// Most pages that are known: reports of more are refused, so that whoever writes them cannot fill dom0's memory.
const MAX_PAGES: usize = 1 << 16;

/// A wait doubles at most so often: from the default of a minute to 17 hours.
const MAX_DOUBLINGS: u32 = 10;

/// What came of dealing with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It is out of use.
    Offline,
    /// It was exchanged, and somebody holds the old frame.
    Held,
    /// It was not exchanged, for a reason that may pass by itself.
    Later,
    /// It was not exchanged, and time alone does not change that.
    Refused,
}

/// What came of it, with all that decides when it is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) ending: Ending,
    /// Why, by name.
    pub(super) reason: String,
    /// The guest that has the frame, if that is known.
    pub(super) owner: Option<Domid>,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// In use, errors are counted.
    Counting,
    /// Being dealt with; after a restart it is dealt with again.
    Trying,
    /// Out of use, as far as is known.
    Offline,
    /// Tried again after as many errors as it has had.
    Refused,
    /// Exchanged, and the old frame was held: tried again then, or when it fails and Xen has it in use.
    Held {
        /// Seconds since 1970.
        until_s: u64,
    },
    /// Tried again then, or as if refused.
    Waiting {
        /// Seconds since 1970.
        until_s: u64,
    },
}

/// To be tried at once.
const NOW: Fate = Fate::Waiting { until_s: 0 };

impl Fate {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Counting => "counting",
            Self::Trying => "trying",
            Self::Offline => "offline",
            Self::Refused => "refused",
            Self::Held { .. } => "held",
            Self::Waiting { .. } => "waiting",
        }
    }

    fn until_s(self) -> Option<u64> {
        match self {
            Self::Waiting { until_s } | Self::Held { until_s } => Some(until_s),
            _ => None,
        }
    }

    fn parse(word: &str, until_s: Option<u64>) -> Option<Self> {
        let timed =
            until_s.into_iter().flat_map(|until_s| [Self::Waiting { until_s }, Self::Held { until_s }]);
        let fixed = [Self::Counting, Self::Trying, Self::Offline, Self::Refused];
        fixed.into_iter().chain(timed).find(|known| known.as_str() == word)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Page {
    errors: u64,
    /// Errors at which it was tried last.
    tried_at: u64,
    /// How often it was tried in a row with the same reason.
    nr_tries: u32,
    reason: String,
    owner: Option<Domid>,
    fate: Fate,
}

impl Page {
    const fn new() -> Self {
        Self { errors: 0, tried_at: 0, nr_tries: 0, reason: String::new(), owner: None, fate: Fate::Counting }
    }

    /// Whether it has failed as often again as before it was tried. A count at its maximum does not grow, so it is no reason.
    fn has_doubled(&self) -> bool {
        self.errors > self.tried_at && self.errors >= self.tried_at.saturating_mul(2)
    }

    fn is_due(&self, threshold: u64, now_s: u64) -> bool {
        match self.fate {
            Fate::Counting => self.errors >= threshold,
            Fate::Refused => self.has_doubled(),
            Fate::Waiting { until_s } | Fate::Held { until_s } => until_s <= now_s || self.has_doubled(),
            Fate::Trying | Fate::Offline => false,
        }
    }

    /// Begins anew with whoever has it now.
    fn forget_owner(&mut self) {
        (self.nr_tries, self.owner, self.fate) = (0, None, NOW);
    }
}

/// Everything that survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    pages: BTreeMap<Mfn, Page>,
    /// Spool files that are counted and may still be there.
    files: BTreeSet<String>,
    /// How far the growing file is read, in bytes.
    pub(super) offset: u64,
    /// The host's run in which all this was found out (`/proc/sys/kernel/random/boot_id`).
    boot: String,
}

impl Ledger {
    /// Takes up work after a start: what was under way is to be tried again, and Xen says which pages are out of use.
    ///
    /// After a reboot of the host every page is in use again and has another owner. Gives the pages that came back.
    pub(super) fn resume(&mut self, boot: &str, is_offline: impl Fn(Mfn) -> Option<bool>) -> Vec<Mfn> {
        let is_other_boot = self.boot != boot;
        boot.clone_into(&mut self.boot);
        let mut came_back = Vec::new();
        for (&mfn, page) in &mut self.pages {
            match page.fate {
                Fate::Counting => {}
                Fate::Offline | Fate::Held { .. } if is_offline(mfn) == Some(false) => {
                    came_back.push(mfn);
                    page.forget_owner();
                }
                Fate::Offline => {}
                Fate::Trying => page.fate = NOW,
                Fate::Refused | Fate::Waiting { .. } | Fate::Held { .. } if is_other_boot => {
                    page.forget_owner()
                }
                Fate::Refused | Fate::Waiting { .. } | Fate::Held { .. } => {}
            }
        }
        came_back
    }

    /// Notes a spool file; gives whether it is new.
    pub(super) fn take_file(&mut self, name: &str) -> bool {
        self.files.insert(name.to_owned())
    }

    /// Forgets the spool files that are gone.
    pub(super) fn forget_files(&mut self, exists: impl Fn(&str) -> bool) {
        self.files.retain(|name| exists(name));
    }

    /// Counts; gives the errors of the page so far, or nothing when too many other pages are known.
    pub(super) fn take(&mut self, report: Report) -> Option<u64> {
        if self.pages.len() >= MAX_PAGES && !self.pages.contains_key(&report.mfn) {
            return None;
        }
        let page = self.pages.entry(report.mfn).or_insert(Page::new());
        page.errors = page.errors.saturating_add(report.errors);
        Some(page.errors)
    }

    /// Asks about each page that should be out of use and has failed all the same. Gives those that Xen has in use: they are
    /// due.
    pub(super) fn doubt(&mut self, is_offline: impl Fn(Mfn) -> Option<bool>) -> Vec<Mfn> {
        let mut in_use = Vec::new();
        for (&mfn, page) in &mut self.pages {
            if !matches!(page.fate, Fate::Offline | Fate::Held { .. }) || page.errors == page.tried_at {
                continue;
            }
            match is_offline(mfn) {
                Some(false) => {
                    in_use.push(mfn);
                    page.forget_owner();
                }
                Some(true) => (page.fate, page.tried_at) = (Fate::Offline, page.errors),
                None => {}
            }
        }
        in_use
    }

    /// Makes every page due that waits for a guest which is gone: its owner is another now.
    pub(super) fn forget_owners(&mut self, exists: impl Fn(Domid) -> bool) {
        let owner = |page: &Page| match page.fate {
            Fate::Refused | Fate::Waiting { .. } | Fate::Held { .. } => page.owner,
            _ => None,
        };
        let owners: BTreeSet<Domid> = self.pages.values().filter_map(owner).collect();
        let gone: BTreeSet<Domid> = owners.into_iter().filter(|owner| !exists(*owner)).collect();
        let pages = self.pages.values_mut();
        pages
            .filter(|page| owner(page).is_some_and(|owner| gone.contains(&owner)))
            .for_each(Page::forget_owner);
    }

    /// Makes every page of this superpage due that has failed at all. After an exchange of the whole superpage they belong to
    /// nobody, so taking them out of use costs nothing, and nobody gets them.
    pub(super) fn hasten(&mut self, region: Mfn) {
        let of_region = self.pages.iter_mut().filter(|(mfn, _)| region_of(**mfn) == region);
        of_region.filter(|(_, page)| page.fate == Fate::Counting).for_each(|(_, page)| page.fate = NOW);
    }

    /// The frames that are to be dealt with now, those of one superpage together, those tried least often first.
    pub(super) fn due(&self, threshold: u64, now_s: u64) -> Vec<(Mfn, Vec<Mfn>)> {
        let mut regions: BTreeMap<Mfn, (u32, Vec<Mfn>)> = BTreeMap::new();
        for (&mfn, page) in self.pages.iter().filter(|(_, page)| page.is_due(threshold, now_s)) {
            let (nr_tries, mfns) = regions.entry(region_of(mfn)).or_insert((u32::MAX, Vec::new()));
            *nr_tries = page.nr_tries.min(*nr_tries);
            mfns.push(mfn);
        }
        let mut regions: Vec<(u32, (Mfn, Vec<Mfn>))> =
            regions.into_iter().map(|(region, (nr_tries, mfns))| (nr_tries, (region, mfns))).collect();
        regions.sort();
        regions.into_iter().map(|(_, due)| due).collect()
    }

    /// How many frames of a superpage have failed and are not out of use.
    pub(super) fn nr_failing(&self, region: Mfn) -> usize {
        let of_region = self.pages.range(region..).take_while(|(mfn, _)| region_of(**mfn) == region);
        of_region.filter(|(_, page)| page.fate != Fate::Offline).count()
    }

    /// Notes that a frame is being dealt with.
    pub(super) fn begin(&mut self, mfn: Mfn) {
        if let Some(page) = self.pages.get_mut(&mfn) {
            (page.fate, page.tried_at) = (Fate::Trying, page.errors);
        }
    }

    /// Notes what became of a frame; gives the seconds after which it is tried again. They double each time that the same
    /// reason comes, from `retry_s` on.
    pub(super) fn settle(&mut self, mfn: Mfn, outcome: &Outcome, now_s: u64, retry_s: u64) -> Option<u64> {
        let page = self.pages.get_mut(&mfn)?;
        if page.reason != outcome.reason {
            page.nr_tries = 0;
            page.reason.clone_from(&outcome.reason);
        }
        page.owner = outcome.owner;
        let wait_s = retry_s.saturating_mul(1 << page.nr_tries.min(MAX_DOUBLINGS));
        page.nr_tries = page.nr_tries.saturating_add(1);
        let until_s = now_s.saturating_add(wait_s);
        page.fate = match outcome.ending {
            Ending::Offline => Fate::Offline,
            Ending::Held => Fate::Held { until_s },
            Ending::Later => Fate::Waiting { until_s },
            Ending::Refused => Fate::Refused,
        };
        page.fate.until_s().map(|_| wait_s)
    }

    pub(super) fn json(&self) -> Value {
        let pages: Vec<Value> = self.pages.iter().map(|(mfn, page)| page_json(*mfn, page)).collect();
        json!({ "version": 3, "boot": self.boot, "offset": self.offset, "files": self.files, "pages": pages })
    }

    /// Reads what [`Ledger::json`] gave.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        (number(&value, "version")? == 3).then_some(())?;
        let boot = value.get("boot")?.as_str()?.to_owned();
        let mut ledger = Self { offset: number(&value, "offset")?, boot, ..Self::default() };
        for name in value.get("files")?.as_array()? {
            ledger.files.insert(name.as_str()?.to_owned());
        }
        for page in value.get("pages")?.as_array()? {
            ledger.pages.insert(Mfn::new(number(page, "mfn")?), parse_page(page)?);
        }
        Some(ledger)
    }
}

/// The first frame of the superpage that a frame lies in.
pub(super) fn region_of(mfn: Mfn) -> Mfn {
    mfn.align_down(Order::PAGE_2M)
}

fn page_json(mfn: Mfn, page: &Page) -> Value {
    json!({
        "mfn": mfn.raw(),
        "errors": page.errors,
        "tried_at": page.tried_at,
        "tries": page.nr_tries,
        "reason": page.reason,
        "owner": page.owner.map(Domid::raw),
        "fate": page.fate.as_str(),
        "until_s": page.fate.until_s(),
    })
}

fn parse_page(page: &Value) -> Option<Page> {
    let owner = match page.get("owner")? {
        Value::Null => None,
        domid => Some(Domid::new(u16::try_from(domid.as_u64()?).ok()?)),
    };
    Some(Page {
        errors: number(page, "errors")?,
        tried_at: number(page, "tried_at")?,
        nr_tries: u32::try_from(number(page, "tries")?).ok()?,
        reason: page.get("reason")?.as_str()?.to_owned(),
        owner,
        fate: Fate::parse(page.get("fate")?.as_str()?, number(page, "until_s"))?,
    })
}

fn number(value: &Value, key: &str) -> Option<u64> {
    value.get(key)?.as_u64()
}

#[cfg(test)]
mod tests;
