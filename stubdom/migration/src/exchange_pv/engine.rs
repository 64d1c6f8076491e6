//! One frame after the other: clear, exchange, restore; undone where it can be.

use super::survey::{Entry, Survey};
use super::{BATCH_UPDATES, Error, Facts, PvGuest, Step, Table, Update, WORDS, Words, mapped, with_frame};
use crate::xen::Errno;
use alloc::boxed::Box;
use alloc::vec::Vec;
use xen_abi::types::{Mfn, Pfn};

/// How often a step is tried that has to succeed.
const ATTEMPTS: u32 = 3;

/// What an exchange came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchanged {
    /// The page.
    pub pfn: Pfn,
    /// Its old frame.
    pub old: Mfn,
    /// Its new frame.
    pub new: Mfn,
    /// How many entries of page tables map it.
    pub nr_entries: usize,
    /// Its level, if it is a page table.
    pub level: Option<u8>,
}

/// Exchanges frames of one suspended and paused guest.
#[derive(Debug)]
pub struct Exchanger {
    survey: Survey,
}

/// A frame on its way.
struct Move {
    mfn: Mfn,
    pfn: Pfn,
    p2m_entry: (Mfn, usize),
    table: Option<Table>,
    own: Vec<Entry>,    // entries of a page table that map itself
    others: Vec<Entry>, // all other entries
    contents: Box<Words>,
}

impl Exchanger {
    /// Surveys the guest for an exchange of `mfns`, in any order. Changes nothing.
    ///
    /// # Errors
    /// The guest's memory cannot be surveyed.
    pub fn new<X: PvGuest>(facts: Facts, mfns: &[Mfn], xen: &mut X) -> Result<Self, Error> {
        Survey::take(facts, mfns, xen).map(|survey| Self { survey })
    }

    /// Tells whether a frame that was surveyed may move, by all that can be known before it is tried.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason.
    pub fn check(&self, mfn: Mfn) -> Result<Pfn, Error> {
        self.survey.page(mfn).map_err(|refusal| Error::Refused { mfn, refusal })
    }

    /// Exchanges one of the frames that were surveyed.
    ///
    /// # Errors
    /// Why not; unless it is [`Error::Lost`], the guest is as it was.
    pub fn exchange<X: PvGuest>(&mut self, mfn: Mfn, xen: &mut X) -> Result<Exchanged, Error> {
        let moving = self.prepare(mfn, xen)?;
        moving.unhook(xen)?;
        let new = match retry(|| xen.exchange(mfn, moving.pfn)) {
            Ok(new) => new,
            Err(errno) => {
                moving.undo(&moving.all(), Step::Exchange, errno, xen)?;
                return Err(not_exchanged(mfn, errno));
            }
        };
        moving.settle(new, xen)?;
        if moving.table.is_some() {
            self.survey.table_moved(mfn, new);
        }
        self.survey.entries.remove(&mfn);
        let nr_entries = moving.own.len() + moving.others.len();
        let level = moving.table.map(|table| table.level);
        Ok(Exchanged { pfn: moving.pfn, old: mfn, new, nr_entries, level })
    }

    fn prepare<X: PvGuest>(&self, mfn: Mfn, xen: &mut X) -> Result<Move, Error> {
        let pfn = self.check(mfn)?;
        let p2m_entry = self.survey.p2m_entry(pfn).ok_or(Error::NoP2m { pfn })?;
        let mut contents = Box::new([0; WORDS]);
        retry(|| xen.read(&[mfn], core::slice::from_mut(&mut *contents)))
            .map_err(|errno| Error::Xen { step: Step::Read, errno })?;
        let entries = self.survey.entries.get(&mfn).into_iter().flatten();
        let (own, others) = entries.partition(|entry| entry.table == mfn);
        let table = self.survey.tables.get(&mfn).copied();
        Ok(Move { mfn, pfn, p2m_entry, table, own, others, contents })
    }
}

impl Move {
    /// All entries in the order in which they are cleared: those in the frame itself as long as it is a table.
    fn all(&self) -> Vec<Entry> {
        self.own.iter().chain(&self.others).copied().collect()
    }

