//! The witnessed memory and the journal of what stands in it.

use crate::pattern::{Page, Wrong, mix, start};
use std::fmt;

/// Pages with a pattern, and each page's generation.
pub(crate) struct Memory {
    seed: u64,
    pages: Vec<Page>,
    /// How often each page was written anew: this journal says what each page must hold.
    generations: Vec<u32>,
    /// State of the choice of the next page to write.
    dice: u64,
    nr_writes: u64,
}

/// What a look at all of the memory found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Pages with a wrong word.
    pub(crate) nr_wrong_pages: usize,
    /// Wrong words in all.
    pub(crate) nr_wrong_words: usize,
    /// Sum over all words as found, their places counted.
    pub(crate) sum: u64,
    /// The first wrong pages.
    pub(crate) findings: Vec<Finding>,
}

/// A wrong page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    page: usize,
    generation: u32,
    wrong: Wrong,
    /// What it holds instead, where that can be told.
    looks_like: String,
}

/// Most findings told one by one.
const MAX_FINDINGS: usize = 8;

impl Memory {
    /// Takes the memory and writes all of it.
    pub(crate) fn fill(seed: u64, nr_pages: usize) -> Self {
        let mut memory = Self {
            seed,
            pages: vec![Page::ZERO; nr_pages],
            generations: vec![0; nr_pages],
            dice: mix(seed ^ 0xd1ce),
            nr_writes: 0,
        };
        for (number, page) in memory.pages.iter_mut().enumerate() {
            page.fill(start(seed, number, 0));
        }
        memory
    }

    /// How many pages are witnessed.
    pub(crate) fn nr_pages(&self) -> usize {
        self.pages.len()
    }

    /// How many pages were written anew so far.
    pub(crate) fn nr_writes(&self) -> u64 {
        self.nr_writes
    }

    /// Writes the next generation into a page chosen by the dice.
    pub(crate) fn dirty_one(&mut self) {
        self.dice = mix(self.dice);
        let nr_pages = self.pages.len().max(1) as u64;
        let number = usize::try_from(self.dice % nr_pages).unwrap_or(0);
        if let (Some(page), Some(generation)) = (self.pages.get_mut(number), self.generations.get_mut(number))
        {
            *generation = generation.wrapping_add(1);
            page.fill(start(self.seed, number, *generation));
            self.nr_writes += 1;
        }
    }

    /// Compares every word with the journal.
    pub(crate) fn verify(&self) -> Verdict {
        let mut verdict = Verdict { nr_wrong_pages: 0, nr_wrong_words: 0, sum: 0, findings: Vec::new() };
        for (number, (page, &generation)) in self.pages.iter().zip(&self.generations).enumerate() {
            verdict.sum = verdict.sum.rotate_left(1).wrapping_add(page.sum());
            if let Some(wrong) = page.check(start(self.seed, number, generation)) {
                verdict.nr_wrong_pages += 1;
                verdict.nr_wrong_words += wrong.nr_words;
                if verdict.findings.len() < MAX_FINDINGS {
                    let looks_like = self.guess(number, page);
                    verdict.findings.push(Finding { page: number, generation, wrong, looks_like });
                }
            }
        }
        verdict
    }

    /// Tells what a wrong page holds: zeroes, its own past, another page.
    fn guess(&self, number: usize, page: &Page) -> String {
        if page.0.iter().all(|word| *word == 0) {
            return "zeroes".into();
        }
        let is = |number, generation| page.check(start(self.seed, number, generation)).is_none();
        let now = self.generations.get(number).copied().unwrap_or(0);
        if let Some(old) = (now.saturating_sub(64)..now).rev().find(|old| is(number, *old)) {
            return format!("stale, generation {old}");
        }
        let mut others = self.generations.iter().enumerate();
        match others
            .find(|(other, generation)| page.0.first() == Some(&start(self.seed, *other, **generation)))
        {
            Some((other, _)) => format!("page {other}"),
            None => "no page of ours".into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wrong { word, expected, found, nr_words } = self.wrong;
        write!(
            f,
            "page={} generation={} word={word} expected={expected:#018x} found={found:#018x} wrong_words={nr_words} \
             looks_like=\"{}\"",
            self.page, self.generation, self.looks_like
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirty(memory: &mut Memory, times: usize) {
        (0..times).for_each(|_| memory.dirty_one());
    }

    #[test]
    fn untouched_memory_is_right_however_much_was_written() {
        let mut memory = Memory::fill(7, 16);
        let before = memory.verify();
        dirty(&mut memory, 100);
        let after = memory.verify();
        assert_eq!((before.nr_wrong_pages, after.nr_wrong_pages, memory.nr_writes()), (0, 0, 100));
        assert_ne!(before.sum, after.sum);
    }

    #[test]
    fn a_lost_page_is_found() {
        let mut memory = Memory::fill(7, 16);
        memory.pages[5] = Page::ZERO;
        let verdict = memory.verify();
        assert_eq!((verdict.nr_wrong_pages, verdict.nr_wrong_words), (1, 512));
        assert_eq!((verdict.findings[0].page, verdict.findings[0].looks_like.as_str()), (5, "zeroes"));
    }

    #[test]
    fn two_swapped_pages_are_found() {
        let mut memory = Memory::fill(7, 16);
        memory.pages.swap(3, 9);
        let verdict = memory.verify();
        let told: Vec<_> = verdict.findings.iter().map(|f| (f.page, f.looks_like.as_str())).collect();
        assert_eq!(told, [(3, "page 9"), (9, "page 3")]);
    }

    #[test]
    fn a_stale_page_is_found() {
        let mut memory = Memory::fill(7, 1);
        dirty(&mut memory, 3);
        let old = memory.pages[0].clone();
        dirty(&mut memory, 2);
        memory.pages[0] = old;
        let verdict = memory.verify();
        assert_eq!(
            (verdict.findings[0].generation, verdict.findings[0].looks_like.as_str()),
            (5, "stale, generation 3")
        );
    }

    #[test]
    fn one_wrong_byte_is_told_with_its_page_and_word() {
        let mut memory = Memory::fill(7, 4);
        memory.pages[2].0[77] ^= 0xff00;
        let text = memory.verify().findings[0].to_string();
        assert!(text.starts_with("page=2 generation=0 word=77 expected=0x"), "{text}");
        assert!(text.contains("wrong_words=1"), "{text}");
    }
}
