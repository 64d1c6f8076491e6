//! A bit for each gfn: which pages there are, and which are to be sent.

use super::Error;
use alloc::vec::Vec;
use xen_abi::types::Gfn;

/// Gfns of a word.
const WORD: u64 = u64::BITS as u64;

/// Bit `i` stands for gfn `i`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits {
    words: Vec<u64>,
    end: u64,
}

impl Bits {
    /// Grows to all gfns below `end`, the new ones unset; never shrinks.
    ///
    /// # Errors
    /// No memory.
    pub fn grow(&mut self, end: Gfn) -> Result<(), Error> {
        let too_large = Error::TooLarge { end };
        let nr_words = usize::try_from(end.raw().div_ceil(WORD)).map_err(|_| too_large)?;
        if nr_words > self.words.len() {
            self.words.try_reserve_exact(nr_words - self.words.len()).map_err(|_| too_large)?;
            self.words.resize(nr_words, 0);
        }
        self.end = self.end.max(end.raw());
        Ok(())
    }

    /// One past the highest gfn.
    pub fn end(&self) -> Gfn {
        Gfn::new(self.end)
    }

    /// Tells whether a gfn's bit is set; those past the end are not.
    pub fn contains(&self, gfn: Gfn) -> bool {
        self.word(gfn).is_some_and(|word| self.words[word] & bit(gfn) != 0)
    }

    /// Sets a gfn's bit, unless the gfn lies past the end.
    pub fn insert(&mut self, gfn: Gfn) {
        if let Some(word) = self.word(gfn) {
            self.words[word] |= bit(gfn);
        }
    }

    /// Clears a gfn's bit.
    pub fn remove(&mut self, gfn: Gfn) {
        if let Some(word) = self.word(gfn) {
            self.words[word] &= !bit(gfn);
        }
    }

    /// Adds the bits of a bitmap as Xen writes it, lowest bit first, whose first bit stands for gfn `first`, a multiple of
    /// 64; those past the end are left out.
    pub fn add(&mut self, first: Gfn, bitmap: &[u8]) {
        let from = usize::try_from(first.raw() / WORD).unwrap_or(usize::MAX);
        let (chunks, _) = bitmap.as_chunks::<8>();
        for (word, bytes) in self.words.iter_mut().skip(from).zip(chunks) {
            *word |= u64::from_le_bytes(*bytes);
        }
        self.trim();
    }

    /// Adds all bits of another.
    pub fn add_all(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
        self.trim();
    }

    /// Drops the bits that `other` has.
    pub fn subtract(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= !other;
        }
    }

    /// Clears all bits.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Counts the bits that are set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Finds the first gfn from `from` on whose bit is set.
    pub fn next(&self, from: Gfn) -> Option<Gfn> {
        let first = self.word(from)?;
        let masked = self.words[first] & !(bit(from) - 1);
        let later = self.words.iter().copied().enumerate().skip(first + 1);
        let mut words = core::iter::once((first, masked)).chain(later);
        let (index, word) = words.find(|(_, word)| *word != 0)?;
        Some(Gfn::new(index as u64 * WORD + u64::from(word.trailing_zeros())))
    }

    fn word(&self, gfn: Gfn) -> Option<usize> {
        let inside = gfn.raw() < self.end;
        usize::try_from(gfn.raw() / WORD).ok().filter(|_| inside)
    }

    /// Clears what the last word has past the end.
    fn trim(&mut self) {
        if let Some(last) = self.words.last_mut()
            && !self.end.is_multiple_of(WORD)
        {
            *last &= bit(Gfn::new(self.end)) - 1;
        }
    }
}

fn bit(gfn: Gfn) -> u64 {
    1 << (gfn.raw() % WORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(end: u64, set: &[u64]) -> Bits {
        let mut bits = Bits::default();
        bits.grow(Gfn::new(end)).expect("memory");
        set.iter().for_each(|gfn| bits.insert(Gfn::new(*gfn)));
        bits
    }

    fn listed(bits: &Bits) -> Vec<u64> {
        let next = |from: Option<Gfn>| bits.next(from?.checked_add(1)?);
        let first = bits.next(Gfn::new(0));
        core::iter::successors(first, |last| next(Some(*last))).map(Gfn::raw).collect()
    }

    #[test]
    fn what_was_inserted_is_found_in_order() {
        let set = [0, 63, 64, 129, 199];
        let bits = bits(200, &set);
        assert_eq!((listed(&bits), bits.count()), (set.to_vec(), 5));
        assert!(bits.contains(Gfn::new(64)) && !bits.contains(Gfn::new(65)));
    }

    #[test]
    fn nothing_past_the_end_is_ever_set() {
        let mut bits = bits(70, &[70, 71, 1 << 40]);
        bits.add(Gfn::new(64), &[0xff; 8]);
        assert_eq!(listed(&bits), [64, 65, 66, 67, 68, 69]);
        bits.add(Gfn::new(128), &[0xff; 8]);
        assert_eq!(bits.count(), 6);
    }

    #[test]
    fn a_bitmap_of_xen_has_its_lowest_bit_first() {
        let mut bits = bits(128, &[]);
        bits.add(Gfn::new(64), &[0b101, 0, 0, 0, 0, 0, 0, 0x80]);
        assert_eq!(listed(&bits), [64, 66, 127]);
    }

    #[test]
    fn it_grows_and_does_not_shrink() {
        let mut bits = bits(10, &[9]);
        bits.grow(Gfn::new(100)).expect("memory");
        bits.insert(Gfn::new(99));
        bits.grow(Gfn::new(5)).expect("memory");
        assert_eq!((listed(&bits), bits.end()), ([9, 99].to_vec(), Gfn::new(100)));
    }

    #[test]
    fn sets_are_added_and_subtracted() {
        let mut left = bits(100, &[1, 2, 70]);
        left.add_all(&bits(100, &[3]));
        left.subtract(&bits(100, &[2, 50]));
        assert_eq!(listed(&left), [1, 3, 70]);
    }
}
