//! Pages that Xen writes to by machine address and that no hypercall names, known by their look.
//!
//! **Takes** the bytes of a page. **Gives** a guess. **Never** clears a page: one that looks ordinary may be pinned all
//! the same (the control blocks of FIFO event channels are mostly zero), which shows after the exchange only.
//!
//! A guest that registers `vcpu_info` or event arrays gives Xen a page that stays mapped in Xen. Two of the three kinds
//! have a look: `vcpu_info` holds `vcpu_time_info` with the host's clock scale, and an event array is full of masked
//! channels. Sources: `xen/include/public/xen.h`, `event_channel.h`; Linux masks all events of a new array.

/// Words of a page that must be masked and unused event channels for it to look like an event array.
const NR_MASKED: usize = 900;

/// An event channel of a FIFO array that is masked and nothing else (`EVTCHN_FIFO_MASKED`).
const MASKED: u32 = 1 << 30;

/// The host's clock scale, as it stands in everybody's `vcpu_time_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockScale {
    /// `tsc_to_system_mul`.
    pub mul: u32,
    /// `tsc_shift`.
    pub shift: i8,
}

/// Tells whether a page looks as if Xen writes to it.
pub fn looks_pinned(page: &[u8], scale: ClockScale) -> bool {
    is_event_array(page) || page.windows(TIME_BYTES).step_by(8).any(|bytes| is_time(bytes, scale))
}

/// Size of `vcpu_time_info`.
const TIME_BYTES: usize = 32;

fn is_event_array(page: &[u8]) -> bool {
    page.chunks_exact(4).filter(|word| **word == MASKED.to_le_bytes()).count() >= NR_MASKED
}

/// Tells whether these are version, padding, two times, multiplier, shift, flags and padding. The multiplier may be
/// off by a thousandth: Xen calibrates it for each processor.
fn is_time(bytes: &[u8], scale: ClockScale) -> bool {
    let word =
        |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word));
    let byte = |at: usize| bytes.get(at).copied().unwrap_or_default();
    let version_and_times =
        word(0) != 0 && word(4) == 0 && (word(8), word(12)) != (0, 0) && (word(16), word(20)) != (0, 0);
    let is_scale =
        word(24).abs_diff(scale.mul) <= scale.mul / 1000 && byte(28) == scale.shift.cast_unsigned();
    version_and_times && is_scale && byte(30) == 0 && byte(31) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    const SCALE: ClockScale = ClockScale { mul: 0x8000_1234, shift: -1 };

    fn page_with_time(mul: u32) -> Vec<u8> {
        let mut page = vec![0; 4096];
        let words = [8, 0, 0x1234, 1, 0x777, 2, mul, 0x0000_01ff];
        let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        page[0x360..0x380].copy_from_slice(&bytes);
        page
    }

    #[test]
    fn a_page_with_the_clock_in_it_looks_pinned() {
        assert!(looks_pinned(&page_with_time(SCALE.mul), SCALE));
        assert!(looks_pinned(&page_with_time(SCALE.mul + 100), SCALE));
        assert!(!looks_pinned(&page_with_time(SCALE.mul / 2), SCALE));
    }

    #[test]
    fn an_event_array_looks_pinned_though_some_channels_are_in_use() {
        let mut page: Vec<u8> = (0..1024).flat_map(|_| MASKED.to_le_bytes()).collect();
        page[..400].fill(0);
        assert!(looks_pinned(&page, SCALE));
        page[..800].fill(0);
        assert!(!looks_pinned(&page, SCALE));
    }

    #[test]
    fn ordinary_pages_do_not() {
        assert!(!looks_pinned(&[0; 4096], SCALE));
        assert!(!looks_pinned(&[0xff; 4096], SCALE));
        assert!(!looks_pinned(&[0x40; 4096], SCALE));
    }
}
