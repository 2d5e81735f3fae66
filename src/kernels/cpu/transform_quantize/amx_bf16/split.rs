//! An `f32` as the sum of two bfloat16.

use std::arch::x86_64::*;

/// Half a unit in the last place of a bfloat16, in the bits of an `f32`.
const HALF: i32 = 0x8000;

/// The bits of the two bfloat16 whose sum is nearly `x`: to nearest, ties away from zero. Both errors are at most `2^-8` of
/// what is rounded, and the difference in between is exact, so that the sum is within `2^-16 |x|`. A number that rounds
/// beyond the largest bfloat16 becomes infinity and its difference NaN.
pub(super) fn split(x: f32) -> (u16, u16) {
    let round = |x: f32| (x.to_bits().wrapping_add(HALF as u32) >> 16) as u16;
    let high = round(x);
    (high, round(x - f32::from_bits(u32::from(high) << 16)))
}

/// [`split`] of two vectors of lanes: pairs of high parts and pairs of low parts, `a` first. A NaN stays one when its lower
/// 16 bits are 0, as those of the default NaN are and those that come from tiles of bfloat16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn split_pairs(a: __m512, b: __m512) -> (__m512i, __m512i) {
    let (half, mask) = (_mm512_set1_epi32(HALF), _mm512_set1_epi32(0xffff_0000_u32 as i32));
    let round = |x: __m512| _mm512_add_epi32(_mm512_castps_si512(x), half);
    let (a_high, b_high) = (_mm512_and_si512(round(a), mask), _mm512_and_si512(round(b), mask));
    let a_low = round(_mm512_sub_ps(a, _mm512_castsi512_ps(a_high)));
    let b_low = round(_mm512_sub_ps(b, _mm512_castsi512_ps(b_high)));
    let high = _mm512_or_si512(_mm512_srli_epi32::<16>(a_high), b_high);
    // Where the mask is set `b`, elsewhere `a`.
    let low = _mm512_ternarylogic_epi32::<0xca>(mask, b_low, _mm512_srli_epi32::<16>(a_low));
    (high, low)
}

/// The default NaN for every NaN, and every number as it is.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn default_nan(x: __m512) -> __m512 {
    // A digit for each class of numbers, quiet and signalling NaN last: 3 is the default NaN, 1 the number itself.
    _mm512_fixupimm_ps::<0>(x, x, _mm512_set1_epi32(0x1111_1133))
}
