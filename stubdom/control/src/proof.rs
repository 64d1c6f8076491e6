//! The token that opens a stream: gathered whole, then compared once.
//!
//! **Takes** the first bytes of a connection. **Gives** one verdict on all of them. **Never** lets the other end see how
//! much of a wrong token was right, by when it is turned away or by the time that the comparison takes.

use crate::TOKEN_BYTES;
use core::hint::black_box;

/// What has come of a connection's token.
#[derive(Clone, Debug)]
pub struct Proof {
    expected: [u8; TOKEN_BYTES],
    got: [u8; TOKEN_BYTES],
    nr_got: usize,
    is_proven: bool,
}

impl Proof {
    /// Expects this token.
    pub const fn new(expected: [u8; TOKEN_BYTES]) -> Self {
        Self { expected, got: [0; TOKEN_BYTES], nr_got: 0, is_proven: false }
    }

    /// Takes the token's part of what has come; returns how many bytes that was.
    ///
    /// # Errors
    /// The token is complete and wrong; the next connection begins anew.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, WrongToken> {
        let room = self.got.get_mut(self.nr_got..).unwrap_or_default();
        let nr_taken = room.len().min(bytes.len());
        room.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = *byte);
        self.nr_got = self.nr_got.saturating_add(nr_taken);
        if self.nr_got == TOKEN_BYTES && !self.is_proven {
            let differences =
                self.expected.iter().zip(&self.got).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
            if differences != 0 {
                self.restart();
                return Err(WrongToken);
            }
            self.is_proven = true;
        }
        Ok(nr_taken)
    }

    /// Tells whether the whole token has come and was right.
    pub const fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// Forgets what has come: the connection that it came by is over.
    pub const fn restart(&mut self) {
        self.got = [0; TOKEN_BYTES];
        self.nr_got = 0;
        self.is_proven = false;
    }
}

/// The connection did not open with the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongToken;

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: [u8; TOKEN_BYTES] = *b"0123456789abcdef0123456789abcdef";

    #[test]
    fn the_token_is_taken_in_any_pieces_and_no_byte_more() {
        for piece in [1, 5, 31, 32] {
            let mut proof = Proof::new(TOKEN);
            for bytes in TOKEN.chunks(piece) {
                assert!(!proof.is_proven());
                assert_eq!(proof.take(bytes), Ok(bytes.len()));
            }
            assert!(proof.is_proven());
            assert_eq!(proof.take(b"the stream"), Ok(0));
        }
        let mut proof = Proof::new(TOKEN);
        assert_eq!(proof.take(&[TOKEN.as_slice(), b"the stream"].concat()), Ok(TOKEN_BYTES));
    }

    #[test]
    fn a_wrong_byte_shows_only_with_the_last() {
        for wrong in 0..TOKEN_BYTES {
            let mut token = TOKEN;
            token[wrong] ^= 0x10;
            let mut proof = Proof::new(TOKEN);
            for byte in &token[..TOKEN_BYTES - 1] {
                assert_eq!(proof.take(&[*byte]), Ok(1), "byte {wrong} is wrong");
            }
            assert_eq!(proof.take(&token[TOKEN_BYTES - 1..]), Err(WrongToken));
            assert!(!proof.is_proven());
            assert_eq!(proof.take(&TOKEN), Ok(TOKEN_BYTES), "the next one begins anew");
            assert!(proof.is_proven());
        }
    }

    #[test]
    fn a_connection_that_ends_early_leaves_nothing_to_the_next() {
        let mut proof = Proof::new(TOKEN);
        assert_eq!(proof.take(&TOKEN[..20]), Ok(20));
        proof.restart();
        assert_eq!(proof.take(&TOKEN[20..]), Ok(12));
        assert!(!proof.is_proven());
    }
}
