//! What a page holds: a function of seed, page number and generation.
//!
//! Word `i` of a page is `start + i * STEP`, where `start` mixes seed, page number and generation. So every word of
//! memory differs from its neighbours, from the same word of other pages, and from its own past: a page that is lost,
//! swapped, moved by a few bytes or out of date does not pass for the right one.

/// 64-bit words in a page.
pub(crate) const WORDS: usize = 512;

/// Odd, so that the words of a page are all different (the golden ratio of 2^64, as in splitmix64).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A page of witnessed memory.
#[derive(Clone)]
#[repr(C, align(4096))]
pub(crate) struct Page(pub(crate) [u64; WORDS]);

/// The first wrong word of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Its index in the page.
    pub(crate) word: usize,
    /// What it should be.
    pub(crate) expected: u64,
    /// What it is.
    pub(crate) found: u64,
    /// How many words of the page are wrong.
    pub(crate) nr_words: usize,
}

/// The first word of a page.
pub(crate) fn start(seed: u64, page: usize, generation: u32) -> u64 {
    mix(mix(mix(seed).wrapping_add(page as u64)).wrapping_add(u64::from(generation)))
}

/// The finalizer of splitmix64: a bijection that spreads each bit over all.
pub(crate) fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(STEP);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Page {
    /// A page of zeroes.
    pub(crate) const ZERO: Self = Self([0; WORDS]);

    /// Writes the pattern that begins with `start`.
    pub(crate) fn fill(&mut self, start: u64) {
        let mut value = start;
        for word in &mut self.0 {
            *word = value;
            value = value.wrapping_add(STEP);
        }
    }

    /// Compares every word with the pattern that begins with `start`.
    pub(crate) fn check(&self, start: u64) -> Option<Wrong> {
        let mut expected = start;
        let mut first: Option<Wrong> = None;
        for (word, &found) in self.0.iter().enumerate() {
            if found != expected {
                first.get_or_insert(Wrong { word, expected, found, nr_words: 0 }).nr_words += 1;
            }
            expected = expected.wrapping_add(STEP);
        }
        first
    }

    /// A sum over the words in which their places count.
    pub(crate) fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum: u64, word| sum.rotate_left(1).wrapping_add(*word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_page_checks_and_any_changed_word_is_named() {
        let mut page = Page::ZERO;
        page.fill(start(1, 2, 3));
        assert_eq!(page.check(start(1, 2, 3)), None);
        page.0[100] ^= 1 << 17;
        page.0[300] = 0;
        let wrong = page.check(start(1, 2, 3)).unwrap();
        assert_eq!((wrong.word, wrong.expected ^ wrong.found, wrong.nr_words), (100, 1 << 17, 2));
    }

    #[test]
    fn seed_page_and_generation_each_change_every_word() {
        let mut page = Page::ZERO;
        page.fill(start(1, 2, 3));
        for other in [start(2, 2, 3), start(1, 3, 3), start(1, 2, 4), start(1, 3, 2)] {
            assert_eq!(page.check(other).unwrap().nr_words, WORDS);
        }
    }

    #[test]
    fn two_swapped_words_change_the_sum() {
        let mut page = Page::ZERO;
        page.fill(start(1, 2, 3));
        let before = page.sum();
        page.0.swap(0, 511);
        assert_ne!(page.sum(), before);
    }
}
