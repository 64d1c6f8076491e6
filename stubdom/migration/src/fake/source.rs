//! A guest to send: its memory, its log of writes, dom0's part and the way out, as Xen 4.17 has them.

use super::Page;
use crate::sample::contents;
use crate::send::Bits;
use crate::xen::{BlobKind, Errno, Output, SendBroker, TscInfo, XenSend};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use alloc::{format, vec};
use core::fmt;
use xen_abi::types::{Gfn, Mfn, PAGE_SIZE};

/// What the guest does while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It writes a page: what [`contents`] says for this seed.
    Write(Gfn, u64),
    /// It gives a page back.
    BalloonOut(Gfn),
    /// It gets a page at a hole and writes it.
    BalloonIn(Gfn, u64),
    /// It moves a page to another gfn, whose own page it gives back.
    Move(Gfn, Gfn),
    /// Its grant table grows to a gfn.
    GrowTable(Gfn),
}

/// A call that the sender made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendCall {
    /// `mmu_update` of so many entries.
    Show(usize),
    /// The window was emptied.
    Release,
    /// Any other.
    Other(&'static str),
}

/// A guest, and all that its sender has to do with.
pub struct FakeSource {
    /// What the guest does just before a call, by the number of the call.
    pub acts: BTreeMap<usize, Vec<Act>>,
    /// The call that fails, counted from 0.
    pub fail_call: Option<usize>,
    /// Bytes that the output has room for.
    pub room: usize,
    /// Nanoseconds that each call takes.
    pub call_ns: u64,
    /// HVM parameters.
    pub params: BTreeMap<u32, u64>,
    /// The stream so far.
    pub output: Vec<u8>,
    /// The calls so far.
    pub calls: Vec<SendCall>,
    /// The guest has stopped.
    pub is_suspended: bool,
    frames: BTreeMap<Mfn, Box<Page>>,
    physmap: BTreeMap<Gfn, Mfn>,
    /// The machine-to-phys table.
    places: BTreeMap<Mfn, Gfn>,
    special: BTreeSet<Gfn>,
    /// Those that the sender has heard of.
    told: BTreeSet<Gfn>,
    log: Option<BTreeSet<Gfn>>,
    /// Pages whose writes are not logged until the log is read.
    unlogged: BTreeSet<Gfn>,
    window: Vec<Option<Mfn>>,
    next_mfn: u64,
}

impl fmt::Debug for FakeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("a guest of {} pages after {} calls", self.physmap.len(), self.calls.len()))
    }
}

impl FakeSource {
    /// Makes a guest with pages at these gfns, each with [`contents`] of seed 0, and a window of so many slots.
    pub fn new(gfns: impl IntoIterator<Item = u64>, nr_slots: usize) -> Self {
        let mut source = Self {
            acts: BTreeMap::new(),
            fail_call: None,
            room: usize::MAX,
            call_ns: 1_000_000,
            params: BTreeMap::new(),
            output: Vec::new(),
            calls: Vec::new(),
            is_suspended: false,
            frames: BTreeMap::new(),
            physmap: BTreeMap::new(),
            places: BTreeMap::new(),
            special: BTreeSet::new(),
            told: BTreeSet::new(),
            log: None,
            unlogged: BTreeSet::new(),
            window: vec![None; nr_slots],
            next_mfn: 0x1000,
        };
        gfns.into_iter().for_each(|raw| source.populate(Gfn::new(raw), 0));
        source
    }

    /// Gives the guest a page of Xen's own.
    pub fn add_special(&mut self, gfn: Gfn) {
        self.populate(gfn, u64::MAX);
        self.special.insert(gfn);
    }

    /// Returns the guest's memory, without pages of Xen's own.
    pub fn memory(&self) -> BTreeMap<Gfn, Page> {
        let own = self.physmap.iter().filter(|(gfn, _)| !self.special.contains(gfn));
        own.map(|(gfn, mfn)| (*gfn, *self.frames[mfn])).collect()
    }

