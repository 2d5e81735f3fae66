//! Transformed columns to codes, or back to rows of tokens.

use super::columns::{CHUNK, Extremes, Shape, transpose};
use crate::kernels::Affine;
use crate::kernels::cpu::tiles::Line;
use std::arch::x86_64::*;

/// Channels whose codes are transposed at a time: a code each makes four a vector of lanes.
const STRETCH: usize = 64;

/// Groups `[groups][B][16]`.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub(super) values: *const f32,
    pub(super) shape: Shape,
    pub(super) block: usize,
}

/// Where codes go: `[T, stride]`, and numbers for each token.
pub(super) struct Codes<'a> {
    pub(super) affine: Affine,
    pub(super) codes: &'a mut [u8],
    pub(super) stride: usize,
    pub(super) scale: &'a mut [f32],
    pub(super) zero_point: &'a mut [i32],
    pub(super) row_sum: &'a mut [i32],
}

/// What each lane's values are quantized with.
struct Params {
    inverse: [f32; 16],
    zero_point: [i16; 16],
}

/// Quantizes every column. The operations are those of `lanes::quantize_row`, written for integers: a value times the
/// inverse scale is below `2^31` wherever the clip ratio is at least [`super::LEAST_CLIP`], so that it rounds to the same
/// integer in an `i32`, and saturation to 16 and 8 bits is part of the clamp.
///
/// # Safety
/// `columns` can be read, and `out` has a row for each of its tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn quantize(columns: &Columns, extremes: &Extremes, out: Codes<'_>) {
    let params = params(columns.shape, extremes.lanes(), &out.affine, out.scale, out.zero_point);
    // SAFETY: arrays of 16 lanes; the columns by the caller's promise.
    unsafe {
        let inverse = _mm512_loadu_ps(params.inverse.as_ptr());
        // Words are packed four of a row at a time, rows `4 l ..` in lane `l`, and so must their zero points be.
        let wide = _mm512_cvtepi16_epi32(_mm256_loadu_si256(params.zero_point.as_ptr().cast()));
        let zero_point = _mm512_packs_epi32(wide, wide);
        let most = _mm512_set1_epi8(out.affine.max_code() as i8);
        let mut token_sums = [0_i32; 16];
        let end = out.codes.len();
        for group in 0..columns.shape.groups() {
            let mut sum = _mm512_setzero_si512();
            for from in (0..columns.block).step_by(STRETCH) {
                let channels = STRETCH.min(columns.block - from);
                let mut quads = Line([[0.0_f32; 16]; STRETCH / 4]);
                let x = columns.values.add((group * columns.block + from) * 16);
                for (quad, to) in quads.0.iter_mut().enumerate().take(channels / 4) {
                    let codes = four_codes(x.add(quad * 64), inverse, zero_point, most);
                    sum = _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi8(1));
                    _mm512_store_si512(to.as_mut_ptr().cast(), codes);
                }
                let rows = transpose(quads.0.as_ptr().cast(), 16);
                let mask = ((1_u32 << (channels / 4)) - 1) as u16;
                for (lane, row) in rows.iter().enumerate() {
                    let Some((t, block)) = columns.shape.column(group, lane) else { continue };
                    let at = t * out.stride + block * columns.block + from;
                    debug_assert!(at + channels <= end);
                    _mm512_mask_storeu_ps(out.codes.as_mut_ptr().add(at).cast(), mask, *row);
                }
            }
            let mut sums = [0_i32; 16];
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum);
            for (lane, sum) in sums.into_iter().enumerate() {
                if let Some((t, _)) = columns.shape.column(group, lane) {
                    token_sums[t] += sum;
                }
            }
        }
        let tokens = columns.shape.tokens;
        out.row_sum[..tokens].copy_from_slice(&token_sums[..tokens]);
    }
}

/// Scale and zero point of each token to where they go, and of each lane. A token that has none gets those that make every
/// code 0.
fn params(
    shape: Shape,
    [min, max, poison]: [[f32; 16]; 3],
    affine: &Affine,
    scale: &mut [f32],
    zero_point: &mut [i32],
) -> Params {
    let mut params = Params { inverse: [0.0; 16], zero_point: [0; 16] };
    for t in 0..shape.tokens {
        let of = |x: &[f32; 16], more: fn(f32, f32) -> f32| shape.lanes(t).fold(0.0, |a, lane| more(a, x[lane]));
        let row = affine.params(of(&min, f32::min), of(&max, f32::max));
        // A NaN or an infinity has poisoned one of the lanes.
        let finite = shape.lanes(t).all(|lane| poison[lane] == 0.0) && row.scale.is_finite();
        scale[t] = if finite { row.scale } else { f32::NAN };
        zero_point[t] = if finite { i32::from(row.zero_point) } else { 0 };
        if finite {
            for lane in shape.lanes(t) {
                params.inverse[lane] = row.inverse_scale;
                params.zero_point[lane] = i16::from(row.zero_point);
            }
        }
    }
    params
}

/// The codes of four channels, `[16 lanes][4]`.
///
/// # Safety
/// Four rows of 16 can be read at `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn four_codes(x: *const f32, inverse: __m512, zero_point: __m512i, most: __m512i) -> __m512i {
    let round = |row: usize| {
        // SAFETY: by the caller's promise.
        let x = unsafe { _mm512_loadu_ps(x.add(row * 16)) };
        // NaN, and infinity times 0, become the least integer and so code 0.
        _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(x, inverse))
    };
    let low = _mm512_adds_epi16(_mm512_packs_epi32(round(0), round(1)), zero_point);
    let high = _mm512_adds_epi16(_mm512_packs_epi32(round(2), round(3)), zero_point);
    let codes = _mm512_min_epu8(_mm512_packus_epi16(low, high), most);
    // Within 16 bytes: four columns of four channels to rows.
    let order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    _mm512_shuffle_epi8(codes, order)
}

/// The values of every column as rows of tokens `[T, stride]`.
///
/// # Safety
/// `columns` can be read, `rows` written, and they do not overlap.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn rows(columns: &Columns, rows: *mut f32, stride: usize) {
    for group in 0..columns.shape.groups() {
        for chunk in (0..columns.block).step_by(CHUNK) {
            // SAFETY: by the caller's promise.
            unsafe {
                let x = columns.values.add((group * columns.block + chunk) * 16);
                let values = transpose(x, 16);
                for (lane, values) in values.iter().enumerate() {
                    if let Some((t, block)) = columns.shape.column(group, lane) {
                        _mm512_storeu_ps(rows.add(t * stride + block * columns.block + chunk), *values);
                    }
                }
            }
        }
    }
}
