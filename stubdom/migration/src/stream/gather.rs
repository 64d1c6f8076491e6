//! Fields of a known size out of bytes that arrive cut anywhere.

/// The longest field, in bytes: the image header and the body of X86_TSC_INFO.
const MAX_FIELD_BYTES: usize = 24;

/// Keeps the beginning of a field whose end has not arrived, and counts what was taken.
#[derive(Debug)]
pub(super) struct Gather {
    kept: [u8; MAX_FIELD_BYTES],
    nr_kept: usize, // less than the size of the field that is awaited
    nr_taken: u64,
}

impl Gather {
    pub(super) const fn new() -> Self {
        Self { kept: [0; MAX_FIELD_BYTES], nr_kept: 0, nr_taken: 0 }
    }

    /// Returns how many bytes were taken from the inputs so far.
    pub(super) const fn nr_taken(&self) -> u64 {
        self.nr_taken
    }

    /// Takes the next `N` bytes, or `None` after keeping all of `input` when they have not arrived yet.
    pub(super) fn field<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        const { assert!(N <= MAX_FIELD_BYTES) };
        if self.nr_kept == 0
            && let Some((field, rest)) = input.split_first_chunk::<N>()
        {
            *input = rest;
            self.count(N);
            return Some(*field);
        }
        self.keep(N.saturating_sub(self.nr_kept), input);
        if self.nr_kept < N {
            return None;
        }
        self.nr_kept = 0;
        self.kept.first_chunk::<N>().copied()
    }

    /// Takes between 1 and `most` bytes; `None` when `input` is empty or `most` is 0.
    pub(super) fn some<'i>(&mut self, most: u32, input: &mut &'i [u8]) -> Option<&'i [u8]> {
        let len = input.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let (taken, rest) = input.split_at_checked(len)?;
        *input = rest;
        self.count(len);
        (!taken.is_empty()).then_some(taken)
    }

    /// Counts bytes that went another way.
    pub(super) fn pass(&mut self, nr_bytes: u32) {
        self.nr_taken = self.nr_taken.saturating_add(nr_bytes.into());
    }

    fn keep(&mut self, most: usize, input: &mut &[u8]) {
        let (taken, rest) = input.split_at(input.len().min(most));
        for (to, from) in self.kept.iter_mut().skip(self.nr_kept).zip(taken) {
            *to = *from;
        }
        *input = rest;
        self.nr_kept = self.nr_kept.saturating_add(taken.len());
        self.count(taken.len());
    }

    fn count(&mut self, nr_bytes: usize) {
        self.nr_taken = self.nr_taken.saturating_add(nr_bytes as u64);
    }
}