    /// Removes every reference to the frame that is known.
    fn unhook<X: PvGuest>(&self, xen: &mut X) -> Result<(), Error> {
        if self.is_pinned() {
            retry(|| xen.unpin(self.mfn)).map_err(|errno| Error::Xen { step: Step::Unpin, errno })?;
        }
        let entries = self.all();
        let clear: Vec<_> = entries.iter().map(|entry| update(entry, 0)).collect();
        write_all(&clear, xen).or_else(|(nr_done, errno)| {
            self.undo(&entries[..nr_done], Step::Clear, errno, xen)?;
            Err(Error::Xen { step: Step::Clear, errno })
        })
    }

    /// Puts cleared entries back, the last first, and the pin.
    fn undo<X: PvGuest>(
        &self,
        cleared: &[Entry],
        step: Step,
        errno: Errno,
        xen: &mut X,
    ) -> Result<(), Error> {
        let lost = |_| Error::Lost { mfn: self.mfn, step, errno };
        let restore: Vec<_> = cleared.iter().rev().map(|entry| update(entry, entry.value)).collect();
        write_all(&restore, xen).map_err(|(_, errno)| lost(errno))?;
        self.pin(self.mfn, xen).map_err(lost)
    }

    /// Makes the new frame what the old one was.
    fn settle<X: PvGuest>(&self, new: Mfn, xen: &mut X) -> Result<(), Error> {
        let lost = |step| move |errno| Error::Lost { mfn: self.mfn, step, errno };
        let contents = self.contents_for(new);
        retry(|| xen.write(new, &contents)).map_err(lost(Step::Write))?;
        let (leaf, index) = self.p2m_entry;
        retry(|| xen.write_word(leaf, index, new.raw())).map_err(lost(Step::P2m))?;
        let restore: Vec<_> =
            self.others.iter().map(|entry| update(entry, with_frame(entry.value, new))).collect();
        write_all(&restore, xen).map_err(|(_, errno)| lost(Step::Restore)(errno))?;
        self.pin(new, xen).map_err(lost(Step::Pin))
    }

    /// The contents, with entries that name the frame itself following it.
    fn contents_for(&self, new: Mfn) -> Box<Words> {
        let mut contents = self.contents.clone();
        for entry in &self.own {
            contents[entry.index] = with_frame(entry.value, new);
        }
        contents
    }

    fn is_pinned(&self) -> bool {
        self.table.is_some_and(|table| table.is_pinned)
    }

    fn pin<X: PvGuest>(&self, mfn: Mfn, xen: &mut X) -> Result<(), Errno> {
        match self.table {
            Some(Table { level, is_pinned: true }) => retry(|| xen.pin(mfn, level)),
            _ => Ok(()),
        }
    }
}

fn not_exchanged(mfn: Mfn, errno: Errno) -> Error {
    match errno {
        Errno::EINVAL => Error::Held { mfn },
        Errno::ENOMEM => Error::NoMemory,
        errno => Error::Xen { step: Step::Exchange, errno },
    }
}

fn update(entry: &Entry, value: u64) -> Update {
    debug_assert!(mapped(entry.value).is_some(), "only present entries are noted");
    Update { table: entry.table, index: entry.index, value }
}

/// Carries all updates out, and tries one that fails again; else tells how many are done.
fn write_all<X: PvGuest>(updates: &[Update], xen: &mut X) -> Result<(), (usize, Errno)> {
    let (mut nr_done, mut attempts_left) = (0, ATTEMPTS);
    while nr_done < updates.len() {
        let batch = &updates[nr_done..updates.len().min(nr_done + BATCH_UPDATES)];
        let Err((nr_more, errno)) = xen.mmu_update(batch) else {
            (nr_done, attempts_left) = (nr_done + batch.len(), ATTEMPTS);
            continue;
        };
        attempts_left = if nr_more > 0 { ATTEMPTS } else { attempts_left };
        nr_done += nr_more;
        attempts_left -= 1;
        if attempts_left == 0 {
            return Err((nr_done, errno));
        }
    }
    Ok(())
}

/// Tries a call again that fails.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    let mut result = call();
    for _ in 1..ATTEMPTS {
        if result.is_ok() {
            break;
        }
        result = call();
    }
    result
}
