//! What a guest's physical memory is made of, seen from the machine frames behind its gfns.
//!
//! **Takes** the frame behind every gfn, in order. **Gives** a word for each 2 MiB region, and how many 1 GiB regions are
//! one run of machine memory. **Never** asks Xen: contiguity is read off the frames, not taken from a p2m type.

use xen_abi::types::{Mfn, Order};

/// What backs a 2 MiB region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing.
    Hole,
    /// 512 frames in a row, from this one on, aligned as a superpage must be.
    Superpage(Mfn),
    /// 512 frames, not in such a row.
    Small,
    /// Some frames and some holes.
    Partial,
}

/// Says what the frames of one region are; `frames` has 512 entries.
pub fn backing(frames: impl IntoIterator<Item = Option<Mfn>>) -> Backing {
    let (mut nr_frames, mut nr_slots, mut in_row) = (0_u64, 0_u64, true);
    let mut first = None;
    for frame in frames {
        if nr_slots == 0 {
            first = frame;
        }
        in_row &= frame.is_some() && first.and_then(|first: Mfn| first.checked_add(nr_slots)) == frame;
        nr_frames += u64::from(frame.is_some());
        nr_slots += 1;
    }
    match first {
        Some(first) if in_row && first.is_aligned(Order::PAGE_2M) => Backing::Superpage(first),
        _ if nr_frames == 0 => Backing::Hole,
        _ if nr_frames == nr_slots => Backing::Small,
        _ => Backing::Partial,
    }
}

/// Counts the 1 GiB regions that are one aligned run, from the backing of their 2 MiB regions in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Giants {
    nr_regions: u64,
    first: Option<Mfn>,
    nr_in_row: u64,
    nr_contiguous: u64,
}

/// 2 MiB regions of a 1 GiB region.
const REGIONS: u64 = Order::PAGE_1G.nr_frames() / Order::PAGE_2M.nr_frames();

impl Giants {
    /// Takes the next 2 MiB region.
    pub fn add(&mut self, backing: Backing) {
        if self.nr_regions.is_multiple_of(REGIONS) {
            (self.first, self.nr_in_row) = (None, 0);
        }
        if let Backing::Superpage(mfn) = backing {
            let first = *self.first.get_or_insert(mfn);
            let expected = first.checked_add((self.nr_regions % REGIONS) * Order::PAGE_2M.nr_frames());
            self.nr_in_row += u64::from(expected == Some(mfn) && first.is_aligned(Order::PAGE_1G));
        }
        self.nr_regions += 1;
        self.nr_contiguous += u64::from(self.nr_in_row == REGIONS);
        if self.nr_in_row == REGIONS {
            self.nr_in_row = 0;
        }
    }

    /// Returns how many 1 GiB regions are contiguous so far.
    pub const fn nr_contiguous(&self) -> u64 {
        self.nr_contiguous
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(first: u64) -> impl Iterator<Item = Option<Mfn>> {
        (first..first + 512).map(|mfn| Some(Mfn::new(mfn)))
    }

    #[test]
    fn a_row_that_starts_aligned_is_a_superpage() {
        assert_eq!(backing(row(0x400)), Backing::Superpage(Mfn::new(0x400)));
        assert_eq!(backing(row(0x401)), Backing::Small);
    }

    #[test]
    fn one_frame_out_of_row_makes_it_small_and_one_missing_partial() {
        let swapped = row(0x400).enumerate().map(|(nr, mfn)| if nr == 511 { Some(Mfn::new(1)) } else { mfn });
        assert_eq!(backing(swapped), Backing::Small);
        let holed = row(0x400).enumerate().map(|(nr, mfn)| mfn.filter(|_| nr != 7));
        assert_eq!(backing(holed), Backing::Partial);
        let headless = row(0x400).enumerate().map(|(nr, mfn)| mfn.filter(|_| nr != 0));
        assert_eq!(backing(headless), Backing::Partial);
        assert_eq!(backing(core::iter::repeat_n(None, 512)), Backing::Hole);
    }

    #[test]
    fn a_giant_is_512_superpages_in_an_aligned_row() {
        let mut giants = Giants::default();
        (0..512).for_each(|nr| giants.add(Backing::Superpage(Mfn::new(0x8_0000 + nr * 512))));
        assert_eq!(giants.nr_contiguous(), 1);
        (0..512).for_each(|nr| giants.add(Backing::Superpage(Mfn::new(0xc_0200 + nr * 512))));
        assert_eq!(giants.nr_contiguous(), 1, "not aligned to 1 GiB");
        (0..512).for_each(|nr| {
            let gap = if nr > 200 { 512 } else { 0 };
            giants.add(Backing::Superpage(Mfn::new(0x10_0000 + nr * 512 + gap)));
        });
        assert_eq!(giants.nr_contiguous(), 1, "not in a row");
    }
}
