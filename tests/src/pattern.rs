//! What the witness in a guest writes to its pages, as seen from outside (`tests/witness/src/pattern.rs`).

/// By how much each 64-bit word of a page is more than the one before.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// So many words in a row, each one step more than the last, are nobody's chance.
const MIN_WORDS: usize = 8;

/// Tells whether a page holds what a witness has written, or a part of it.
pub fn is_witnessed(page: &[u8]) -> bool {
    let (words, _) = page.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let steps = words.chunk_by(|one, next| one.wrapping_add(STEP) == *next);
    steps.into_iter().any(|run| run.len() >= MIN_WORDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(nr_words: u64) -> Vec<u8> {
        let word = |nr: u64| if nr < nr_words { 7_u64.wrapping_add(nr.wrapping_mul(STEP)) } else { nr };
        (0..512).flat_map(|nr| word(nr).to_le_bytes()).collect()
    }

    #[test]
    fn a_page_of_the_witness_is_known_whole_and_in_part() {
        assert!(is_witnessed(&page(512)) && is_witnessed(&page(8)));
        assert!(!is_witnessed(&page(7)) && !is_witnessed(&[0; 4096]));
    }
}
