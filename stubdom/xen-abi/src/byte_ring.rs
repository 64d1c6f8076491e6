//! Index arithmetic of byte rings with free-running 32-bit indices (console, xenstore): pure.

/// A run of bytes in a ring that does not wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it starts in the ring's buffer.
    pub offset: usize,
    /// Its length in bytes.
    pub len: usize,
}

/// Returns how many bytes lie between the indices, or `None` if the peer's index makes no sense.
pub fn nr_filled(cons: u32, prod: u32, size: usize) -> Option<usize> {
    let filled = prod.wrapping_sub(cons) as usize;
    (filled <= size).then_some(filled)
}

/// Returns the first run to write at `prod`, at most `wanted` bytes; empty if the ring is full.
///
/// `size` is a power of two. `None` if the peer's index makes no sense.
pub fn writable(cons: u32, prod: u32, size: usize, wanted: usize) -> Option<Run> {
    let free = size - nr_filled(cons, prod, size)?;
    Some(run(prod, size, free.min(wanted)))
}

/// Returns the first run to read at `cons`, at most `wanted` bytes; empty if the ring is.
///
/// `size` is a power of two. `None` if the peer's index makes no sense.
pub fn readable(cons: u32, prod: u32, size: usize, wanted: usize) -> Option<Run> {
    Some(run(cons, size, nr_filled(cons, prod, size)?.min(wanted)))
}

fn run(index: u32, size: usize, len: usize) -> Run {
    let offset = index as usize % size;
    Run { offset, len: len.min(size - offset) }
}

/// Returns `index` moved on by `len` bytes, which is at most a ring's size.
pub fn advance(index: u32, len: usize) -> u32 {
    index.wrapping_add(u32::try_from(len).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_stops_at_the_end_of_the_buffer() {
        assert_eq!(writable(1000, 1020, 1024, 100), Some(Run { offset: 1020, len: 4 }));
        assert_eq!(readable(1020, 1030, 1024, 100), Some(Run { offset: 1020, len: 4 }));
        assert_eq!(readable(1024, 1030, 1024, 100), Some(Run { offset: 0, len: 6 }));
    }

    #[test]
    fn indices_run_freely_over_the_end_of_their_type() {
        let cons = u32::MAX - 1;
        assert_eq!(nr_filled(cons, 3, 1024), Some(5));
        assert_eq!(readable(cons, 3, 1024, 9), Some(Run { offset: 1022, len: 2 }));
        assert_eq!(advance(cons, 5), 3);
    }

    #[test]
    fn a_full_ring_takes_nothing_and_an_empty_one_gives_nothing() {
        assert_eq!(writable(0, 1024, 1024, 1), Some(Run { offset: 0, len: 0 }));
        assert_eq!(readable(7, 7, 1024, 1), Some(Run { offset: 7, len: 0 }));
    }

    #[test]
    fn an_index_that_makes_no_sense_is_refused() {
        assert_eq!(nr_filled(1, 0, 1024), None);
        assert_eq!(writable(0, 1025, 1024, 1), None);
        assert_eq!(readable(0, 1025, 1024, 1), None);
    }
}
