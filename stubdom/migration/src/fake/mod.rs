//! A Xen that behaves: real frames with contents, references, free lists by order, a reservation.
//!
//! **Takes** the calls of [`Xen`] and [`Broker`]. **Gives** what Xen would answer, and afterwards everything that a test
//! wants to look at. **Never** forgives: populating over an occupied gfn leaks the old frame, a mapped frame stays
//! allocated, an unmapped slot cannot be written, exactly as on the real one. A frame that is handed out holds what its
//! last owner left there, and a frame that is freed with bytes of the target in it ends the test.
//!
//! Knobs: [`FakeXen::fragment`], [`FakeXen::fail_call`], [`FakeXen::max_order`], [`FakeXen::max_extents`],
//! [`FakeXen::unmappable`].

mod dom0;
mod exchange;
mod host;
mod ledger;
pub mod pv;
mod source;

use crate::xen::{Access, EXCHANGE_FRAMES, Errno, PageType, WINDOW_FRAMES, Xen};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use xen_abi::types::{Domid, Gfn, Gref, Mfn, Order, PAGE_SIZE};

pub use dom0::FakeDom0;
pub use exchange::Pinned;
use host::Host;
pub use host::{Offline, Page};
pub use ledger::{Call, Ledger};
pub use source::{Act, FakeSource, SendCall};

/// A host with one target.
#[derive(Clone, Debug)]
pub struct FakeXen {
    /// The most pages that the target may own.
    pub max_pages: u64,
    /// The largest order that the caller may ask for.
    pub max_order: Order,
    /// The most extents that one call does before it stops short.
    pub max_extents: usize,
    /// The call, counted from 0, that does nothing and fails.
    pub fail_call: Option<usize>,
    /// The call, counted from 0, at which the caller dies: it panics. See [`FakeXen::bury`].
    pub die_at: Option<usize>,
    /// The calls that fail every time: a name of [`Call::Other`], "map", "populate" or "decrease".
    pub fail_name: Option<&'static str>,
    /// Gfns whose frames cannot be mapped.
    pub unmappable: BTreeSet<Gfn>,
    /// Gfns whose frames cannot be taken back: a decrease stops there, with the pages before gone.
    pub unremovable: BTreeSet<Gfn>,
    /// Gfns to which a page cannot be moved: what was there is gone then, and the page has no gfn.
    pub unmovable: BTreeSet<Gfn>,
    /// Types of pages that are no ordinary memory.
    pub page_types: BTreeMap<Gfn, PageType>,
    /// Pages with a grant in force, and by which.
    pub granted: BTreeMap<Gfn, Gref>,
    /// Pages at which the guest has put frames of its grant table, which are Xen's.
    pub grant_table: BTreeSet<Gfn>,
    /// A back end: before the call of this number, counted from 0, it copies [`FakeXen::COPIED`] into this page, if it is
    /// granted.
    pub back_end: Option<(usize, Gfn)>,
    /// HVM parameters.
    pub params: BTreeMap<u32, u64>,
    /// Entries of the target's grant table.
    pub grants: BTreeMap<u32, (Domid, Gfn)>,
    /// The calls so far.
    pub ledger: Ledger,
    host: Host,
    physmap: BTreeMap<Gfn, Mfn>,
    machine_to_phys: BTreeMap<Mfn, Gfn>,
    superpages: BTreeSet<Gfn>, // regions that the physmap maps by one entry
    nr_owned: u64,
    window: Vec<Option<(Mfn, Access)>>,
    is_guest: bool, // whether the calls are the guest's own
}

