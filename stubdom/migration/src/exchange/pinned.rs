//! Pages that Xen writes to by machine address and that no hypercall names, known by their look.
//!
//! **Takes** the bytes of a page. **Gives** a guess. **Never** clears a page: one that looks ordinary may be pinned all
//! the same (a guest may keep a control block beside other data), which shows after the exchange only.
//!
//! A guest that registers `vcpu_info` or FIFO event channels gives Xen a page that stays mapped in Xen. Each of the three
//! kinds has a look: `vcpu_info` holds `vcpu_time_info` with a time of the host's clock, an event array is full of masked
//! channels, and a control block is a page of zeroes but for the heads of its queues. Sources: `xen/include/public/xen.h`,
//! `event_channel.h`; Linux masks all events of a new array and gives each control block a page of its own
//! (`drivers/xen/events/events_fifo.c`); `xen/arch/x86/time.c` says what a time can be.

/// Most words of an event array that are not a masked and unused event channel.
const NR_OTHERS: usize = 124;

/// An event channel of a FIFO array that is masked and nothing else (`EVTCHN_FIFO_MASKED`).
const MASKED: u32 = 1 << 30;

/// Tells whether a page looks as if Xen writes to it; `now_ns` is Xen's system time.
pub(super) fn looks_pinned(page: &[u8], now_ns: u64) -> bool {
    is_event_array(page) || is_control_block(page) || has_time(page, now_ns)
}

fn is_event_array(page: &[u8]) -> bool {
    let mut others = page.chunks_exact(4).filter(|word| **word != MASKED.to_le_bytes());
    // Of most pages the first words tell.
    others.nth(NR_OTHERS).is_none()
}

/// Words of `evtchn_fifo_control_block`: ready bits, a reserved word, the heads of 16 queues.
const CONTROL_WORDS: usize = 18;

/// Tells whether the page holds ready bits, heads of queues and nothing else. A head is the last channel that was put in
/// front of its queue, and stays when the queue is empty: once an event was sent, one at least is not zero.
fn is_control_block(page: &[u8]) -> bool {
    const HEAD_BITS: u32 = 17; // EVTCHN_FIFO_LINK_BITS
    let mut words =
        page.chunks_exact(4).map(|word| word.first_chunk().map_or(0, |word| u32::from_le_bytes(*word)));
    let (ready, reserved) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
    let heads = words.by_ref().take(CONTROL_WORDS - 2);
    let (any, all) = heads.fold((0, 0), |(any, all), head| (any | head, all | (head >> HEAD_BITS)));
    ready >> 16 == 0 && reserved == 0 && any != 0 && all == 0 && words.all(|word| word == 0)
}

/// Size of `vcpu_time_info`.
const TIME_BYTES: usize = 32;

fn has_time(page: &[u8], now_ns: u64) -> bool {
    page.windows(TIME_BYTES).step_by(8).any(|bytes| is_time(bytes, now_ns))
}

/// How old `now_ns` may be, in nanoseconds.
const SLACK_NS: u64 = 1_000_000_000;

/// Largest shift either way: that of a counter of 4 MHz or 256 GHz.
const MAX_SHIFT: u8 = 8;

/// Tells whether these are version, padding, the counter at a system time, multiplier, shift, flags and padding. Xen
/// makes the multiplier's highest bit 1. It need not be this host's: a guest may have come with another counter.
fn is_time(bytes: &[u8], now_ns: u64) -> bool {
    // The last word decides almost always, and every place of every page is looked at.
    let end = word(bytes, 3);
    let is_scale = end >> 48 == 0 && end >> 31 & 1 == 1 && {
        let [_, _, _, _, shift, ..] = end.to_le_bytes();
        shift.cast_signed().unsigned_abs() <= MAX_SHIFT
    };
    is_scale && {
        let [version, counter, system_ns] = [0, 1, 2].map(|nr| word(bytes, nr));
        (1..1 << 32).contains(&version)
            && counter != 0
            && (1..=now_ns.saturating_add(SLACK_NS)).contains(&system_ns)
    }
}

/// Reads word `nr` of 8 bytes; one that is missing is 0.
fn word(bytes: &[u8], nr: usize) -> u64 {
    bytes.get(8 * nr..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    const NOW_NS: u64 = 0x2_0000_0000;

    fn page_with_time(end: [u32; 2]) -> Vec<u8> {
        let mut page = vec![0; 4096];
        let words = [8, 0, 0x1234, 1, 0x777, 1, end[0], end[1]];
        let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        page[0x360..0x380].copy_from_slice(&bytes);
        page
    }

    #[test]
    fn a_page_with_a_time_of_the_host_looks_pinned_whatever_the_counter() {
        assert!(looks_pinned(&page_with_time([0x8000_1234, 0x1ff]), NOW_NS), "shift -1, stable");
        assert!(looks_pinned(&page_with_time([0xffff_0000, 1]), NOW_NS));
        assert!(!looks_pinned(&page_with_time([0x8000_1234, 0x1ff]), 0x8000_0000), "a time to come");
        assert!(!looks_pinned(&page_with_time([0x7fff_ffff, 0]), NOW_NS), "no multiplier");
        assert!(!looks_pinned(&page_with_time([0x8000_1234, 9]), NOW_NS), "no shift");
        assert!(!looks_pinned(&page_with_time([0x8000_1234, 1 << 16]), NOW_NS), "no padding");
    }

    #[test]
    fn an_event_array_looks_pinned_though_some_channels_are_in_use() {
        let mut page: Vec<u8> = (0..1024).flat_map(|_| MASKED.to_le_bytes()).collect();
        page[..400].fill(0);
        assert!(looks_pinned(&page, NOW_NS));
        page[..800].fill(0);
        assert!(!looks_pinned(&page, NOW_NS));
    }

    fn page_of_words(words: &[u32]) -> Vec<u8> {
        let mut page: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        page.resize(4096, 0);
        page
    }

    #[test]
    fn a_control_block_looks_pinned_whether_its_queues_are_empty_or_not() {
        let timer_and_default = [0x80, 0, 3, 0, 0, 0, 0, 0, 0, 5];
        assert!(looks_pinned(&page_of_words(&timer_and_default), NOW_NS));
        assert!(looks_pinned(&page_of_words(&[0, 0, 3]), NOW_NS));
    }

    #[test]
    fn a_page_with_more_than_heads_of_queues_is_no_control_block() {
        assert!(!looks_pinned(&page_of_words(&[0x10000, 0, 3]), NOW_NS));
        assert!(!looks_pinned(&page_of_words(&[0, 1, 3]), NOW_NS));
        assert!(!looks_pinned(&page_of_words(&[0, 0, 1 << 17]), NOW_NS));
        let mut beyond = [0; CONTROL_WORDS + 1];
        (beyond[2], beyond[CONTROL_WORDS]) = (3, 1);
        assert!(!looks_pinned(&page_of_words(&beyond), NOW_NS));
    }

    #[test]
    fn ordinary_pages_do_not() {
        assert!(!looks_pinned(&[0; 4096], NOW_NS), "a page of zeroes");
        assert!(!looks_pinned(&[0xff; 4096], NOW_NS));
        assert!(!looks_pinned(&[0x40; 4096], NOW_NS));
    }
}
