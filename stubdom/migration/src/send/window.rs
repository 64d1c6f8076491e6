//! WINDOW: from gfns to the slots that show them.
//!
//! **Takes** batches of gfns within the window's length. **Gives** the slot of each that is memory. **Never** uses a mapping
//! that no longer is what it was.
//!
//! Gfn `i` is shown at slot `i` modulo the window's length and stays there until another gfn needs the slot: from pass to
//! pass a page is mapped once. That Xen keeps the frame for us is no proof that it still is the gfn's (the guest may have
//! given the page back, or moved it), so a slot is used again only if the machine-to-phys table leads from the frame in its
//! page table entry back to the gfn. Xen changes that entry at once, whatever takes a page away (`set_gpfn_from_mfn`).

use super::Error;
use crate::xen::{Errno, XenSend};
use alloc::vec::Vec;
use xen_abi::types::Gfn;

/// What came of a gfn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The gfn.
    pub gfn: Gfn,
    /// Where it is shown; `None`: no memory is there.
    pub slot: Option<usize>,
}

/// What the window shows.
#[derive(Debug, Default)]
pub struct View {
    /// Which gfn each slot was last made to show.
    shown: Vec<Option<Gfn>>,
    found: Vec<Found>,
    missing: Vec<(usize, Gfn)>,
    errors: Vec<i32>,
}

impl View {
    /// Makes the view of an empty window of so many slots, at least one.
    pub fn new(nr_slots: usize) -> Self {
        Self { shown: alloc::vec![None; nr_slots], ..Self::default() }
    }

    /// Returns how far apart the gfns of a batch may be, so that no two want the same slot.
    pub fn span(&self) -> u64 {
        self.shown.len() as u64
    }

    /// Returns what came of the last batch, in its order.
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// Has every gfn of a batch shown that is memory; returns how many were shown already.
    ///
    /// # Errors
    /// One is memory and cannot be mapped.
    pub fn show<X: XenSend>(&mut self, batch: impl Iterator<Item = Gfn>, xen: &mut X) -> Result<u64, Error> {
        self.found.clear();
        self.missing.clear();
        for gfn in batch {
            let slot = self.slot(gfn);
            self.found.push(Found { gfn, slot: Some(slot) });
            if self.shown[slot] != Some(gfn) || xen.gfn_at(slot) != Some(gfn) {
                self.missing.push((slot, gfn));
            }
        }
        self.map(xen);
        if self.errors.iter().any(|error| !is_final(*error)) {
            self.map(xen);
        }
        self.settle()?;
        Ok((self.found.len() - self.missing.len()) as u64)
    }

    /// Empties the slots that show one of these.
    pub fn forget<X: XenSend>(&mut self, gfns: &[Gfn], xen: &mut X) {
        if gfns.iter().any(|gfn| !self.shown.is_empty() && self.shown[self.slot(*gfn)] == Some(*gfn)) {
            xen.release();
            self.shown.fill(None);
        }
    }

    /// Names the gfns that the window was made to show and no longer lead to the frame it shows.
    pub fn each_stale<X: XenSend>(&self, xen: &X, mut name: impl FnMut(Gfn)) {
        for (slot, gfn) in self.shown.iter().enumerate() {
            if let Some(gfn) = *gfn
                && xen.gfn_at(slot) != Some(gfn)
            {
                name(gfn);
            }
        }
    }

    fn slot(&self, gfn: Gfn) -> usize {
        usize::try_from(gfn.raw() % self.span()).unwrap_or(0)
    }

    fn map<X: XenSend>(&mut self, xen: &mut X) {
        self.errors.clear();
        self.errors.resize(self.missing.len(), 0);
        if !self.missing.is_empty() {
            xen.show(&self.missing, &mut self.errors);
        }
    }

    /// Notes what Xen said of each that was missing.
    fn settle(&mut self) -> Result<(), Error> {
        let mut found = self.found.iter_mut();
        for (&(slot, gfn), &error) in self.missing.iter().zip(&self.errors) {
            let found = found.find(|found| found.gfn == gfn);
            self.shown[slot] = (error == 0).then_some(gfn);
            if !is_final(error) {
                return Err(Error::Map { gfn, errno: Errno::new(error) });
            }
            if error != 0
                && let Some(found) = found
            {
                found.slot = None;
            }
        }
        Ok(())
    }
}

/// Whether asking again makes no difference. `EINVAL` is Xen's word for a gfn without memory: a hole, a device's registers,
/// a page that has failed (`mod_l1_entry` in `xen/arch/x86/mm.c`).
fn is_final(error: i32) -> bool {
    error == 0 || error == Errno::EINVAL.raw()
}
