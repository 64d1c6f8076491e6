//! A PV guest that has suspended itself, and Xen's rules for its page tables.
//!
//! What it keeps of Xen: a frame is a page table as long as it is pinned, loaded, or a table of the next level refers to
//! it; such a frame can only be changed entry by entry, may be mapped writable by nobody, and maps the guest's own frames
//! only; `XENMEM_exchange` takes a frame to which nothing refers any more.

use crate::exchange_pv::{
    Facts, PageType, PvGuest, Role, Root, Table, Update, WORDS, Words, mapped, with_frame,
};
use crate::xen::Errno;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use xen_abi::types::{Mfn, Pfn};

/// Pages of the guest.
pub const NR_PAGES: u64 = 1200;

/// Where its kernel maps all pages, one after the other: slot 273 of a root.
const KERNEL_BASE: u64 = 0xffff_8880_0000_0000;

// The pages that are not data.
const P2M: [u64; 3] = [0, 1, 2];
/// The loaded root.
pub const ROOT: Pfn = Pfn::new(3);
/// Page tables that are not loaded: another root, the kernel's, the other root's own.
pub const TABLES: core::ops::Range<u64> = 4..13;
/// A pinned table that maps itself.
pub const PINNED_TABLE: Pfn = Pfn::new(7);
/// A page that is mapped twice.
pub const SHARED_PAGE: Pfn = Pfn::new(100);

/// The slot of a root through which Xen finds its tables; Xen writes it when it validates a root.
const XENS_OWN: usize = 258;

const TABLE_FLAGS: u64 = 0x67;
const READ_ONLY: u64 = 0x8000_0000_0000_0065;
const WRITABLE: u64 = 0x8000_0000_0000_0067;
const RW: u64 = 2;

/// A guest, and what happens to it.
#[derive(Clone, Debug, Default)]
pub struct FakePv {
    frames: BTreeMap<Mfn, Box<Words>>,
    m2p: BTreeMap<Mfn, Pfn>,
    pinned: BTreeMap<Mfn, u8>,
    /// Frames that were exchanged.
    pub retired: BTreeSet<Mfn>,
    /// Frames that somebody refers to of whom no table tells.
    pub held: BTreeSet<Mfn>,
    /// Frames for exchanges.
    pub free: Vec<Mfn>,
    /// Calls so far; each update of a list counts.
    pub calls: Vec<&'static str>,
    /// The call, counted from 0, that fails.
    pub fail_call: Option<usize>,
    /// From this call on, all of this name fail.
    pub fail_name: Option<(usize, &'static str)>,
}

impl FakePv {
    /// Makes a guest of [`NR_PAGES`] pages with a kernel and one process.
    pub fn new() -> Self {
        let mut guest = Self { free: (0x8000..0x8100).map(Mfn::new).collect(), ..Self::default() };
        for pfn in 0..NR_PAGES {
            // Scattered, no two alike: 4099 is prime.
            let mfn = Mfn::new(0x1000 + pfn * 613 % 4099);
            guest.frames.insert(mfn, Box::new([pfn << 32 | 1; WORDS]));
            guest.m2p.insert(mfn, Pfn::new(pfn));
        }
        guest.write_p2m();
        guest.write_tables();
        guest
    }

    /// What dom0 knows of it.
    pub fn facts(&self) -> Facts {
        Facts {
            p2m: Some(Root::Linear { cr3: self.mfn(ROOT), vaddr: KERNEL_BASE + P2M[0] * 4096 }),
            max_pfn: NR_PAGES,
            max_frames: NR_PAGES,
            reserved: [(self.mfn(ROOT), Role::Root)].into(),
            granted: BTreeMap::new(),
        }
    }

    /// The frame of a page, as Xen's table has it.
    pub fn mfn(&self, pfn: Pfn) -> Mfn {
        let found = self.m2p.iter().find(|(_, page)| **page == pfn);
        *found.expect("a page of the guest").0
    }

    /// Writes a word of a page, whatever it is.
    pub fn poke(&mut self, pfn: Pfn, index: usize, word: u64) {
        let mfn = self.mfn(pfn);
        self.frames.get_mut(&mfn).expect("a frame of the guest")[index] = word;
    }

    /// Reads a word of a page.
    pub fn peek(&self, pfn: Pfn, index: usize) -> u64 {
        self.frames[&self.mfn(pfn)][index]
    }

    /// As [`view`](Self::view), or `None` when some entry names a frame that is not the guest's any more.
    pub fn view_if_sound(&self) -> Option<Vec<(Pfn, Option<Table>, Words)>> {
        let names_own = |word: u64| word == u64::MAX || self.m2p.contains_key(&Mfn::new(word));
        let p2m = P2M.iter().flat_map(|pfn| self.frames[&self.mfn(Pfn::new(*pfn))].iter());
        let tables = self.tables();
        let entries = tables.keys().flat_map(|mfn| self.frames[mfn].iter());
        let is_sound = p2m.copied().all(names_own)
            && entries.copied().filter_map(mapped).all(|mfn| self.m2p.contains_key(&mfn));
        is_sound.then(|| self.view())
    }

