//! Our own memory: the linear mapping, its rights, pages to share, and places to map machine frames at.
//!
//! **Takes** the mapping that the domain builder made: pfn 0 at `virt_base`, everything writable and executable, most
//! of the memory unmapped. **Gives** all memory mapped, W^X, a heap, and whole pages with their machine frames.
//! **Never** lets a page table be written to but through `mmu_update`.
#![allow(unsafe_code, reason = "changes our own page tables and owns raw memory")]

use alloc::alloc::{Layout, alloc_zeroed};
use alloc::boxed::Box;
use core::ops::Range;
use core::ptr::NonNull;

use crate::boot::Image;
use crate::heap;
use crate::hypercall::{memory, mmu};
use crate::shared_mem::SharedMem;
use crate::start_info::StartInfo;
use xen_abi::abi::{MMU_NORMAL_PT_UPDATE, MmuUpdate};
use xen_abi::errno::Errno;
use xen_abi::pte::{self, Flags, NR_ENTRIES, Pte};
use xen_abi::types::{Domid, Mfn, PAGE_SIZE};

/// The bytes that one L1 table maps.
const L1_SPAN: usize = PAGE_SIZE * NR_ENTRIES;

/// The bytes that one L2 table maps: the most that the linear mapping and a region may have.
pub const REGION_BYTES: usize = L1_SPAN * NR_ENTRIES;

/// Page table entries of one `mmu_update` while the mapping is set up.
const BATCH: usize = 64;

/// Why our memory could not be set up or mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No page of our own is left.
    NoMemory,
    /// A virtual address that should be mapped is not.
    Unmapped(usize),
    /// Xen refused a page table entry: its machine address, and why.
    Refused(u64, Errno),
    /// No virtual addresses are left.
    NoSpace,
}

/// The mapping of all our memory: virtual address = `virt_base` + pfn * 4096.
struct Linear {
    virt_base: usize,
    nr_pages: usize,
    /// One machine frame number a page (the p2m list).
    p2m: SharedMem,
    /// The machine-to-phys table; only entries of our own frames are read here, which exist.
    m2p: SharedMem,
    /// The top page table.
    pt_base: usize,
}

/// Our memory.
pub struct Memory {
    linear: Linear,
    /// Unused pages behind the linear mapping whose L1 table exists: machine frames are mapped there.
    fixmap: Range<usize>,
    /// Unused virtual addresses, in regions of [`REGION_BYTES`].
    regions: Range<usize>,
}

impl Linear {
    fn mfn(&self, va: usize) -> Mfn {
        Mfn::new(self.p2m.read::<u64>((va - self.virt_base) / PAGE_SIZE * 8))
    }

    fn va(&self, mfn: Mfn) -> Option<usize> {
        let offset = usize::try_from(mfn.raw()).ok()?.checked_mul(8)?;
        if offset + 8 > self.m2p.len() {
            return None;
        }
        let pfn = usize::try_from(self.m2p.read::<u64>(offset)).ok()?;
        (pfn < self.nr_pages).then(|| self.virt_base + pfn * PAGE_SIZE)
    }

    /// Returns the entry of `va` in its table of `level`, and the entry's machine address.
    fn entry(&self, va: usize, level: u32) -> Option<(u64, Pte)> {
        let mut table = self.pt_base;
        let mut at = 4;
        loop {
            let index = pte::index(va, at);
            // SAFETY: `table` is one of our page tables, in the linear mapping, which is never unmapped; loads only.
            let raw = unsafe { SharedMem::new(pointer(table), PAGE_SIZE) }.read::<u64>(index * 8);
            if at == level {
                return Some((pte::entry_maddr(self.mfn(table), index), Pte::from_raw(raw)));
            }
            table = self.va(Pte::from_raw(raw).mfn()?)?;
            at -= 1;
        }
    }

    fn end(&self) -> usize {
        self.virt_base + self.nr_pages * PAGE_SIZE
    }
}

/// Page table entries on their way to Xen.
struct Batch {
    updates: [MmuUpdate; BATCH],
    len: usize,
}

impl Batch {
    const fn new() -> Self {
        Self { updates: [MmuUpdate { ptr: 0, val: 0 }; BATCH], len: 0 }
    }