    /// Returns how many slots of the window show something.
    pub fn nr_shown(&self) -> usize {
        self.window.iter().flatten().count()
    }

    /// Returns how many frames there are, those included that no gfn leads to.
    pub fn nr_frames(&self) -> usize {
        self.frames.len()
    }

    fn populate(&mut self, gfn: Gfn, seed: u64) {
        let mfn = Mfn::new(self.next_mfn);
        self.next_mfn += 1;
        self.frames.insert(mfn, Box::new(contents(gfn, seed)));
        self.physmap.insert(gfn, mfn);
        self.places.insert(mfn, gfn);
    }

    fn take_away(&mut self, gfn: Gfn) -> Option<Mfn> {
        let mfn = self.physmap.remove(&gfn)?;
        self.places.remove(&mfn);
        Some(mfn)
    }

    /// Frees a frame unless somebody looks at it.
    fn put(&mut self, mfn: Mfn) {
        if !self.places.contains_key(&mfn) && !self.window.contains(&Some(mfn)) {
            self.frames.remove(&mfn);
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Write(gfn, seed) => self.write(gfn, seed),
            Act::BalloonOut(gfn) if !self.special.contains(&gfn) => {
                let taken = self.take_away(gfn);
                taken.into_iter().for_each(|mfn| self.put(mfn));
            }
            Act::BalloonIn(gfn, seed) if !self.physmap.contains_key(&gfn) => {
                self.populate(gfn, seed);
                self.unlogged.insert(gfn);
            }
            Act::Move(from, to) if ![from, to].iter().any(|gfn| self.special.contains(gfn)) => {
                let Some(mfn) = self.take_away(from) else { return };
                let replaced = self.take_away(to);
                self.physmap.insert(to, mfn);
                self.places.insert(mfn, to);
                self.unlogged.insert(to);
                replaced.into_iter().for_each(|mfn| self.put(mfn));
            }
            Act::GrowTable(gfn) => {
                self.act(Act::BalloonOut(gfn));
                self.add_special(gfn);
            }
            _ => {}
        }
    }

    fn write(&mut self, gfn: Gfn, seed: u64) {
        let Some(mfn) = self.physmap.get(&gfn).filter(|_| !self.special.contains(&gfn)) else { return };
        self.frames.insert(*mfn, Box::new(contents(gfn, seed)));
        if let Some(log) = &mut self.log
            && !self.unlogged.contains(&gfn)
        {
            log.insert(gfn);
        }
    }