    /// All that the guest can see of its memory, told by page and not by frame: two guests that look the same in this
    /// way differ in frames alone.
    ///
    /// # Panics
    /// An entry names a frame that is not the guest's.
    pub fn view(&self) -> Vec<(Pfn, Option<Table>, Words)> {
        let tables = self.tables();
        let mut pages: Vec<_> = (self.m2p.iter())
            .map(|(mfn, pfn)| {
                let table = tables
                    .get(mfn)
                    .map(|level| Table { level: *level, is_pinned: self.pinned.contains_key(mfn) });
                let mut words = *self.frames[mfn];
                if table.is_some() {
                    words.iter_mut().for_each(|entry| *entry = self.by_page(*entry));
                } else if P2M.contains(&pfn.raw()) {
                    words.iter_mut().for_each(|word| *word = self.page_of(*word));
                }
                (*pfn, table, words)
            })
            .collect();
        pages.sort_by_key(|(pfn, ..)| *pfn);
        pages
    }

    /// An entry of a table, with a page in place of a frame.
    fn by_page(&self, entry: u64) -> u64 {
        match mapped(entry) {
            Some(mfn) => with_frame(entry, Mfn::new(self.m2p[&mfn].raw())),
            None => entry,
        }
    }

    /// A word of the p2m, with a page in place of a frame.
    fn page_of(&self, word: u64) -> u64 {
        if word == u64::MAX { word } else { self.m2p[&Mfn::new(word)].raw() }
    }

    fn write_p2m(&mut self) {
        for number in 0..P2M.len() * WORDS {
            let pfn = Pfn::new(number as u64);
            let word = if pfn.raw() < NR_PAGES { self.mfn(pfn).raw() } else { u64::MAX };
            self.poke(Pfn::new(P2M[number / WORDS]), number % WORDS, word);
        }
    }

    fn write_tables(&mut self) {
        let [root, other, l3, l2] = [3, 4, 5, 6].map(Pfn::new);
        let linear = [7, 8, 9].map(Pfn::new);
        let [user_l1, user_l3, user_l2] = [10, 11, 12].map(Pfn::new);
        for table in ROOT.raw()..TABLES.end {
            (0..WORDS).for_each(|index| self.poke(Pfn::new(table), index, 0));
        }
        for top in [root, other] {
            self.link(top, 273, l3);
            self.link(top, XENS_OWN, top);
        }
        self.link(l3, 0, l2);
        (0..).zip(linear).for_each(|(index, table)| self.link(l2, index, table));
        for number in 0..linear.len() * WORDS {
            let pfn = number as u64;
            let flags = if (ROOT.raw()..TABLES.end).contains(&pfn) { READ_ONLY } else { WRITABLE };
            if pfn < NR_PAGES {
                let entry = with_frame(flags, self.mfn(Pfn::new(pfn)));
                self.poke(linear[number / WORDS], number % WORDS, entry);
            }
        }
        self.link(other, 0, user_l3);
        self.link(user_l3, 1, user_l2);
        self.link(user_l2, 2, user_l1);
        self.poke(user_l1, 5, with_frame(WRITABLE, self.mfn(SHARED_PAGE)));
        for (pfn, level) in [(root, 4), (other, 4), (PINNED_TABLE, 1)] {
            self.pinned.insert(self.mfn(pfn), level);
        }
    }

    fn link(&mut self, table: Pfn, index: usize, to: Pfn) {
        self.poke(table, index, with_frame(TABLE_FLAGS, self.mfn(to)));
    }

    /// What Xen takes for page tables.
    fn tables(&self) -> BTreeMap<Mfn, u8> {
        let mut tables = BTreeMap::new();
        let mut found: Vec<_> = self.pinned.iter().map(|(mfn, level)| (*mfn, *level)).collect();
        while let Some((mfn, level)) = found.pop() {
            if tables.insert(mfn, level).is_none() && level > 1 {
                found.extend(self.entries(mfn, level).filter_map(mapped).map(|mfn| (mfn, level - 1)));
            }
        }
        tables
    }

    /// The guest's entries of a table.
    fn entries(&self, mfn: Mfn, level: u8) -> impl Iterator<Item = u64> {
        let is_guests = move |index: usize| level < 4 || !(256..272).contains(&index);
        let words = self.frames[&mfn].iter().enumerate();
        words.filter(move |(index, _)| is_guests(*index)).map(|(_, entry)| *entry)
    }

    /// Whether a table of this level may hold the entry.
    fn is_valid(&self, entry: u64, level: u8, tables: &BTreeMap<Mfn, u8>) -> bool {
        let Some(mfn) = mapped(entry) else { return true };
        match level {
            1 => self.frames.contains_key(&mfn) && (entry & RW == 0 || !tables.contains_key(&mfn)),
            _ => self.is_valid_table(mfn, level - 1, tables),
        }
    }

