//! The host's memory: a buddy allocator, like Xen's, that can be made to fragment.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use xen_abi::types::{Mfn, Order, PAGE_SIZE};

const NR_ORDERS: usize = Order::PAGE_1G.raw() as usize + 1;

/// Contents of a frame.
pub type Page = [u8; PAGE_SIZE];

/// Free lists by order, and the frames that are in use.
#[derive(Clone, Debug)]
pub(super) struct Host {
    free: [BTreeSet<u64>; NR_ORDERS],
    used: BTreeMap<u64, u32>, // references of each frame that is not free
    bytes: BTreeMap<u64, Option<Box<Page>>>, // by frame, free or not; None is all zeroes; else another guest's
    secret: BTreeSet<u64>,                   // frames with bytes of the target that nobody else may read
    pinned: Vec<u64>,
    offlining: BTreeSet<u64>,
    offlined: BTreeSet<u64>,
    nr_cut_out: usize,
}

/// What a host says of a frame that was marked offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offline {
    /// Not marked.
    No,
    /// Marked, and still in use (`PG_OFFLINE_STATUS_OFFLINE_PENDING`).
    Pending,
    /// Retired (`PG_OFFLINE_STATUS_OFFLINED`).
    Done,
}

impl Host {
    /// Makes a host with `nr_frames` free frames from mfn 0 on.
    pub(super) fn new(nr_frames: u64) -> Self {
        let mut host = Self {
            free: [const { BTreeSet::new() }; NR_ORDERS],
            used: BTreeMap::new(),
            bytes: BTreeMap::new(),
            secret: BTreeSet::new(),
            pinned: Vec::new(),
            offlining: BTreeSet::new(),
            offlined: BTreeSet::new(),
            nr_cut_out: 0,
        };
        let mut mfn = 0;
        while mfn < nr_frames {
            let fits = |order: &usize| mfn.is_multiple_of(1 << order) && mfn + (1 << order) <= nr_frames;
            let order = (0..NR_ORDERS).rev().find(fits).unwrap_or(0);
            host.free[order].insert(mfn);
            mfn += 1 << order;
        }
        host
    }

    /// Returns how many frames are free.
    pub(super) fn nr_free(&self) -> u64 {
        self.free.iter().zip(0..).map(|(list, order)| (list.len() as u64) << order).sum()
    }

    /// Pins one frame in each of the first `nr_extents` free extents of `order`, so that they are no such extents
    /// any more.
    pub(super) fn fragment(&mut self, order: Order, nr_extents: usize) {
        for _ in 0..nr_extents {
            let Some(first) = self.split_off(order) else { return };
            for split in 0..order.raw() as usize {
                self.free[split].insert(first + (1 << split));
            }
            self.used.insert(first, 1);
            self.pinned.push(first);
        }
    }

    /// Frees what [`Self::fragment`] has pinned.
    pub(super) fn defragment(&mut self) {
        for mfn in core::mem::take(&mut self.pinned) {
            self.unref(Mfn::new(mfn));
        }
    }

    /// Takes an extent from the smallest free one that holds it; each of its frames has one reference, and holds what its
    /// last owner has left there.
    pub(super) fn allocate(&mut self, order: Order) -> Option<Mfn> {
        let first = self.split_off(order)?;
        for mfn in first..first + order.nr_frames() {
            self.used.insert(mfn, 1);
        }
        Some(Mfn::new(first))
    }

    /// Takes an extent off the free lists.
    fn split_off(&mut self, order: Order) -> Option<u64> {
        let order = order.raw() as usize;
        let from = (order..NR_ORDERS).find(|order| !self.free[*order].is_empty())?;
        let first = self.free[from].pop_first()?;
        for split in order..from {
            self.free[split].insert(first + (1 << split));
        }
        Some(first)
    }

    /// Tells whether somebody owns or holds a frame; on this host that is the target, whose frames others may hold.
    pub(super) fn is_used(&self, mfn: Mfn) -> bool {
        self.used.contains_key(&mfn.raw())
    }

    pub(super) fn take_ref(&mut self, mfn: Mfn) {
        if let Some(nr_refs) = self.used.get_mut(&mfn.raw()) {
            *nr_refs += 1;
        }
    }

