//! Where the columns of a rotation come from.

use super::super::TransformQuantize;
use super::columns::{OCTET, Shape, side_by_side, transpose_octet, two_halves};
use super::split::default_nan;
use crate::kernels::cpu::lanes::{self, Avx512, Lanes};
use std::arch::x86_64::*;

/// A source of columns.
pub(super) trait Input {
    /// Eight channels of a group from `channel` on, which is a multiple of eight: a vector of lanes each, and 0 in lanes
    /// without a column. The default NaN stands for every NaN: rounding to bfloat16 by an addition of integers would make
    /// numbers of others.
    ///
    /// # Safety
    /// The machine has AVX-512, and the operands, the group and the channels are there.
    unsafe fn octet(&self, group: usize, channel: usize) -> [__m512; OCTET];
}

/// Groups of tokens, permuted.
pub(super) struct Permuted<'a> {
    pub(super) from: *const f32,
    /// `[K]`.
    pub(super) order: &'a [u32],
    pub(super) block: usize,
}

impl Input for Permuted<'_> {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn octet(&self, group: usize, channel: usize) -> [__m512; OCTET] {
        let order = self.order[group * self.block + channel..].first_chunk::<OCTET>();
        let mut octet = [_mm512_setzero_ps(); OCTET];
        for (octet, &row) in octet.iter_mut().zip(order.into_iter().flatten()) {
            // SAFETY: an order names rows of `from`.
            *octet = unsafe { _mm512_loadu_ps(self.from.add(row as usize * 16)) };
        }
        octet
    }
}

/// Groups of blocks, permuted.
pub(super) struct Gathered<'a> {
    pub(super) from: *const f32,
    /// `[groups][B][16]`, each an offset into `from`.
    pub(super) table: &'a [u32],
    pub(super) block: usize,
}

impl Input for Gathered<'_> {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn octet(&self, group: usize, channel: usize) -> [__m512; OCTET] {
        let table = &self.table[(group * self.block + channel) * 16..][..OCTET * 16];
        let mut octet = [_mm512_setzero_ps(); OCTET];
        for (octet, row) in octet.iter_mut().zip(table.chunks_exact(16)) {
            // SAFETY: a table names values of `from`, 16 a row.
            *octet = unsafe { _mm512_i32gather_ps::<4>(_mm512_loadu_si512(row.as_ptr().cast()), self.from) };
        }
        octet
    }
}

/// Up to 16 tokens as rows, the first rotation's input: the norm or the product before it and the smoothing are done on the
/// way.
pub(super) struct Rows<'a, O> {
    operands: O,
    inverse_smooth: Option<&'a [f32]>,
    shape: Shape,
    /// Values, and input channels, between two groups.
    group: usize,
    /// Values, and input channels, between two lanes.
    lane: [usize; 2],
}

/// What a [`Source`](super::super::Source) reads, from the first of the tokens on.
pub(super) trait Operands {
    /// Values of a token.
    fn width(&self) -> usize;

    /// What becomes of eight channels of the lanes that are [`side_by_side`] in vector `i`: `rows` is where the values of
    /// their tokens lie, `channels` where the numbers for each input channel do.
    ///
    /// # Safety
    /// The machine has AVX-512, and the values are there.
    unsafe fn pair<const ALL: bool>(&self, i: usize, rows: Places<ALL>, channels: Places<ALL>) -> __m512;
}

impl<'a, O: Operands> Rows<'a, O> {
    pub(super) fn new(plan: &'a TransformQuantize, operands: O, shape: Shape) -> Self {
        let block = plan.block;
        let (group, lane) = match shape {
            Shape::Tokens { .. } => (block, [operands.width(), 0]),
            Shape::Blocks { .. } => (16 * block, [block; 2]),
        };
        Self { operands, inverse_smooth: plan.inverse_smooth.as_deref(), shape, group, lane }
    }

    /// [`Input::octet`] where `ALL` lanes hold a column, or the first `lanes` do.
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn lanes<const ALL: bool>(&self, group: usize, channel: usize, lanes: usize) -> [__m512; OCTET] {
        let at = group * self.group + channel;
        let mut v = [_mm512_setzero_ps(); 8];
        for (i, v) in v.iter_mut().enumerate() {
            let rows = Places::<ALL>::new(i, lanes, at, self.lane[0]);
            let channels = Places::<ALL>::new(i, lanes, at, self.lane[1]);
            // SAFETY: by the caller's promise.
            unsafe {
                *v = self.operands.pair(i, rows, channels);
                if let Some(factor) = self.inverse_smooth {
                    *v = _mm512_mul_ps(*v, channels.load(factor));
                }
            }
            *v = default_nan(*v);
        }
        transpose_octet(&v)
    }
}

