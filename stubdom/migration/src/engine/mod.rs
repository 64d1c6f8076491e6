//! ENGINE: carries plans out over [`Xen`] and moves the bytes.
//!
//! **Takes** steps and the far side. **Gives** a populated, filled target and a tally. **Never** decides what is
//! populated where, parses anything, or holds page contents.
//!
//! A short count is an outcome: what Xen has no contiguous memory for comes again one order lower, what it has no
//! memory for at all is asked for once more, then the speculation of other regions is given back, then it is an error.
//! A frame that cannot be mapped is tried twice. Everything else that fails ends the migration.
//!
//! New memory holds what another guest has left there, and what is given back goes to another guest. So a page that the
//! stream names without contents is filled with zeroes, and a named page is filled with zeroes before it goes back.

mod error;
mod memory;

use crate::plan::{Census, Plan, Population};
use crate::session::Use;
use crate::stream::{BATCH_PAGES, MAX_PARAMS, Param, Run, Unbacked};
use crate::xen::{Access, Broker, Errno, WINDOW_FRAMES, Xen};
use alloc::vec::Vec;
use xen_abi::abi::{
    GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE, HVM_PARAM_BUFIOREQ_PFN, HVM_PARAM_CONSOLE_EVTCHN,
    HVM_PARAM_CONSOLE_PFN, HVM_PARAM_IOREQ_PFN, HVM_PARAM_PAE_ENABLED, HVM_PARAM_STORE_EVTCHN,
    HVM_PARAM_STORE_PFN,
};
use xen_abi::types::{Domid, Gfn, Gref, PAGE_SHIFT, PAGE_SIZE, Port};

pub use error::Error;
use memory::gfns;

const _: () = assert!(BATCH_PAGES <= WINDOW_FRAMES, "a batch is mapped at once");

/// Most mismatches after VERIFY that are kept by gfn; all are counted.
pub const MAX_MISMATCHES: usize = 8;

/// Pages that the far ends expect empty, as parameters that name them (libxc clears the same).
const CLEARED: [u32; 4] =
    [HVM_PARAM_CONSOLE_PFN, HVM_PARAM_STORE_PFN, HVM_PARAM_IOREQ_PFN, HVM_PARAM_BUFIOREQ_PFN];

/// A service that another domain gives the target over a ring page and an event channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The target's own port of the channel.
    pub port: Port,
    /// The domain that serves.
    pub domid: Domid,
}

/// What the stream does not say about the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The most pages that the target may own (`max_pages`), in 4 KiB pages.
    pub max_pages: u64,
    /// How much memory the bookkeeping of its pages may take, in bytes.
    pub map_bytes: usize,
    /// Its xenstore.
    pub store: Service,
    /// Its console.
    pub console: Service,
}

/// What the engine has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pages filled or compared, repeats counted.
    pub nr_pages: u64,
    /// Pages given back: holes and what the stream never named.
    pub nr_given_back: u64,
    /// Pages after VERIFY whose contents differ.
    pub nr_mismatches: u64,
    /// The first of them.
    pub mismatches: [Option<Gfn>; MAX_MISMATCHES],
    /// How often memory has been gone through: goes up when a page list starts below the one before.
    pub pass: u32,
}

/// What the target is after END.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The gfn of the xenstore ring, if the stream named it.
    pub store: Option<Gfn>,
    /// The gfn of the console ring, if the stream named it.
    pub console: Option<Gfn>,
    /// The extents that it has.
    pub census: Census,
    /// How many pages it should own.
    pub nr_expected: u64,
    /// How many pages it owns, by Xen's own count.
    pub nr_owned: u64,
}

/// The restore of one target, as far as it is carried out.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    population: Population,
    plan: Plan,
    batch: Vec<Gfn>,           // what the window holds
    blank: Vec<Gfn>,           // pages to be filled with zeroes
    errors: Vec<i32>,          // per-frame errors of the last map
    cursor: usize,             // bytes of the batch's contents that have come
    mismatched: Option<usize>, // the last slot of the batch that was found to differ
    params: [Option<u64>; MAX_PARAMS as usize],
    tally: Tally,
    last_first: Gfn, // where the last page list started
}