impl FakeXen {
    /// Makes a host with `nr_frames` free frames and a target that owns nothing and may own `max_pages`.
    pub fn new(nr_frames: u64, max_pages: u64) -> Self {
        Self {
            max_pages,
            max_order: Order::PAGE_2M,
            max_extents: usize::MAX,
            fail_call: None,
            die_at: None,
            fail_name: None,
            unmappable: BTreeSet::new(),
            unremovable: BTreeSet::new(),
            unmovable: BTreeSet::new(),
            page_types: BTreeMap::new(),
            granted: BTreeMap::new(),
            grant_table: BTreeSet::new(),
            back_end: None,
            params: BTreeMap::new(),
            grants: BTreeMap::new(),
            ledger: Ledger::default(),
            host: Host::new(nr_frames),
            physmap: BTreeMap::new(),
            machine_to_phys: BTreeMap::new(),
            superpages: BTreeSet::new(),
            nr_owned: 0,
            window: vec![None; EXCHANGE_FRAMES],
            is_guest: false,
        }
    }

    /// Spoils the first `nr_extents` free extents of `order`: one frame of each is in use by somebody else.
    pub fn fragment(&mut self, order: Order, nr_extents: usize) {
        self.host.fragment(order, nr_extents);
    }

    /// Gives back what [`Self::fragment`] took.
    pub fn defragment(&mut self) {
        self.host.defragment();
    }

    /// What a caller says that dies at [`FakeXen::die_at`].
    pub const DEATH: &str = "the stub dies here";

    /// Ends a caller that has died: Xen lets go of all that it had mapped. Nobody can scrub what it alone held.
    pub fn bury(&mut self) {
        self.die_at = None;
        for (mfn, _) in self.window.iter_mut().filter_map(Option::take) {
            self.nr_owned -= u64::from(self.host.unref_unscrubbed(mfn));
        }
    }

    /// Lists the free frames that hold bytes of the target: what only a dead caller held.
    pub fn spilled(&self) -> impl Iterator<Item = Mfn> {
        self.host.spilled()
    }

    /// Acts as the guest, which may give its own pages up with what is in them. None of it counts as a call.
    pub fn as_guest<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> T {
        let (nr_calls, fail_call) = (self.ledger.0.len(), self.fail_call.take());
        self.is_guest = true;
        let result = act(self);
        self.is_guest = false;
        self.ledger.0.truncate(nr_calls);
        self.fail_call = fail_call;
        result
    }

    /// Returns how many frames of the host are free.
    pub fn nr_free(&self) -> u64 {
        self.host.nr_free()
    }

    /// Returns how many frames the target owns, those without a gfn included.
    pub fn nr_owned(&self) -> u64 {
        self.nr_owned
    }

    /// Returns how many frames the target owns that no gfn leads to.
    pub fn nr_orphans(&self) -> u64 {
        self.nr_owned - self.physmap.len() as u64
    }

    /// Returns how many slots of the window are mapped.
    pub fn nr_mapped(&self) -> usize {
        self.window.iter().flatten().count()
    }

    /// Returns the gfns that have a frame, in ascending order.
    pub fn gfns(&self) -> impl Iterator<Item = Gfn> {
        self.physmap.keys().copied()
    }

    /// Returns the contents of the frame behind a gfn.
    pub fn page(&self, gfn: Gfn) -> Option<Page> {
        self.physmap.get(&gfn).map(|mfn| self.host.contents(*mfn))
    }

    /// Returns the contents of a frame, whoever owns it.
    pub fn contents_of(&self, mfn: Mfn) -> Page {
        self.host.contents(mfn)
    }

    /// Returns the frame behind a gfn.
    pub fn frame(&self, gfn: Gfn) -> Option<Mfn> {
        self.physmap.get(&gfn).copied()
    }

    /// Tells whether the extent of `order` at `gfn` is one aligned run of machine memory.
    pub fn is_contiguous(&self, order: Order, gfn: Gfn) -> bool {
        let first = self.frame(gfn).filter(|mfn| mfn.is_aligned(order));
        let mfn = |nr| self.frame(gfn.checked_add(nr)?);
        first.is_some_and(|first| (0..order.nr_frames()).all(|nr| mfn(nr) == first.checked_add(nr)))
    }

    /// Counts the aligned extents of `order` that are one run of machine memory.
    pub fn nr_contiguous(&self, order: Order) -> usize {
        let starts = self.gfns().filter(|gfn| gfn.is_aligned(order));
        starts.filter(|gfn| self.is_contiguous(order, *gfn)).count()
    }

