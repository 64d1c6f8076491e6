//! TRACE: which pages there are, which are to be sent, and which come next.
//!
//! **Takes** bitmaps of dom0's, and what came of each page. **Gives** batches of gfns, in ascending order. **Never** looks at
//! memory.
//!
//! It is the table of Xen/Arm's dirty-page tracing of 2013 on this side of the hypervisor: bit `i` stands for gfn `i`, whose
//! frame, if it is mapped, stands at the window's entry `i` (modulo its length).
//!
//! A page has to be sent again if it was written after it was read. A bit is taken off when its page is read, so what a
//! later bitmap adds is never lost.

use super::{Bits, Error};
use alloc::vec::Vec;
use xen_abi::types::Gfn;

/// Gfns of a batch, and of a record of the first pass (libxc's `MAX_BATCH_SIZE`). A receiver from Xen 4.21 on makes
/// superpages out of 512 gfns in a row in one record, so the first pass is cut at multiples of it.
const BATCH: u64 = crate::stream::BATCH_PAGES as u64;

/// How a pass goes through the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Whole aligned batches, holes named too, so that the receiver knows what it can make a superpage of.
    Whole,
    /// What is to be sent, and nothing else.
    Dirty,
}

/// What is known of a guest's pages.
#[derive(Debug)]
pub struct Trace {
    present: Bits,
    due: Bits,
    /// Pages of Xen's own, in ascending order.
    special: Vec<Gfn>,
    pass: Pass,
    /// Where the next batch starts at the earliest.
    cursor: Gfn,
    nr_passes: u32,
}

impl Trace {
    /// Makes the trace of a guest that has these pages: all are to be sent.
    pub fn new(present: Bits) -> Self {
        let (due, cursor) = (present.clone(), Gfn::new(0));
        Self { present, due, special: Vec::new(), pass: Pass::Whole, cursor, nr_passes: 1 }
    }

    /// One past the highest gfn.
    pub fn end(&self) -> Gfn {
        self.present.end()
    }

    /// Returns how many passes were begun.
    pub fn nr_passes(&self) -> u32 {
        self.nr_passes
    }

    /// Returns how many pages are to be sent.
    pub fn nr_due(&self) -> u64 {
        self.due.count()
    }

    /// Tells whether a gfn has memory of the guest's, as far as is known.
    pub fn is_present(&self, gfn: Gfn) -> bool {
        self.present.contains(gfn)
    }

    /// Tells whether a gfn may be mapped: in the first pass, what is there; later also what was a hole before, since the
    /// guest may have got memory there. Never a page of Xen's own.
    pub fn may_be_mapped(&self, gfn: Gfn) -> bool {
        let is_wanted = self.pass == Pass::Dirty || self.is_present(gfn);
        is_wanted && self.special.binary_search(&gfn).is_err()
    }

    /// Notes which pages are Xen's own, in any order. What was the guest's before is to be sent as a hole.
    pub fn note_special(&mut self, mut special: Vec<Gfn>) {
        special.sort_unstable();
        special.iter().filter(|gfn| self.present.contains(**gfn)).for_each(|gfn| self.due.insert(*gfn));
        self.special = special;
    }

    /// Notes whether a page turned out to be there.
    pub fn note(&mut self, gfn: Gfn, is_there: bool) {
        if is_there {
            self.present.insert(gfn);
        } else {
            self.present.remove(gfn);
        }
    }

    /// Has a page sent in the next pass, or in this one if that has not got there yet.
    pub fn insist(&mut self, gfn: Gfn) {
        self.due.insert(gfn);
    }

    /// Begins another pass, over the pages that were written, those in `dirty`, and whatever is still to be sent.
    pub fn begin_pass(&mut self, dirty: &Bits) {
        self.due.add_all(dirty);
        (self.pass, self.cursor) = (Pass::Dirty, Gfn::new(0));
        self.nr_passes += 1;
    }

    /// Adds the pages that a second look has found and the first had not: their writes were not logged.
    ///
    /// # Errors
    /// No memory.
    pub fn add_found(&mut self, mut now: Bits) -> Result<(), Error> {
        self.present.grow(now.end())?;
        self.due.grow(now.end())?;
        now.subtract(&self.present);
        self.due.add_all(&now);
        self.present.add_all(&now);
        Ok(())
    }

    /// Begins a pass over everything that is there, for the receiver to compare.
    pub fn begin_again(&mut self) {
        self.due.clear();
        self.due.add_all(&self.present);
        (self.pass, self.cursor) = (Pass::Whole, Gfn::new(0));
    }