    fn is_valid_table(&self, mfn: Mfn, level: u8, tables: &BTreeMap<Mfn, u8>) -> bool {
        let is_level = tables.get(&mfn).is_none_or(|found| *found == level);
        self.frames.contains_key(&mfn)
            && is_level
            && self.entries(mfn, level).all(|entry| self.is_valid(entry, level, tables))
    }

    fn update(&mut self, update: &Update) -> Result<(), Errno> {
        self.count("mmu_update")?;
        let tables = self.tables();
        let level = tables.get(&update.table);
        if level.is_some_and(|level| !self.is_valid(update.value, *level, &tables)) {
            return Err(Errno::EINVAL);
        }
        let words = self.frames.get_mut(&update.table).ok_or(Errno::EINVAL)?;
        words[update.index] = update.value;
        Ok(())
    }

    /// Whether anybody refers to a frame.
    fn is_in_use(&self, mfn: Mfn) -> bool {
        let tables = self.tables();
        let is_mapped = tables
            .iter()
            .any(|(table, level)| self.entries(*table, *level).any(|entry| mapped(entry) == Some(mfn)));
        is_mapped || self.pinned.contains_key(&mfn) || self.held.contains(&mfn)
    }

    fn count(&mut self, name: &'static str) -> Result<(), Errno> {
        let number = self.calls.len();
        self.calls.push(name);
        let fails_for_good =
            self.fail_name.is_some_and(|(first, failing)| failing == name && number >= first);
        if self.fail_call == Some(number) || fails_for_good { Err(Errno::EBUSY) } else { Ok(()) }
    }

    fn writable(&mut self, mfn: Mfn) -> Result<&mut Words, Errno> {
        if self.tables().contains_key(&mfn) {
            return Err(Errno::EINVAL);
        }
        self.frames.get_mut(&mfn).map(|words| &mut **words).ok_or(Errno::EINVAL)
    }
}

impl PvGuest for FakePv {
    fn read(&mut self, mfns: &[Mfn], pages: &mut [Words]) -> Result<(), Errno> {
        self.count("read")?;
        for (mfn, page) in mfns.iter().zip(pages) {
            *page = **self.frames.get(mfn).ok_or(Errno::EINVAL)?;
        }
        Ok(())
    }

    fn write(&mut self, mfn: Mfn, page: &Words) -> Result<(), Errno> {
        self.count("write")?;
        *self.writable(mfn)? = *page;
        Ok(())
    }

    fn write_word(&mut self, mfn: Mfn, index: usize, word: u64) -> Result<(), Errno> {
        self.count("write_word")?;
        self.writable(mfn)?[index] = word;
        Ok(())
    }

    fn page_types(&mut self, mfns: &[Mfn], types: &mut [PageType]) -> Result<(), Errno> {
        self.count("page_types")?;
        let tables = self.tables();
        for (mfn, page_type) in mfns.iter().zip(types) {
            *page_type = match tables.get(mfn) {
                Some(level) => {
                    PageType::Table(Table { level: *level, is_pinned: self.pinned.contains_key(mfn) })
                }
                None if self.frames.contains_key(mfn) => PageType::Data,
                None => PageType::Foreign,
            };
        }
        Ok(())
    }

    fn mmu_update(&mut self, updates: &[Update]) -> Result<(), (usize, Errno)> {
        for (update, nr_done) in updates.iter().zip(0..) {
            self.update(update).map_err(|errno| (nr_done, errno))?;
        }
        Ok(())
    }

    fn pin(&mut self, mfn: Mfn, level: u8) -> Result<(), Errno> {
        self.count("pin")?;
        if !self.is_valid_table(mfn, level, &self.tables()) {
            return Err(Errno::EINVAL);
        }
        self.pinned.insert(mfn, level);
        if level == 4 {
            let words = self.frames.get_mut(&mfn).ok_or(Errno::EINVAL)?;
            words[XENS_OWN] = with_frame(TABLE_FLAGS, mfn);
        }
        Ok(())
    }

    fn unpin(&mut self, mfn: Mfn) -> Result<(), Errno> {
        self.count("unpin")?;
        self.pinned.remove(&mfn).map(drop).ok_or(Errno::EINVAL)
    }

    fn exchange(&mut self, old: Mfn, pfn: Pfn) -> Result<Mfn, Errno> {
        self.count("exchange")?;
        if !self.frames.contains_key(&old) || self.is_in_use(old) {
            return Err(Errno::EINVAL);
        }
        let new = self.free.pop().ok_or(Errno::ENOMEM)?;
        self.frames.remove(&old);
        self.m2p.remove(&old);
        self.retired.insert(old);
        self.frames.insert(new, Box::new([0; WORDS]));
        self.m2p.insert(new, pfn);
        Ok(new)
    }
}
