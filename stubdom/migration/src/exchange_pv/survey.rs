//! What is known of a guest's memory before anything is touched.

use super::p2m::{self, Frames};
use super::{
    BATCH_FRAMES, Error, Facts, PageType, PvGuest, Refusal, Role, Root, Step, Table, WORDS, Words, mapped,
};
use crate::xen::Errno;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use xen_abi::types::{Mfn, Pfn};

/// Most entries that may map a frame which is exchanged; a page of a shared library is mapped by far fewer. A guest chooses
/// how many there are, and each takes memory in dom0 and time while the guest is suspended.
pub const MAX_ENTRIES: usize = 1 << 16;

/// How far the numbering of a guest may exceed its size, in pages: the hole below 4 GiB.
const NUMBERING_SLACK: u64 = 1 << 20;

/// Slots of a level 4 table that are Xen's own (`ROOT_PAGETABLE_FIRST_XEN_SLOT` to `LAST`).
const XEN_SLOTS: core::ops::Range<usize> = 256..272;

/// An entry of a page table that maps one of the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) table: Mfn,
    pub(super) index: usize,
    pub(super) value: u64,
}

/// What was found.
#[derive(Clone, Debug)]
pub(super) struct Survey {
    frames: Frames,
    roles: BTreeMap<Mfn, Role>,
    facts: Facts,
    /// The frames asked for that the p2m names.
    pfns: BTreeMap<Mfn, Pfn>,
    foreign: BTreeSet<Mfn>,
    pub(super) tables: BTreeMap<Mfn, Table>,
    pub(super) entries: BTreeMap<Mfn, Vec<Entry>>,
}

impl Survey {
    /// Looks through the p2m and all page tables for what concerns `mfns`.
    pub(super) fn take<X: PvGuest>(facts: Facts, mfns: &[Mfn], xen: &mut X) -> Result<Self, Error> {
        let root = facts.root()?;
        let frames = p2m::find(root, facts.max_pfn, xen)?;
        let p2m = frames.leaves.iter().chain(&frames.nodes).map(|mfn| (*mfn, Role::P2m));
        // Where a frame has two roles, the one that dom0 knows of is the better name.
        let roles: BTreeMap<_, _> = p2m.chain(facts.reserved.iter().copied()).collect();
        let (pfns, foreign) = (BTreeMap::new(), BTreeSet::new());
        let (tables, entries) = (BTreeMap::new(), mfns.iter().map(|mfn| (*mfn, Vec::new())).collect());
        let mut survey = Self { frames, roles, facts, pfns, foreign, tables, entries };
        survey.read_p2m(xen)?;
        survey.read_tables(xen)?;
        Ok(survey)
    }

    /// Says which page a frame is, or why it must stay.
    pub(super) fn page(&self, mfn: Mfn) -> Result<Pfn, Refusal> {
        if let Some(role) = self.roles.get(&mfn) {
            return Err(Refusal::Reserved(*role));
        }
        self.facts.refusal(mfn)?;
        if self.foreign.contains(&mfn) {
            return Err(Refusal::Foreign);
        }
        if self.entries.get(&mfn).is_some_and(|entries| entries.len() > MAX_ENTRIES) {
            return Err(Refusal::MappedTooOften);
        }
        self.pfns.get(&mfn).copied().ok_or(Refusal::NoPfn)
    }

    /// Where the p2m says which frame `pfn` is: frame and word.
    pub(super) fn p2m_entry(&self, pfn: Pfn) -> Option<(Mfn, usize)> {
        let number = usize::try_from(pfn.raw()).ok()?;
        Some((*self.frames.leaves.get(number / WORDS)?, number % WORDS))
    }

    /// A table has moved: entries of other frames in it are found in its new frame.
    pub(super) fn table_moved(&mut self, old: Mfn, new: Mfn) {
        if let Some(table) = self.tables.remove(&old) {
            self.tables.insert(new, table);
        }
        for entry in self.entries.values_mut().flatten().filter(|entry| entry.table == old) {
            entry.table = new;
        }
    }