    /// Counts a call: lets the guest act first, and tells whether the call fails.
    fn call(&mut self, call: SendCall) -> Result<(), Errno> {
        let nr = self.calls.len();
        self.calls.push(call);
        if !self.is_suspended {
            self.acts.remove(&nr).unwrap_or_default().into_iter().for_each(|act| self.act(act));
        }
        if self.fail_call == Some(nr) { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    fn other(&mut self, name: &'static str) -> Result<(), Errno> {
        self.call(SendCall::Other(name))
    }
}

impl XenSend for FakeSource {
    fn nr_slots(&self) -> usize {
        self.window.len()
    }

    fn show(&mut self, slots: &[(usize, Gfn)], errors: &mut [i32]) {
        assert_eq!(slots.len(), errors.len());
        let failed = self.call(SendCall::Show(slots.len())).err();
        for ((slot, gfn), error) in slots.iter().zip(errors) {
            let before = self.window[*slot].take();
            before.into_iter().for_each(|mfn| self.put(mfn));
            let shown = self.physmap.get(gfn).copied();
            self.window[*slot] = shown.filter(|_| failed.is_none());
            *error = failed.or(Some(Errno::EINVAL).filter(|_| shown.is_none())).map_or(0, Errno::raw);
        }
    }

    fn gfn_at(&self, slot: usize) -> Option<Gfn> {
        self.places.get(&self.window[slot]?).copied()
    }

    fn release(&mut self) {
        let _ = self.call(SendCall::Release); // it cannot fail
        for slot in 0..self.window.len() {
            let before = self.window[slot].take();
            before.into_iter().for_each(|mfn| self.put(mfn));
        }
    }

    fn special_pages(&mut self, found: &mut Vec<Gfn>) -> Result<(), Errno> {
        self.other("special_pages")?;
        self.told.clone_from(&self.special);
        found.extend(&self.special);
        Ok(())
    }

    fn hvm_param(&mut self, index: u32) -> Result<u64, Errno> {
        self.other("hvm_param")?;
        Ok(self.params.get(&index).copied().unwrap_or(0))
    }
}

impl Output for FakeSource {
    fn room(&mut self) -> usize {
        self.room
    }

    fn put(&mut self, bytes: &[u8]) {
        self.room -= bytes.len();
        self.output.extend_from_slice(bytes);
    }

    fn put_frames(&mut self, slot: usize, offset: usize, nr_bytes: usize) {
        self.room -= nr_bytes;
        let (mut slot, mut offset, mut nr_left) = (slot, offset, nr_bytes);
        while nr_left > 0 {
            let mfn = self.window[slot].expect("a page fault: the slot is empty");
            let nr = nr_left.min(PAGE_SIZE - offset);
            self.output.extend_from_slice(&self.frames[&mfn][offset..offset + nr]);
            (slot, offset, nr_left) = (slot + 1, 0, nr_left - nr);
        }
    }

    fn now_ns(&self) -> u64 {
        self.calls.len() as u64 * self.call_ns
    }
}

impl SendBroker for FakeSource {
    fn present(&mut self, present: &mut Bits) -> Result<(), Errno> {
        self.other("present")?;
        let own = || self.physmap.keys().filter(|gfn| !self.special.contains(gfn));
        let end = self.physmap.keys().next_back().and_then(|last| last.checked_add(1));
        present.grow(end.unwrap_or(Gfn::new(0))).map_err(|_| Errno::ENOMEM)?;
        own().for_each(|gfn| present.insert(*gfn));
        Ok(())
    }

    fn start_log(&mut self) -> Result<(), Errno> {
        self.other("start_log")?;
        self.log = Some(BTreeSet::new());
        Ok(())
    }

    fn nr_dirty(&mut self) -> Result<u64, Errno> {
        self.other("nr_dirty")?;
        let held = (0..self.window.len()).filter_map(|slot| self.gfn_at(slot));
        let held: Vec<Gfn> = held.filter(|gfn| self.told.contains(gfn)).collect();
        assert_eq!(held, [], "pages of Xen's own: to hold them can crash the guest");
        Ok(self.log.as_ref().map_or(0, BTreeSet::len) as u64)
    }

    fn dirty(&mut self, dirty: &mut Bits) -> Result<(), Errno> {
        self.other("dirty")?;
        self.unlogged.clear();
        let log = self.log.replace(BTreeSet::new()).ok_or(Errno::EINVAL)?;
        log.into_iter().for_each(|gfn| dirty.insert(gfn));
        Ok(())
    }

    fn suspend(&mut self) -> Result<(), Errno> {
        self.other("suspend")?;
        self.is_suspended = true;
        Ok(())
    }

    fn fetch(&mut self, kind: BlobKind, blob: &mut Vec<u8>) -> Result<(), Errno> {
        self.other("fetch")?;
        *blob = match kind {
            BlobKind::CpuidPolicy => vec![0x11; 48],
            BlobKind::MsrPolicy => vec![0x22; 32],
            BlobKind::HvmContext => vec![0x33; 100],
        };
        Ok(())
    }

    fn tsc_info(&mut self) -> Result<TscInfo, Errno> {
        self.other("tsc_info")?;
        Ok(TscInfo { mode: 2, khz: 3_000_000, nsec: 0x1_2345_6789, incarnation: 7 })
    }
}