impl Engine {
    /// Makes the engine of an empty target; allocates all that it will ever need but [`Config::map_bytes`], which it takes as
    /// pages come.
    ///
    /// # Errors
    /// No memory for the bookkeeping, or Xen does not say what the target owns.
    pub fn new<X: Xen>(config: Config, xen: &mut X) -> Result<Self, Error> {
        let nr_owned = xen.current_reservation().map_err(Error::Reservation)?;
        Ok(Self {
            config,
            population: Population::new(config.max_pages, nr_owned, config.map_bytes)?,
            plan: Plan::new(),
            batch: Vec::with_capacity(WINDOW_FRAMES),
            blank: Vec::with_capacity(WINDOW_FRAMES),
            errors: alloc::vec![0; WINDOW_FRAMES],
            cursor: 0,
            mismatched: None,
            params: [None; MAX_PARAMS as usize],
            tally: Tally::default(),
            last_first: Gfn::new(u64::MAX),
        })
    }

    /// Returns what has been done so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Acts on pages that come without contents.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run<X: Xen>(&mut self, run: Run, xen: &mut X) -> Result<(), Error> {
        match run.kind {
            Unbacked::Hole | Unbacked::Broken => self.give_back_holes(run.first, run.nr_frames, xen),
            Unbacked::Alloc => self.populate_blank(gfns(run.first, run.nr_frames), xen),
        }
    }

    /// Populates and maps the pages of a batch, so that their contents can come.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn pages<X: Xen>(&mut self, purpose: Use, pages: &[Gfn], xen: &mut X) -> Result<(), Error> {
        if pages.first().is_some_and(|first| *first <= self.last_first) {
            self.tally.pass += 1;
        }
        self.last_first = pages.first().copied().unwrap_or(self.last_first);
        match purpose {
            Use::Fill => self.populate(pages, xen)?,
            Use::Compare => self.populate_blank(pages.iter().copied(), xen)?,
        }
        self.batch.clear();
        self.batch.extend_from_slice(pages);
        self.cursor = 0;
        self.mismatched = None;
        self.tally.nr_pages += pages.len() as u64;
        self.map(if purpose == Use::Fill { Access::Write } else { Access::Read }, xen)
    }

    /// Takes the next bytes of the batch's contents.
    pub fn contents<X: Xen>(&mut self, purpose: Use, bytes: &[u8], xen: &mut X) {
        let (slot, offset) = self.advance(bytes.len());
        match purpose {
            Use::Fill => xen.fill(slot, offset, bytes),
            Use::Compare => self.compare(slot, offset, bytes, xen),
        }
    }

    /// Gives the slot and the byte in it where the next `nr_bytes` of the batch's contents go, which somebody puts there.
    pub fn advance(&mut self, nr_bytes: usize) -> (usize, usize) {
        let place = (self.cursor >> PAGE_SHIFT, self.cursor % PAGE_SIZE);
        self.cursor += nr_bytes;
        place
    }

    /// Keeps a parameter for the end; a later one of the same index replaces it.
    pub fn param(&mut self, param: Param) {
        self.params[param.index as usize] = Some(param.value);
    }

    /// Completes the target: parameters, special pages, grants, give-back, then dom0's part.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn finish<X: Xen, B: Broker>(&mut self, xen: &mut X, broker: &mut B) -> Result<Target, Error> {
        self.set_params(xen)?;
        self.clear_special_pages(xen)?;
        self.seed_grants(xen)?;
        self.give_back_unnamed(xen)?;
        xen.unmap();
        broker.set_hvm_context().map_err(Error::Context)?;
        Ok(Target {
            store: self.special(HVM_PARAM_STORE_PFN),
            console: self.special(HVM_PARAM_CONSOLE_PFN),
            census: self.population.census(),
            nr_expected: self.population.nr_owned(),
            nr_owned: xen.current_reservation().map_err(Error::Reservation)?,
        })
    }

    fn map<X: Xen>(&mut self, access: Access, xen: &mut X) -> Result<(), Error> {
        map_all(access, &self.batch, &mut self.errors, xen)
    }

    /// Compares page by page, so that each page that differs is counted once.
    fn compare<X: Xen>(&mut self, slot: usize, offset: usize, bytes: &[u8], xen: &mut X) {
        let (head, tail) = bytes.split_at(bytes.len().min(PAGE_SIZE - offset));
        let starts = core::iter::once((slot, offset, head));
        let rest = tail.chunks(PAGE_SIZE).zip(slot + 1..).map(|(page, slot)| (slot, 0, page));
        for (slot, offset, part) in starts.chain(rest) {
            if self.mismatched != Some(slot) && !xen.matches(slot, offset, part) {
                self.note_mismatch(slot);
            }
        }
    }

    fn note_mismatch(&mut self, slot: usize) {
        self.mismatched = Some(slot);
        let nr_kept = usize::try_from(self.tally.nr_mismatches).unwrap_or(usize::MAX);
        self.tally.nr_mismatches += 1;
        if let Some(kept) = self.tally.mismatches.get_mut(nr_kept) {
            *kept = Some(self.batch[slot]);
        }
    }

    fn set_params<X: Xen>(&mut self, xen: &mut X) -> Result<(), Error> {
        // Xen has refused to change PAE_ENABLED since long; old senders still write it.
        self.params[HVM_PARAM_PAE_ENABLED as usize] = None;
        let channels = [
            (HVM_PARAM_STORE_EVTCHN, self.config.store.port),
            (HVM_PARAM_CONSOLE_EVTCHN, self.config.console.port),
        ];
        let from_stream = (0..).zip(self.params).filter_map(|(index, value)| Some((index, value?)));
        let from_config = channels.map(|(index, port)| (index, u64::from(port.raw())));
        for (index, value) in from_stream.chain(from_config) {
            xen.set_param(index, value).map_err(|errno| Error::Param { index, errno })?;
        }
        Ok(())
    }

    fn clear_special_pages<X: Xen>(&mut self, xen: &mut X) -> Result<(), Error> {
        self.batch.clear();
        let special = CLEARED.map(|index| self.owned_special(index));
        self.batch.extend(special.into_iter().flatten());
        if self.batch.is_empty() {
            return Ok(());
        }
        self.map(Access::Write, xen)?;
        (0..self.batch.len()).for_each(|slot| xen.zero(slot));
        Ok(())
    }

    fn seed_grants<X: Xen>(&mut self, xen: &mut X) -> Result<(), Error> {
        let grants = [
            (Gref::new(GNTTAB_RESERVED_CONSOLE), HVM_PARAM_CONSOLE_PFN, self.config.console),
            (Gref::new(GNTTAB_RESERVED_XENSTORE), HVM_PARAM_STORE_PFN, self.config.store),
        ];
        for (gref, index, service) in grants {
            if let Some(gfn) = self.owned_special(index) {
                xen.seed_grant(gref, service.domid, gfn).map_err(|errno| Error::Grant { gref, errno })?;
            }
        }
        Ok(())
    }

    /// Returns the page that a parameter of the stream names; 0 stands for none.
    fn special(&self, index: u32) -> Option<Gfn> {
        self.params[index as usize].filter(|value| *value != 0).map(Gfn::new)
    }

    /// The same, if the stream has also named the page as memory of the guest; else there is nothing to clear or grant
    /// (libxc's receiver passes over it as well).
    fn owned_special(&self, index: u32) -> Option<Gfn> {
        self.special(index).filter(|gfn| self.population.is_named(*gfn))
    }
}

/// Maps all of `gfns`, at the second attempt if need be; `errors` has at least as many entries.
fn map_all<X: Xen>(access: Access, gfns: &[Gfn], errors: &mut [i32], xen: &mut X) -> Result<(), Error> {
    let errors = &mut errors[..gfns.len()];
    xen.map(access, gfns, errors);
    if errors.iter().any(|error| *error != 0) {
        xen.map(access, gfns, errors);
    }
    match errors.iter().zip(gfns).find(|(error, _)| **error != 0) {
        Some((error, &gfn)) => Err(Error::Map { gfn, errno: Errno::new(*error) }),
        None => Ok(()),
    }
}
