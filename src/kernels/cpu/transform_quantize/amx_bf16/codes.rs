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
    pub(super) groups: usize,
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
        for group in 0..columns.groups {
            let lanes = columns.shape.lanes(group);
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
                for (lane, row) in rows.iter().enumerate().take(lanes) {
                    let (t, channel) = columns.shape.column(group, lane, columns.block, from);
                    let at = t * out.stride + channel;
                    debug_assert!(at + channels <= end);
                    _mm512_mask_storeu_ps(out.codes.as_mut_ptr().add(at).cast(), mask, *row);
                }
            }
            let mut sums = [0_i32; 16];
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum);
            token_sums.iter_mut().zip(sums).take(lanes).for_each(|(all, sum)| *all += sum);
        }
        match columns.shape {
            Shape::Tokens { count } => out.row_sum[..count].copy_from_slice(&token_sums[..count]),
            Shape::Blocks { .. } => out.row_sum[0] = token_sums.iter().sum(),
        }
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
    let mut token = |t: usize, min: f32, max: f32, finite: bool| {
        let row = affine.params(min, max);
        let finite = finite && row.scale.is_finite();
        scale[t] = if finite { row.scale } else { f32::NAN };
        zero_point[t] = if finite { i32::from(row.zero_point) } else { 0 };
        if finite { (row.inverse_scale, i16::from(row.zero_point)) } else { (0.0, 0) }
    };
    match shape {
        Shape::Tokens { count } => {
            for t in 0..count {
                (params.inverse[t], params.zero_point[t]) = token(t, min[t], max[t], poison[t] == 0.0);
            }
        }
        Shape::Blocks { .. } => {
            let min = min.iter().fold(0.0_f32, |a, &b| a.min(b));
            let max = max.iter().fold(0.0_f32, |a, &b| a.max(b));
            let (inverse, zero_point) = token(0, min, max, poison.iter().all(|&p| p == 0.0));
            params = Params { inverse: [inverse; 16], zero_point: [zero_point; 16] };
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
    for group in 0..columns.groups {
        for chunk in (0..columns.block).step_by(CHUNK) {
            // SAFETY: by the caller's promise.
            unsafe {
                let x = columns.values.add((group * columns.block + chunk) * 16);
                let values = transpose(x, 16);
                for (lane, values) in values.iter().enumerate().take(columns.shape.lanes(group)) {
                    let (t, channel) = columns.shape.column(group, lane, columns.block, chunk);
                    _mm512_storeu_ps(rows.add(t * stride + channel), *values);
                }
            }
        }
    }
}