    /// Adds an entry, sending the batch when it is full.
    ///
    /// # Safety
    /// As for [`mmu::mmu_update`].
    unsafe fn push(&mut self, maddr: u64, pte: Pte) -> Result<(), Error> {
        if let Some(slot) = self.updates.get_mut(self.len) {
            *slot = MmuUpdate { ptr: maddr | MMU_NORMAL_PT_UPDATE, val: pte.raw() };
            self.len += 1;
        }
        if self.len == BATCH {
            // SAFETY: every entry came in under this function's own obligation.
            return unsafe { self.send() };
        }
        Ok(())
    }

    /// Sends what is there.
    ///
    /// # Safety
    /// As for [`mmu::mmu_update`].
    unsafe fn send(&mut self) -> Result<(), Error> {
        let updates = self.updates.get(..self.len).unwrap_or_default();
        // SAFETY: the caller's obligation.
        let (done, result) = unsafe { mmu::mmu_update(updates, Domid::SELF) };
        let refused = updates.get(done).map_or(0, |update| update.ptr);
        self.len = 0;
        result.map_err(|errno| Error::Refused(refused, errno))
    }
}

impl Memory {
    /// Sets our memory up: rights, the rest of the memory mapped, the heap.
    ///
    /// # Safety
    /// `info` and `image` are true; called once, before anything uses memory outside the image.
    pub(crate) unsafe fn init(info: &StartInfo, image: &Image) -> Result<Self, Error> {
        let nr_pages = info.nr_pages.min(REGION_BYTES / PAGE_SIZE - NR_ENTRIES);
        let m2p = memory::machphys_mapping().map_err(|errno| Error::Refused(0, errno))?;
        let m2p = address_range(m2p.v_start, m2p.v_end)?;
        // SAFETY: the builder's list lies in the linear mapping, which is never unmapped; loads only.
        let p2m = unsafe { SharedMem::new(pointer(info.mfn_list), nr_pages * 8) };
        // SAFETY: Xen maps the table for every PV guest for ever; loads only, and only entries of our own frames.
        let m2p = unsafe { SharedMem::new(pointer(m2p.start), m2p.len()) };
        let linear = Linear { virt_base: image.virt_base, nr_pages, p2m, m2p, pt_base: info.pt_base };

        let tables = info.pt_base..info.pt_base + info.nr_pt_frames * PAGE_SIZE;
        // The builder's one-page boot stack follows its page tables; then comes unused memory.
        let mut free = tables.end + PAGE_SIZE;
        // SAFETY: the rights are those that the linker script gave each part of the image.
        let mapped_end = unsafe { protect(&linear, image, &tables)? };
        // SAFETY: pages from `free` on are unused: what the builder put there lies below.
        let fixmap = unsafe { extend(&linear, mapped_end, &mut free)? };
        // SAFETY: the linear mapping from `free` to its end is mapped, writable and unused.
        unsafe { heap::init(free, linear.end() - free) };

        let first_region = image.virt_base + REGION_BYTES;
        let regions = first_region..image.virt_base - image.virt_base % REGION_BYTES + (REGION_BYTES << 8);
        Ok(Self { linear, fixmap, regions })
    }

    /// Returns a page that the builder made for a ring as shared memory.
    ///
    /// # Safety
    /// `mfn` is a page of ours that the builder set aside for sharing; called once for each.
    pub(crate) unsafe fn builder_page(&self, mfn: Mfn) -> Option<SharedMem> {
        let va = self.linear.va(mfn)?;
        // SAFETY: linear memory is never unmapped, and by the caller's obligation no Rust value lies there.
        Some(unsafe { SharedMem::new(pointer(va), PAGE_SIZE) })
    }

    /// Maps a machine frame that Xen shares with us (not memory of our own), writable.
    pub(crate) fn map_machine(&mut self, mfn: Mfn) -> Result<SharedMem, Error> {
        let va = self.fixmap.start;
        if va >= self.fixmap.end {
            return Err(Error::NoSpace);
        }
        // SAFETY: nothing is mapped at `va` yet; the frame is not memory that a Rust value lives in.
        unsafe { mmu::update_va_mapping(va, Pte::new(mfn.raw(), Flags::DATA)) }
            .map_err(|errno| Error::Refused(va as u64, errno))?;
        self.fixmap.start += PAGE_SIZE;
        // SAFETY: mapped above, for ever, for this handle alone.
        Ok(unsafe { SharedMem::new(pointer(va), PAGE_SIZE) })
    }

