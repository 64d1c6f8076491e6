//! Choices drawn from bytes, and from the bytes' own generator when they are used up: so few bytes make a long story, and the
//! same bytes always the same.

/// A source of choices.
#[derive(Clone, Debug)]
pub struct Choices<'a> {
    bytes: &'a [u8],
    state: u64,
}

impl<'a> Choices<'a> {
    /// Begins with these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        // FNV-1a; the generator never leaves the state 0.
        let mix = |state: u64, byte: &u8| (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self { bytes, state: bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix) | 1 }
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        if let Some((first, rest)) = self.bytes.split_first() {
            self.bytes = rest;
            return *first;
        }
        // xorshift64* (Vigna 2016)
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let [.., high] = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        high
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        u64::from_le_bytes([(); 8].map(|()| self.byte()))
    }

    /// A number below `end`, or 0. Takes as many bytes as `end` needs.
    pub fn below(&mut self, end: u64) -> u64 {
        let nr_bytes = (64 - end.leading_zeros()).div_ceil(8);
        let number = (0..nr_bytes).fold(0_u64, |number, _| number << 8 | u64::from(self.byte()));
        number.checked_rem(end).unwrap_or(0)
    }

    /// A place in something of this length.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// Yes, once in so many.
    pub fn one_in(&mut self, nr: u64) -> bool {
        self.below(nr) == 0
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        all.get(self.index(all.len())).copied()
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }
}