    /// Counts a call; tells whether it is the one to fail.
    fn fails(&mut self) -> bool {
        assert!(self.die_at != Some(self.ledger.0.len()), "{}", Self::DEATH);
        if let Some((_, gfn)) = self.back_end.filter(|(nr, _)| *nr == self.ledger.0.len())
            && self.granted.contains_key(&gfn)
        {
            self.write(gfn, Self::COPIED);
        }
        self.fail_call == Some(self.ledger.0.len())
    }

    fn call<T>(
        &mut self,
        name: &'static str,
        act: impl FnOnce(&mut Self) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let fails = self.fails() || self.fail_name == Some(name);
        self.ledger.0.push(Call::Other(name));
        if fails { Err(Errno::EINVAL) } else { act(self) }
    }

    fn populate_extent(&mut self, order: Order, first: Gfn) -> bool {
        if order > self.max_order || self.nr_owned + order.nr_frames() > self.max_pages {
            return false;
        }
        let Some(mfn) = self.host.allocate(order) else { return false };
        if order >= Order::PAGE_2M {
            let starts = (0..order.nr_frames()).step_by(1 << 9).filter_map(|nr| first.checked_add(nr));
            self.superpages.extend(starts);
        } else {
            self.split(first);
        }
        for nr in 0..order.nr_frames() {
            if let (Some(gfn), Some(mfn)) = (first.checked_add(nr), mfn.checked_add(nr)) {
                // What stood there before stays allocated, without a gfn.
                self.displace(gfn);
                self.place(gfn, mfn);
            }
        }
        self.nr_owned += order.nr_frames();
        true
    }

    /// Takes page after page, as Xen does, and stops at the first that cannot be taken.
    fn decrease_extent(&mut self, order: Order, first: Gfn) -> bool {
        let mut gfns = (0..order.nr_frames()).filter_map(|nr| first.checked_add(nr));
        order <= self.max_order && gfns.all(|gfn| self.remove(gfn))
    }

    fn remove(&mut self, gfn: Gfn) -> bool {
        if self.unremovable.contains(&gfn) {
            return false;
        }
        let Some(mfn) = self.displace(gfn) else { return false };
        self.split(gfn);
        if self.is_guest {
            self.host.give_up(mfn);
        }
        self.unref(mfn);
        true
    }

    fn place(&mut self, gfn: Gfn, mfn: Mfn) {
        self.physmap.insert(gfn, mfn);
        self.machine_to_phys.insert(mfn, gfn);
    }

    /// Takes the frame behind a gfn out of the physmap; nothing else happens to it.
    fn displace(&mut self, gfn: Gfn) -> Option<Mfn> {
        let mfn = self.physmap.remove(&gfn)?;
        self.machine_to_phys.remove(&mfn);
        Some(mfn)
    }

    /// Splits the entry of a region, if it has one of its own.
    fn split(&mut self, gfn: Gfn) {
        self.superpages.remove(&gfn.align_down(Order::PAGE_2M));
    }

    fn unref(&mut self, mfn: Mfn) {
        self.nr_owned -= u64::from(self.host.unref(mfn));
    }

    fn map_slot(&mut self, slot: usize, gfn: Gfn, access: Access) -> i32 {
        let mfn = self.frame(gfn).filter(|_| !self.unmappable.contains(&gfn));
        let Some(mfn) = mfn else { return Errno::EINVAL.raw() };
        self.host.take_ref(mfn);
        self.window[slot] = Some((mfn, access));
        0
    }

    fn empty_window(&mut self) {
        for slot in 0..EXCHANGE_FRAMES {
            if let Some((mfn, _)) = self.window[slot].take() {
                self.unref(mfn);
            }
        }
    }

    /// Returns the frame of a slot; panics where the real one would take a page fault.
    fn slot(&self, slot: usize, access: Access) -> Mfn {
        match self.window[slot] {
            Some((mfn, granted)) if granted == access || access == Access::Read => mfn,
            mapped => panic!("page fault: {access:?} of slot {slot}, which is {mapped:?}"),
        }
    }
}