    /// Sets aside `nr_frames` pages of address space with nothing mapped, and the L1 tables that map them.
    ///
    /// The tables lie side by side in the linear mapping, in order and read-only: together they are one array of
    /// entries, one a page of the region.
    pub(crate) fn region(&mut self, nr_frames: usize) -> Result<Region, Error> {
        let nr_tables = nr_frames.div_ceil(NR_ENTRIES);
        let base = self.regions.start;
        if nr_tables > NR_ENTRIES || base >= self.regions.end {
            return Err(Error::NoSpace);
        }
        let directory = self.pages(1).ok_or(Error::NoMemory)?;
        let tables = self.pages(nr_tables).ok_or(Error::NoMemory)?;
        let addresses = |pages: &Pages| -> Box<[usize]> {
            (0..pages.mfns().len()).map(|index| pages.page(index).as_ptr() as usize).collect()
        };
        // SAFETY: the page is zeroed, so holds valid entries, and `directory` is forgotten below, never written to.
        unsafe { hook(&self.linear, &addresses(&directory), base, 3)? };
        // SAFETY: as above; the caller gets the tables as memory to read.
        unsafe { hook(&self.linear, &addresses(&tables), base, 2)? };
        self.regions.start += REGION_BYTES;
        // SAFETY: the tables are mapped side by side for ever (`Pages`), readable; nobody writes to them but Xen.
        let entries = unsafe { SharedMem::new(tables.page(0), nr_tables * PAGE_SIZE) };
        Ok(Region { base: pointer(base), entries, tables: tables.mfns })
    }

    /// Allocates `nr_pages` pages side by side, zeroed, for ever.
    pub fn pages(&self, nr_pages: usize) -> Option<Pages> {
        let base = zeroed_pages(nr_pages)?;
        let va = base.as_ptr() as usize;
        let mfns = (0..nr_pages).map(|page| self.linear.mfn(va + page * PAGE_SIZE)).collect();
        Some(Pages { base, mfns })
    }
}

/// An address that Xen or the builder named, or that lies behind one: never 0.
fn pointer(va: usize) -> NonNull<u8> {
    // PANIC: the image lies at `virt_base`, all else higher; a zero here is a hypervisor that lies.
    NonNull::new(va as *mut u8).expect("a null address from Xen")
}

fn address_range(start: u64, end: u64) -> Result<Range<usize>, Error> {
    match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) => Ok(start..end),
        _ => Err(Error::NoSpace),
    }
}

/// Gives every page of the builder's mapping its rights; returns where that mapping ends.
///
/// # Safety
/// The image's bounds are those of the linker script.
unsafe fn protect(linear: &Linear, image: &Image, tables: &Range<usize>) -> Result<usize, Error> {
    let mut batch = Batch::new();
    let mut va = image.virt_base;
    while let Some((maddr, pte)) = linear.entry(va, 1)
        && let Some(mfn) = pte.mfn()
    {
        let wanted = match image.rights(va) {
            _ if tables.contains(&va) => Pte::new(mfn.raw(), Flags::RO),
            Some(flags) => Pte::new(mfn.raw(), flags),
            None => Pte::EMPTY,
        };
        // SAFETY: text loses the right to write, data to execute; neither is used. Only the guard is unmapped.
        unsafe { batch.push(maddr, wanted)? };
        va += PAGE_SIZE;
    }
    // SAFETY: as above.
    unsafe { batch.send()? };
    mmu::tlb_flush_local().map_err(|errno| Error::Refused(0, errno))?;
    Ok(va)
}

