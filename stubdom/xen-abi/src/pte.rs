//! Page table entries and where they are: pure arithmetic.

use bitflags::bitflags;

use crate::types::{Mfn, PAGE_SHIFT};

/// Entries of a page table.
pub const NR_ENTRIES: usize = 512;

bitflags! {
    /// The bits of an entry that a PV guest sets (`xen/include/public/arch-x86`, Intel SDM vol. 3, 4.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Flags: u64 {
        /// Maps something.
        const PRESENT = 1;
        /// May be written to.
        const RW = 1 << 1;
        /// Ring 3, where a 64-bit PV kernel runs; Xen sets it on every entry anyway.
        const USER = 1 << 2;
        /// Was used. Set beforehand: the processor need not write the table to do so.
        const ACCESSED = 1 << 5;
        /// Was written to.
        const DIRTY = 1 << 6;
        /// May not be executed.
        const NX = 1 << 63;
    }
}

impl Flags {
    /// Read and execute.
    pub const TEXT: Self = Self::PRESENT.union(Self::USER).union(Self::ACCESSED);
    /// Read.
    pub const RO: Self = Self::TEXT.union(Self::NX);
    /// Read and write.
    pub const DATA: Self = Self::RO.union(Self::RW).union(Self::DIRTY);
    /// A table of the next level: what it maps has the rights.
    pub const TABLE: Self = Self::PRESENT.union(Self::RW).union(Self::USER).union(Self::ACCESSED);
}

/// Bits 51..12: the frame number.
const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;

/// The highest frame number that an entry can hold.
pub const MAX_FRAME: u64 = FRAME_MASK >> PAGE_SHIFT;

const fn frame_bits(frame: u64) -> u64 {
    if frame > MAX_FRAME { FRAME_MASK } else { frame << PAGE_SHIFT }
}

/// A page table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pte(u64);

impl Pte {
    /// Maps nothing. Xen crashes a PV domain for any other entry without `PRESENT` (L1TF).
    pub const EMPTY: Self = Self(0);

    /// Makes an entry; `frame` is a machine frame, or a gfn where Xen translates. A number that an entry has no room for
    /// becomes [`MAX_FRAME`], where nothing is: Xen refuses that, while a part of the number would be another frame.
    pub const fn new(frame: u64, flags: Flags) -> Self {
        Self(frame_bits(frame) | flags.bits())
    }

    /// Takes a raw entry.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// Gives the raw entry back.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Returns the same entry with another frame.
    #[must_use]
    pub const fn with_frame(self, mfn: Mfn) -> Self {
        Self(self.0 & !FRAME_MASK | frame_bits(mfn.raw()))
    }

    /// Returns the machine frame that a present entry maps.
    pub const fn mfn(self) -> Option<Mfn> {
        if self.0 & Flags::PRESENT.bits() == 0 {
            return None;
        }
        Some(Mfn::new((self.0 & FRAME_MASK) >> PAGE_SHIFT))
    }
}

/// Returns the index of `va`'s entry in its table of `level` (1 to 4).
pub const fn index(va: usize, level: u32) -> usize {
    (va >> (PAGE_SHIFT + 9 * (level - 1))) % NR_ENTRIES
}

/// Returns the machine address of entry `index` of the table in frame `table`: what `mmu_update` takes.
pub const fn entry_maddr(table: Mfn, index: usize) -> u64 {
    (table.raw() << PAGE_SHIFT) + (index % NR_ENTRIES) as u64 * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_gives_its_frame_back() {
        let pte = Pte::new(0x12_3456, Flags::DATA);
        assert_eq!(pte.raw(), 0x8000_0001_2345_6067);
        assert_eq!(pte.mfn(), Some(Mfn::new(0x12_3456)));
        assert_eq!(Pte::EMPTY.mfn(), None);
        assert_eq!(pte.with_frame(Mfn::new(7)), Pte::new(7, Flags::DATA));
    }

    #[test]
    fn a_frame_number_without_room_names_no_other_frame() {
        let beyond = (MAX_FRAME + 1) | 5;
        assert_eq!(Pte::new(beyond, Flags::RO).mfn(), Some(Mfn::new(MAX_FRAME)));
        assert_eq!(Pte::new(MAX_FRAME, Flags::RO).mfn(), Some(Mfn::new(MAX_FRAME)));
        assert_eq!(Pte::EMPTY.with_frame(Mfn::new(beyond)), Pte::new(MAX_FRAME, Flags::empty()));
    }

    #[test]
    fn a_frame_number_never_reaches_the_flag_bits() {
        assert_eq!(Pte::new(u64::MAX, Flags::empty()).raw(), FRAME_MASK);
    }

    #[test]
    fn each_level_takes_nine_bits_of_the_address() {
        let va = 0x4020_3000;
        assert_eq!([index(va, 4), index(va, 3), index(va, 2), index(va, 1)], [0, 1, 1, 3]);
        assert_eq!(entry_maddr(Mfn::new(5), 3), 0x5018);
    }
}
