//! `f32` as bfloat16.

use std::arch::x86_64::*;

/// Half a unit in the last place of a bfloat16, in the bits of an `f32`.
const HALF: i32 = 0x8000;

/// The bits of the bfloat16 that is nearest to `x`, ties away from zero: within `2^-8 |x|`. A number that rounds beyond the largest
/// one becomes infinity.
pub(super) fn round(x: f32) -> u16 {
    (x.to_bits().wrapping_add(HALF as u32) >> 16) as u16
}

/// [`round`] of two vectors of lanes: pairs, `a` first. A NaN stays one when its lower 16 bits are 0, as those of the default NaN are
/// and those that come from tiles of bfloat16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn round_pairs(a: __m512, b: __m512) -> __m512i {
    let (half, mask) = (_mm512_set1_epi32(HALF), _mm512_set1_epi32(0xffff_0000_u32 as i32));
    let round = |x: __m512| _mm512_add_epi32(_mm512_castps_si512(x), half);
    // Where the mask is set `b`, elsewhere `a`.
    _mm512_ternarylogic_epi32::<0xca>(mask, round(b), _mm512_srli_epi32::<16>(round(a)))
}

/// The default NaN for every NaN, and every number as it is.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn default_nan(x: __m512) -> __m512 {
    // A digit for each class of numbers, quiet and signalling NaN last: 3 is the default NaN, 1 the number itself.
    _mm512_fixupimm_ps::<0>(x, x, _mm512_set1_epi32(0x1111_1133))
}