    /// Finds the pfns of the frames asked for, and all page tables.
    fn read_p2m<X: PvGuest>(&mut self, xen: &mut X) -> Result<(), Error> {
        let leaves = self.frames.leaves.clone();
        let mut first_pfn = 0;
        in_batches(&leaves, xen, |_, words, xen| {
            let of_guest = |(word, pfn): (&u64, u64)| (pfn < self.facts.max_pfn).then_some((*word, pfn));
            let entries = words.iter().zip(first_pfn..).filter_map(of_guest);
            let frames: Vec<_> =
                entries.filter_map(|(word, pfn)| Some((p2m::frame(word)?, Pfn::new(pfn)))).collect();
            first_pfn += WORDS as u64;
            self.read_types(&frames, xen)
        })
    }

    fn read_types<X: PvGuest>(&mut self, frames: &[(Mfn, Pfn)], xen: &mut X) -> Result<(), Error> {
        let mfns: Vec<_> = frames.iter().map(|(mfn, _)| *mfn).collect();
        let mut types = vec![PageType::Data; mfns.len()];
        if !mfns.is_empty() {
            xen.page_types(&mfns, &mut types).map_err(at(Step::PageTypes))?;
        }
        for (&(mfn, pfn), page_type) in frames.iter().zip(types) {
            let is_asked = self.entries.contains_key(&mfn);
            if is_asked {
                self.pfns.insert(mfn, pfn);
            }
            match page_type {
                PageType::Table(table) => drop(self.tables.insert(mfn, table)),
                PageType::Foreign if is_asked => drop(self.foreign.insert(mfn)),
                PageType::Foreign | PageType::Data => {}
            }
        }
        Ok(())
    }

    /// Finds all entries that map the frames asked for.
    fn read_tables<X: PvGuest>(&mut self, xen: &mut X) -> Result<(), Error> {
        let tables: Vec<_> = self.tables.iter().map(|(mfn, table)| (*mfn, table.level)).collect();
        let mfns: Vec<_> = tables.iter().map(|(mfn, _)| *mfn).collect();
        in_batches(&mfns, xen, |nr, words, _| {
            let (table, level) = tables[nr];
            for (index, &value) in words.iter().enumerate() {
                let is_xens = level == 4 && XEN_SLOTS.contains(&index);
                let entries = mapped(value).and_then(|mfn| self.entries.get_mut(&mfn));
                if let (false, Some(entries)) = (is_xens, entries)
                    && entries.len() <= MAX_ENTRIES
                {
                    entries.push(Entry { table, index, value });
                }
            }
            Ok(())
        })
    }
}

impl Facts {
    /// Tells what can be known before the guest is suspended: whether its p2m can be surveyed at all, and whether a frame is
    /// one that must stay. What passes may be refused by the survey still.
    ///
    /// # Errors
    /// [`Error::HugeP2m`], [`Error::NoP2m`] or [`Error::Refused`].
    pub fn check(&self, mfn: Mfn) -> Result<(), Error> {
        self.root()?;
        self.refusal(mfn).map_err(|refusal| Error::Refused { mfn, refusal })
    }

    /// Where a p2m is that a guest of this size can have.
    fn root(&self) -> Result<Root, Error> {
        let limit = self.max_frames.saturating_mul(2).saturating_add(NUMBERING_SLACK);
        if self.max_pfn > limit {
            return Err(Error::HugeP2m { max_pfn: self.max_pfn, limit });
        }
        self.p2m.ok_or(Error::NoP2m { pfn: Pfn::new(0) })
    }

    /// Refuses what others know by its number.
    fn refusal(&self, mfn: Mfn) -> Result<(), Refusal> {
        if let Some((_, role)) = self.reserved.iter().find(|(reserved, _)| *reserved == mfn) {
            return Err(Refusal::Reserved(*role));
        }
        self.granted.get(&mfn).map_or(Ok(()), |gref| Err(Refusal::Granted(*gref)))
    }
}

/// Reads frames and looks at one after the other.
fn in_batches<X: PvGuest>(
    mfns: &[Mfn],
    xen: &mut X,
    mut look: impl FnMut(usize, &Words, &mut X) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut pages = vec![[0; WORDS]; BATCH_FRAMES.min(mfns.len())];
    for (batch, first) in mfns.chunks(BATCH_FRAMES).zip((0..).step_by(BATCH_FRAMES)) {
        let pages = &mut pages[..batch.len()];
        xen.read(batch, pages).map_err(at(Step::Read))?;
        for (page, nr) in pages.iter().zip(first..) {
            look(nr, page, xen)?;
        }
    }
    Ok(())
}

fn at(step: Step) -> impl Fn(Errno) -> Error {
    move |errno| Error::Xen { step, errno }
}