impl<O: Operands> Input for Rows<'_, O> {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn octet(&self, group: usize, channel: usize) -> [__m512; OCTET] {
        // SAFETY: by the caller's promise.
        unsafe {
            match self.shape.lanes(group) {
                16 => self.lanes::<true>(group, channel, 16),
                lanes => self.lanes::<false>(group, channel, lanes),
            }
        }
    }
}

/// Where eight values of each of two lanes begin in an operand. Of a lane without a column, which there is only where not
/// `ALL` lanes hold one, they are zeros.
#[derive(Clone, Copy)]
pub(super) struct Places<const ALL: bool> {
    at: [usize; 2],
    there: [bool; 2],
}

impl<const ALL: bool> Places<ALL> {
    /// Of the lanes in vector `i`, `step` apart from `at` on.
    #[inline(always)]
    fn new(i: usize, lanes: usize, at: usize, step: usize) -> Self {
        let [a, b] = side_by_side(i);
        Self { at: [at + a * step, at + b * step], there: [a < lanes, b < lanes] }
    }

    /// # Safety
    /// The machine has AVX-512, and the values are there.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn load(self, x: &[f32]) -> __m512 {
        static ZEROS: [f32; OCTET] = [0.0; OCTET];
        let [mut a, mut b] = [x.as_ptr().wrapping_add(self.at[0]), x.as_ptr().wrapping_add(self.at[1])];
        if !(ALL || self.there[0]) {
            a = ZEROS.as_ptr();
        }
        if !(ALL || self.there[1]) {
            b = ZEROS.as_ptr();
        }
        // SAFETY: by the caller's promise.
        unsafe { two_halves(a, b) }
    }
}

/// `[T, K]`.
pub(super) struct Tokens<'a> {
    pub(super) x: &'a [f32],
    pub(super) channels: usize,
}

impl Operands for Tokens<'_> {
    fn width(&self) -> usize {
        self.channels
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn pair<const ALL: bool>(&self, _: usize, rows: Places<ALL>, _: Places<ALL>) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe { rows.load(self.x) }
    }
}

/// `x` `[T, K]`, `weight` `[K]`, and the factors of two lanes in each vector.
pub(super) struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    factors: [__m512; 8],
}

impl<'a> RmsNorm<'a> {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn new(x: &'a [f32], weight: &'a [f32], epsilon: f32, shape: Shape) -> Self {
        // SAFETY: this function has the features.
        let l = unsafe { Avx512::new() };
        let k = weight.len();
        let mut factor = [0.0; 16];
        let (fours, rest) = x.split_at(x.len() / (4 * k) * (4 * k));
        let (of_fours, of_rest) = factor.split_at_mut(fours.len() / k);
        for (factors, x) in of_fours.as_chunks_mut().0.iter_mut().zip(fours.chunks_exact(4 * k)) {
            *factors = lanes::rms_factors(l, [&x[..k], &x[k..2 * k], &x[2 * k..3 * k], &x[3 * k..]], epsilon);
        }
        for (factor, x) in of_rest.iter_mut().zip(rest.chunks_exact(k)) {
            [*factor] = lanes::rms_factors(l, [x], epsilon);
        }
        if let Shape::Blocks { .. } = shape {
            factor = [factor[0]; 16];
        }
        let mut factors = [_mm512_setzero_ps(); 8];
        for (i, factors) in factors.iter_mut().enumerate() {
            let [a, b] = side_by_side(i);
            *factors = _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(factor[a]), _mm512_set1_ps(factor[b]));
        }
        Self { x, weight, factors }
    }
}

impl Operands for RmsNorm<'_> {
    fn width(&self) -> usize {
        self.weight.len()
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn pair<const ALL: bool>(&self, i: usize, rows: Places<ALL>, channels: Places<ALL>) -> __m512 {
        // SAFETY: by the caller's promise.
        let (x, weight) = unsafe { (rows.load(self.x), channels.load(self.weight)) };
        _mm512_mul_ps(_mm512_mul_ps(x, self.factors[i]), weight)
    }
}

/// `[T, 2 K]`, gate in the first half of each row.
pub(super) struct SiluMul<'a> {
    pub(super) gate_up: &'a [f32],
    pub(super) channels: usize,
}

impl Operands for SiluMul<'_> {
    fn width(&self) -> usize {
        2 * self.channels
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn pair<const ALL: bool>(&self, _: usize, rows: Places<ALL>, _: Places<ALL>) -> __m512 {
        // SAFETY: by the caller's promise; this function has the features.
        unsafe {
            let l = Avx512::new();
            let (gate, up) = (rows.load(self.gate_up), rows.load(&self.gate_up[self.channels..]));
            l.mul(lanes::silu(l, gate), up)
        }
    }
}
