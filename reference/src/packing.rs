//! Codes in 32-bit words, as a checkpoint stores them.

/// Codes in one word: 8 of up to 4 bits (each in a nibble), 4 of 5 to 8 bits (each in a byte).
fn codes_per_word(bits: u32) -> usize {
    assert!((2..=8).contains(&bits), "bits must be 2 to 8, got {bits}");
    if bits <= 4 { 8 } else { 4 }
}

/// Words of one packed row of `k` codes of `bits` bits.
///
/// # Panics
/// When `bits` is outside 2..=8.
#[must_use]
pub fn row_words(k: usize, bits: u32) -> usize {
    k.div_ceil(codes_per_word(bits))
}

/// Packs one row of codes into little-endian words: code `i` at bit `4 i` of the row (low nibble first) for up to 4 bits,
/// at bit `8 i` for wider codes. The row is padded with code 0 to a whole word. Zero points are packed the same way,
/// along the output channels.
///
/// # Panics
/// When `bits` is outside 2..=8 or a code does not fit `bits` bits.
#[must_use]
pub fn pack_row(codes: &[u8], bits: u32) -> Vec<u32> {
    let per_word = codes_per_word(bits);
    let width = 32 / per_word;
    let mut words = vec![0_u32; row_words(codes.len(), bits)];
    for (i, &code) in codes.iter().enumerate() {
        assert!(u32::from(code) < (1 << bits), "code {code} does not fit {bits} bits");
        words[i / per_word] |= u32::from(code) << (width * (i % per_word));
    }
    words
}

/// The first `k` codes of a packed row.
///
/// # Panics
/// When `bits` is outside 2..=8 or `words` is not [`row_words`]`(k, bits)` long.
#[must_use]
pub fn unpack_row(words: &[u32], bits: u32, k: usize) -> Vec<u8> {
    assert_eq!(words.len(), row_words(k, bits), "words of one row");
    let per_word = codes_per_word(bits);
    let width = 32 / per_word;
    let mask = (1_u64 << width) - 1;
    (0..k).map(|i| (u64::from(words[i / per_word]) >> (width * (i % per_word)) & mask) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_lie_low_first() {
        assert_eq!(pack_row(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 4), [0x8765_4321, 0x9]);
        assert_eq!(pack_row(&[3, 0, 1], 2), [0x103]);
    }

    #[test]
    fn wide_codes_take_a_byte() {
        assert_eq!(pack_row(&[0x11, 0x22, 0x1f, 0x04, 0x05], 6), [0x041f_2211, 0x05]);
        assert_eq!(pack_row(&[255, 254], 8), [0xfeff]);
    }

    #[test]
    fn an_empty_row_has_no_words() {
        assert_eq!(pack_row(&[], 4), [0_u32; 0]);
        assert_eq!(unpack_row(&[], 4, 0), [0_u8; 0]);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_code_that_is_too_wide_is_refused() {
        let _ = pack_row(&[8], 3);
    }
}
