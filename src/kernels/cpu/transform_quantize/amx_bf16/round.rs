//! `f32` as bfloat16, or as the sum of two.

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

/// The bits of the two bfloat16 whose sum is nearly `x`: [`round`] of it and of what that leaves. Both errors are at most `2^-8` of
/// what is rounded, and the difference in between is exact, so that the sum is within `2^-16 |x|`. Where the first is infinity the
/// second is, too, or NaN.
pub(super) fn split(x: f32) -> (u16, u16) {
    let high = round(x);
    (high, round(x - f32::from_bits(u32::from(high) << 16)))
}

/// [`split`] of two vectors of lanes: pairs of high parts and pairs of low parts, as [`round_pairs`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn split_pairs(a: __m512, b: __m512) -> (__m512i, __m512i) {
    let (half, mask) = (_mm512_set1_epi32(HALF), _mm512_set1_epi32(0xffff_0000_u32 as i32));
    let high = |x: __m512| _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), mask);
    let (a_high, b_high) = (high(a), high(b));
    let low = round_pairs(_mm512_sub_ps(a, _mm512_castsi512_ps(a_high)), _mm512_sub_ps(b, _mm512_castsi512_ps(b_high)));
    (_mm512_or_si512(_mm512_srli_epi32::<16>(a_high), b_high), low)
}

/// The default NaN for every NaN, and every number as it is.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn default_nan(x: __m512) -> __m512 {
    // A digit for each class of numbers, quiet and signalling NaN last: 3 is the default NaN, 1 the number itself.
    _mm512_fixupimm_ps::<0>(x, x, _mm512_set1_epi32(0x1111_1133))
}