impl Xen for FakeXen {
    fn populate_physmap(&mut self, order: Order, extents: &[Gfn]) -> usize {
        let fails = self.fails() || self.fail_name == Some("populate");
        let most = if fails { 0 } else { self.max_extents };
        let nr_done = extents.iter().take(most).take_while(|gfn| self.populate_extent(order, **gfn)).count();
        self.ledger.0.push(Call::Populate { order, nr_asked: extents.len(), nr_done });
        nr_done
    }

    fn decrease_reservation(&mut self, order: Order, extents: &[Gfn]) -> usize {
        let fails = self.fails() || self.fail_name == Some("decrease");
        let most = if fails { 0 } else { self.max_extents };
        let nr_done = extents.iter().take(most).take_while(|gfn| self.decrease_extent(order, **gfn)).count();
        self.ledger.0.push(Call::Decrease { order, nr_asked: extents.len(), nr_done });
        nr_done
    }

    fn map(&mut self, access: Access, gfns: &[Gfn], errors: &mut [i32]) {
        assert!(
            gfns.len() <= WINDOW_FRAMES && gfns.len() == errors.len(),
            "a batch that the window can hold"
        );
        let fails = self.fails() || self.fail_name == Some("map");
        self.ledger.0.push(Call::Map { nr_asked: gfns.len() });
        self.empty_window();
        for (slot, (gfn, error)) in gfns.iter().zip(errors).enumerate() {
            *error = if fails { Errno::ENOMEM.raw() } else { self.map_slot(slot, *gfn, access) };
        }
    }

    fn unmap(&mut self) {
        if self.nr_mapped() > 0 {
            let _ = self.fails(); // it cannot, but its caller may die
            self.ledger.0.push(Call::Unmap);
            self.empty_window();
        }
    }

    fn fill(&mut self, slot: usize, offset: usize, bytes: &[u8]) {
        let mut rest = bytes;
        for (slot, offset) in core::iter::once((slot, offset)).chain((slot + 1..).map(|slot| (slot, 0))) {
            if rest.is_empty() {
                return;
            }
            let (part, tail) = rest.split_at(rest.len().min(PAGE_SIZE - offset));
            let mfn = self.slot(slot, Access::Write);
            self.host.contents_mut(mfn)[offset..offset + part.len()].copy_from_slice(part);
            rest = tail;
        }
    }

    fn matches(&self, slot: usize, offset: usize, bytes: &[u8]) -> bool {
        let at = |nr: usize| {
            let (slot, offset) = (slot + (offset + nr) / PAGE_SIZE, (offset + nr) % PAGE_SIZE);
            let len = (PAGE_SIZE - offset).min(bytes.len() - nr);
            self.host.contents(self.slot(slot, Access::Read))[offset..offset + len] == bytes[nr..nr + len]
        };
        let first_len = (PAGE_SIZE - offset).min(bytes.len());
        bytes.is_empty() || (at(0) && (first_len..bytes.len()).step_by(PAGE_SIZE).all(at))
    }

    fn zero(&mut self, slot: usize) {
        let mfn = self.slot(slot, Access::Write);
        self.host.zero(mfn);
    }

    fn mfn(&self, slot: usize) -> Option<Mfn> {
        self.window.get(slot).copied().flatten().map(|(mfn, _)| mfn)
    }

    fn set_param(&mut self, index: u32, value: u64) -> Result<(), Errno> {
        self.call("set_param", |xen| {
            xen.params.insert(index, value);
            Ok(())
        })
    }

    fn seed_grant(&mut self, gref: Gref, domid: Domid, frame: Gfn) -> Result<(), Errno> {
        self.call("seed_grant", |xen| {
            xen.grants.insert(gref.raw(), (domid, frame));
            Ok(())
        })
    }

    fn current_reservation(&mut self) -> Result<u64, Errno> {
        self.call("current_reservation", |xen| Ok(xen.nr_owned))
    }
}

#[cfg(test)]
mod tests;