    /// Takes the next batch of the pass, at most 1,024 gfns all of which lie within `span`; none is left when it is empty.
    pub fn next_batch(&mut self, span: u64, batch: &mut Vec<Gfn>) {
        batch.clear();
        let Some(first) = self.due.next(self.cursor) else { return };
        match self.pass {
            Pass::Whole => self.take_whole(first, batch),
            Pass::Dirty => self.take_dirty(first, span, batch),
        }
        let last = batch.last().copied().unwrap_or(first);
        self.cursor = last.checked_add(1).unwrap_or(last);
        batch.iter().for_each(|gfn| self.due.remove(*gfn));
    }

    fn take_whole(&self, due: Gfn, batch: &mut Vec<Gfn>) {
        let first = due.raw() / BATCH * BATCH;
        let end = self.due.end().raw().min(first.saturating_add(BATCH));
        batch.extend((first..end).map(Gfn::new));
    }

    fn take_dirty(&self, first: Gfn, span: u64, batch: &mut Vec<Gfn>) {
        let next = |last: &Gfn| self.due.next(last.checked_add(1)?);
        let is_near = |gfn: &Gfn| gfn.raw() - first.raw() < span;
        let gfns = core::iter::successors(Some(first), next).take_while(is_near);
        batch.extend(gfns.take(crate::stream::BATCH_PAGES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(end: u64, set: impl IntoIterator<Item = u64>) -> Bits {
        let mut bits = Bits::default();
        bits.grow(Gfn::new(end)).expect("memory");
        set.into_iter().for_each(|gfn| bits.insert(Gfn::new(gfn)));
        bits
    }

    fn batches(trace: &mut Trace, span: u64) -> Vec<(u64, u64, usize)> {
        let mut all = Vec::new();
        let mut batch = Vec::new();
        loop {
            trace.next_batch(span, &mut batch);
            let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return all };
            all.push((first.raw(), last.raw(), batch.len()));
        }
    }

    #[test]
    fn the_first_pass_is_whole_aligned_batches_and_skips_those_without_a_page() {
        let mut trace = Trace::new(bits(5000, (0..700).chain([3000, 4999])));
        assert_eq!(batches(&mut trace, 64), [(0, 1023, 1024), (2048, 3071, 1024), (4096, 4999, 904)]);
        assert_eq!(trace.nr_due(), 0);
    }

    #[test]
    fn later_passes_are_what_was_written_within_the_span_of_the_window() {
        let mut trace = Trace::new(bits(5000, 0..5000));
        batches(&mut trace, 64);
        trace.begin_pass(&bits(5000, [7, 8, 70, 71, 4000]));
        assert_eq!(batches(&mut trace, 64), [(7, 70, 3), (71, 71, 1), (4000, 4000, 1)]);
        trace.begin_pass(&bits(5000, 0..3000));
        assert_eq!(
            batches(&mut trace, 5000).iter().map(|batch| batch.2).collect::<Vec<_>>(),
            [1024, 1024, 952]
        );
        assert_eq!(trace.nr_passes(), 3);
    }

    #[test]
    fn a_hole_may_be_mapped_from_the_second_pass_on_and_a_page_of_xens_never() {
        let mut trace = Trace::new(bits(100, 0..50));
        trace.note_special([9, 3].map(Gfn::new).to_vec());
        let may = |trace: &Trace| [3, 4, 9, 60].map(|gfn| trace.may_be_mapped(Gfn::new(gfn)));
        assert_eq!(may(&trace), [false, true, false, false]);
        trace.begin_pass(&bits(100, []));
        assert_eq!(may(&trace), [false, true, false, true]);
    }

    #[test]
    fn what_a_second_look_finds_is_due_and_what_was_known_is_not() {
        let mut trace = Trace::new(bits(100, 0..50));
        batches(&mut trace, 64);
        trace.add_found(bits(200, (40..60).chain([150]))).expect("memory");
        assert_eq!(trace.nr_due(), 11);
        assert!(trace.is_present(Gfn::new(150)));
    }

    #[test]
    fn everything_comes_again_for_the_receiver_to_compare() {
        let mut trace = Trace::new(bits(100, 0..50));
        batches(&mut trace, 64);
        trace.note(Gfn::new(7), false);
        trace.begin_again();
        assert_eq!(trace.nr_due(), 49);
        assert_eq!(batches(&mut trace, 64), [(0, 99, 100)]);
    }

    #[test]
    fn a_page_that_is_insisted_on_behind_the_cursor_comes_in_the_next_pass() {
        let mut trace = Trace::new(bits(100, 0..50));
        batches(&mut trace, 64);
        trace.insist(Gfn::new(5));
        assert_eq!(batches(&mut trace, 64), []);
        trace.begin_pass(&bits(100, []));
        assert_eq!(batches(&mut trace, 64), [(5, 5, 1)]);
    }
}