    /// Drops a reference; tells whether it was the last and the frame is free now.
    ///
    /// Panics when the frame then holds bytes of the target: Xen scrubs only what a dying domain frees, so that the next
    /// owner would read them.
    pub(super) fn unref(&mut self, mfn: Mfn) -> bool {
        let is_free = self.unref_unscrubbed(mfn);
        assert!(!is_free || !self.holds_secret(mfn), "{mfn} is freed with bytes of the target in it");
        is_free
    }

    /// The same without the check: for who cannot scrub any more.
    pub(super) fn unref_unscrubbed(&mut self, mfn: Mfn) -> bool {
        let Some(nr_refs) = self.used.get_mut(&mfn.raw()) else { return false };
        *nr_refs -= 1;
        if *nr_refs > 0 {
            return false;
        }
        self.used.remove(&mfn.raw());
        if self.offlining.remove(&mfn.raw()) {
            self.offlined.insert(mfn.raw());
            self.nr_cut_out += usize::from(self.is_free(mfn.raw() ^ 1));
        } else {
            self.merge(mfn.raw());
        }
        true
    }

    /// Marks a frame that is in use: it is retired when its last reference goes.
    pub(super) fn offline(&mut self, mfn: Mfn) {
        if self.used.contains_key(&mfn.raw()) {
            self.offlining.insert(mfn.raw());
        }
    }

    pub(super) fn offline_status(&self, mfn: Mfn) -> Offline {
        if self.offlined.contains(&mfn.raw()) {
            Offline::Done
        } else if self.offlining.contains(&mfn.raw()) {
            Offline::Pending
        } else {
            Offline::No
        }
    }

    /// Returns how many frames were retired beside a free one, so that Xen has to cut them out of a piece.
    pub(super) fn nr_cut_out(&self) -> usize {
        self.nr_cut_out
    }

    /// Returns what a frame holds, free or not.
    pub(super) fn contents(&self, mfn: Mfn) -> Page {
        match self.bytes.get(&mfn.raw()) {
            None => foreign(mfn),
            Some(None) => [0; PAGE_SIZE],
            Some(Some(page)) => **page,
        }
    }

    /// Gives the contents of a frame to be changed by the target or its stub.
    pub(super) fn contents_mut(&mut self, mfn: Mfn) -> &mut Page {
        self.secret.insert(mfn.raw());
        let bytes = self.bytes.entry(mfn.raw()).or_insert_with(|| Some(Box::new(foreign(mfn))));
        bytes.get_or_insert_with(|| Box::new([0; PAGE_SIZE]))
    }

    pub(super) fn zero(&mut self, mfn: Mfn) {
        self.bytes.insert(mfn.raw(), None);
        self.secret.remove(&mfn.raw());
    }

    /// Notes that the guest itself gives a frame up: what it leaves there is its own affair.
    pub(super) fn give_up(&mut self, mfn: Mfn) {
        self.secret.remove(&mfn.raw());
    }

    fn holds_secret(&self, mfn: Mfn) -> bool {
        self.secret.contains(&mfn.raw()) && self.contents(mfn) != [0; PAGE_SIZE]
    }

    /// Lists the free frames that hold bytes of the target.
    pub(super) fn spilled(&self) -> impl Iterator<Item = Mfn> {
        let secret = self.secret.iter().copied().map(Mfn::new);
        secret.filter(|mfn| !self.is_used(*mfn) && self.holds_secret(*mfn))
    }

    fn is_free(&self, mfn: u64) -> bool {
        let mut pieces = (0..NR_ORDERS).map(|order| (order, mfn >> order << order));
        pieces.any(|(order, first)| self.free[order].contains(&first))
    }

    fn merge(&mut self, mfn: u64) {
        let (mut mfn, mut order) = (mfn, 0);
        while order + 1 < NR_ORDERS && self.free[order].remove(&(mfn ^ (1 << order))) {
            mfn &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(mfn);
    }
}

/// What another guest has left in a frame.
fn foreign(mfn: Mfn) -> Page {
    let mut page = *b"of another guest";
    page[..8].iter_mut().zip(mfn.raw().to_le_bytes()).for_each(|(byte, word)| *byte ^= word | 0x80);
    let mut bytes = page.iter().copied().cycle();
    core::array::from_fn(|_| bytes.next().unwrap_or_default())
}