/// Maps our memory from `va` to its end, with L1 tables from `free`; returns the unused rest of the last table's span.
///
/// # Safety
/// The pages from `free` on are unused.
unsafe fn extend(linear: &Linear, mapped_end: usize, free: &mut usize) -> Result<Range<usize>, Error> {
    let mut va = mapped_end;
    if !va.is_multiple_of(L1_SPAN) {
        return Err(Error::Unmapped(va)); // the builder maps up to a 4 MiB boundary
    }
    // One table more than the memory needs: machine frames are mapped at its end.
    let end = linear.end().next_multiple_of(L1_SPAN) + L1_SPAN;
    while va < end {
        let table = *free;
        *free += PAGE_SIZE;
        fill_l1(linear, table, va);
        // SAFETY: the page is unused; the table maps memory behind everything mapped so far.
        unsafe { hook(linear, &[table], va, 2)? };
        va += L1_SPAN;
    }
    Ok(linear.end().max(mapped_end)..end)
}

/// Writes an L1 table for the linear mapping at `va` into the page at `table`.
fn fill_l1(linear: &Linear, table: usize, va: usize) {
    // SAFETY: the page is mapped, writable and unused (`extend`).
    let mut page = unsafe { SharedMem::new(pointer(table), PAGE_SIZE) };
    for index in 0..NR_ENTRIES {
        let at = va + index * PAGE_SIZE;
        let pte = if at < linear.end() { Pte::new(linear.mfn(at).raw(), Flags::DATA) } else { Pte::EMPTY };
        page.write(index * 8, pte.raw());
    }
}

/// Makes pages read-only and hooks them into the existing table of `level` as the tables that map from `va` on.
///
/// # Safety
/// The pages are ours, hold valid entries, and are not written to afterwards.
unsafe fn hook(linear: &Linear, tables: &[usize], va: usize, level: u32) -> Result<(), Error> {
    let span = if level == 2 { L1_SPAN } else { REGION_BYTES };
    let mut batch = Batch::new();
    for &table in tables {
        let (maddr, _) = linear.entry(table, 1).ok_or(Error::Unmapped(table))?;
        // SAFETY: the page stays mapped, read-only; the caller writes to it no more.
        unsafe { batch.push(maddr, Pte::new(linear.mfn(table).raw(), Flags::RO))? };
    }
    for (index, &table) in tables.iter().enumerate() {
        let (maddr, _) = linear.entry(va + index * span, level).ok_or(Error::Unmapped(va))?;
        // SAFETY: the entry maps nothing so far.
        unsafe { batch.push(maddr, Pte::new(linear.mfn(table).raw(), Flags::TABLE))? };
    }
    // SAFETY: as above.
    unsafe { batch.send()? };
    // The processor may still hold the pages' writable mapping.
    mmu::tlb_flush_local().map_err(|errno| Error::Refused(0, errno))
}

/// Allocates zeroed pages side by side.
fn zeroed_pages(nr_pages: usize) -> Option<NonNull<u8>> {
    let layout = page_layout(nr_pages)?;
    // SAFETY: the layout's size is not 0 (`page_layout`).
    NonNull::new(unsafe { alloc_zeroed(layout) })
}

fn page_layout(nr_pages: usize) -> Option<Layout> {
    let bytes = nr_pages.checked_mul(PAGE_SIZE).filter(|&bytes| bytes > 0)?;
    Layout::from_size_align(bytes, PAGE_SIZE).ok()
}

/// Address space with nothing mapped, and its page table entries.
#[derive(Debug)]
pub(crate) struct Region {
    /// Where it starts.
    pub(crate) base: NonNull<u8>,
    /// Its entries, 8 bytes a page, in order; Xen refuses writes to them.
    pub(crate) entries: SharedMem,
    /// The machine frames of its L1 tables, in order.
    pub(crate) tables: Box<[Mfn]>,
}

/// Pages of our own, side by side, that others may look at. They are never freed: who owned a device once will own it
/// again when it comes back.
#[derive(Debug)]
pub struct Pages {
    base: NonNull<u8>,
    mfns: Box<[Mfn]>,
}

impl Pages {
    /// Returns the machine frames, in order.
    pub fn mfns(&self) -> &[Mfn] {
        &self.mfns
    }

    /// Returns the address of page `index`; it stays mapped for ever.
    pub fn page(&self, index: usize) -> NonNull<u8> {
        assert!(index < self.mfns.len(), "a page that was not allocated");
        // SAFETY: the page is one of the allocation's, just checked.
        unsafe { self.base.add(index * PAGE_SIZE) }
    }
}
