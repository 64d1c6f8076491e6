//! Another order of pages with the same meaning: whoever receives it must end with the same memory.

use crate::{copy, create};
use clap::Args;
use e2e::error::{Doing, Result};
use e2e::savefile::{PAGE_BYTES, Page, Record, SaveFile, kind};
use std::io::Write;
use std::path::Path;

/// What to change.
#[derive(Args, Clone, Debug)]
pub(crate) struct Order {
    /// Pages in a record; by default as many as the file's largest record has.
    #[arg(long)]
    batch: Option<usize>,
    /// Shuffles pages within each batch.
    #[arg(long)]
    shuffle_within: bool,
    /// Shuffles pages across all batches.
    #[arg(long)]
    shuffle_across: bool,
    /// Pages in a thousand that come twice: first with other contents, later with their own.
    #[arg(long, default_value_t = 0)]
    repeat_permille: u64,
    /// Leaves out the pages without data, which name the guest's holes.
    #[arg(long)]
    drop_holes: bool,
    /// Another seed, another order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A page and whether its contents are to be wrong this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    page: Page,
    /// Comes with every bit inverted: the right contents come later.
    inverted: bool,
}

/// Writes the file with its pages in the wanted order.
pub(crate) fn write(save: &SaveFile, order: &Order, out: &Path) -> Result<()> {
    let mut pages = Vec::new();
    let mut largest = 1;
    for record in save.records.iter().filter(|record| record.kind == kind::PAGE_DATA) {
        let named = save.pages(record)?;
        largest = largest.max(named.len());
        pages.extend(named);
    }
    let entries = arrange(&pages, order, order.batch.unwrap_or(largest));
    let batch = order.batch.unwrap_or(largest).max(1);
    let mut to = create(out)?;
    copy(save, 0, save.first_record(), &mut to)?;
    let mut written = false;
    for record in &save.records {
        if record.kind != kind::PAGE_DATA {
            copy(save, record.offset, record.end(), &mut to)?;
        } else if !written {
            entries.chunks(batch).try_for_each(|batch| write_batch(save, batch, &mut to))?;
            written = true;
        }
    }
    copy(save, save.records.last().map_or(0, Record::end), save.len(), &mut to)?;
    to.flush().doing("writing the last bytes")
}

/// The pages in their new order.
fn arrange(pages: &[Page], order: &Order, batch: usize) -> Vec<Entry> {
    let mut dice = Dice(order.seed);
    let mut entries = Vec::new();
    for page in pages.iter().copied().filter(|page| page.data.is_some() || !order.drop_holes) {
        entries.push(Entry { page, inverted: false });
        if page.data.is_some() && dice.below(1000) < order.repeat_permille {
            entries.push(Entry { page, inverted: true });
        }
    }
    if order.shuffle_across {
        dice.shuffle(&mut entries);
    }
    if order.shuffle_within {
        entries.chunks_mut(batch.max(1)).for_each(|batch| dice.shuffle(batch));
    }
    wrong_before_right(&mut entries);
    entries
}

/// Of two versions of a page the inverted one comes first, and versions of the source keep their order.
fn wrong_before_right(entries: &mut [Entry]) {
    let mut places: Vec<(u64, usize)> =
        entries.iter().enumerate().map(|(place, entry)| (entry.page.pfn(), place)).collect();
    places.sort_unstable();
    for places in places.chunk_by(|one, other| one.0 == other.0).filter(|places| places.len() > 1) {
        let mut versions: Vec<Entry> = places.iter().map(|(_, place)| entries[*place]).collect();
        versions.sort_by_key(|entry| (!entry.inverted, entry.page.data));
        places.iter().zip(versions).for_each(|((_, place), version)| entries[*place] = version);
    }
}

fn write_batch(save: &SaveFile, batch: &[Entry], to: &mut impl Write) -> Result<()> {
    let nr_data = batch.iter().filter(|entry| entry.page.data.is_some()).count() as u64;
    let len = 8 + 8 * batch.len() as u64 + nr_data * PAGE_BYTES;
    let mut head = Vec::new();
    head.extend(kind::PAGE_DATA.to_le_bytes());
    head.extend(u32::try_from(len).doing("counting a batch's bytes")?.to_le_bytes());
    head.extend((batch.len() as u64).to_le_bytes());
    batch.iter().for_each(|entry| head.extend(entry.page.word.to_le_bytes()));
    to.write_all(&head).doing("writing a batch")?;
    for (entry, offset) in batch.iter().filter_map(|entry| Some((entry, entry.page.data?))) {
        let mut bytes = save.bytes(offset, PAGE_BYTES)?;
        if entry.inverted {
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
        }
        to.write_all(&bytes).doing("writing a page")?;
    }
    Ok(())
}

/// splitmix64: numbers that look random and repeat from their seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit.max(1)
    }

    /// Fisher and Yates.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = usize::try_from(self.below(last as u64 + 1)).unwrap_or(0);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const PLAIN: Order = Order {
        batch: None,
        shuffle_within: false,
        shuffle_across: false,
        repeat_permille: 0,
        drop_holes: false,
        seed: 1,
    };

    fn pages(count: u64) -> Vec<Page> {
        let hole = |pfn: u64| pfn % 5 == 4;
        let page = |pfn| Page {
            word: if hole(pfn) { pfn | 0xf << 60 } else { pfn },
            data: (!hole(pfn)).then_some(pfn * PAGE_BYTES),
        };
        (0..count).map(page).collect()
    }

    #[test]
    fn shuffled_pages_are_the_same_pages_and_repeat_from_the_seed() {
        let order = Order { shuffle_across: true, ..PLAIN };
        let shuffled = arrange(&pages(100), &order, 10);
        assert_eq!(shuffled, arrange(&pages(100), &order, 10));
        assert_ne!(shuffled, arrange(&pages(100), &Order { seed: 2, ..order }, 10));
        let mut sorted: Vec<Page> = shuffled.iter().map(|entry| entry.page).collect();
        sorted.sort_by_key(Page::pfn);
        assert_eq!(sorted, pages(100));
    }

    #[test]
    fn within_a_batch_pages_stay_in_their_batch() {
        let entries = arrange(&pages(30), &Order { shuffle_within: true, ..PLAIN }, 10);
        for (number, batch) in entries.chunks(10).enumerate() {
            assert!(batch.iter().all(|entry| entry.page.pfn() / 10 == number as u64));
        }
    }

    #[test]
    fn a_repeated_page_comes_right_last() {
        let order = Order { shuffle_across: true, repeat_permille: 500, ..PLAIN };
        let entries = arrange(&pages(200), &order, 10);
        let last: HashMap<u64, Entry> = entries.iter().map(|entry| (entry.page.pfn(), *entry)).collect();
        assert!(entries.len() > 250 && last.len() == 200);
        assert!(last.values().all(|entry| !entry.inverted));
    }

    #[test]
    fn without_holes_every_page_has_data() {
        let entries = arrange(&pages(50), &Order { drop_holes: true, ..PLAIN }, 10);
        assert_eq!(entries.len(), 40);
    }
}
