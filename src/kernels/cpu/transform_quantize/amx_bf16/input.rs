//! Where the columns of a rotation come from.

use super::super::TransformQuantize;
use super::columns::{CHUNK, OCTET, Shape, side_by_side, transpose_octet, two_halves};
use super::round::default_nan;
use super::silu::silu;
use crate::kernels::cpu::lanes::{self, Avx512};
use std::arch::x86_64::*;

/// A source of columns. The default NaN stands for every NaN: rounding to bfloat16 by an addition of integers would make numbers
/// of others.
pub(super) trait Input {
    /// Puts 16 channels from `channel` on of lane `lane` and the next one to `staged`, `[2][16]` on a cache line, where columns
    /// are made of rows. `channel` is a multiple of 16.
    ///
    /// # Safety
    /// The machine has AVX-512, what is read is there, and `staged` can be written.
    unsafe fn stage(&self, _group: usize, _channel: usize, _lane: usize, _staged: *mut f32) {}

    /// Eight channels of a group from `channel` on, which is a multiple of eight: a vector of lanes each. `staged` is where they
    /// lie in what has been staged, `[16][16]`. A lane without a column must not widen what the lanes of its token hold.
    ///
    /// # Safety
    /// As [`Self::stage`], which has been called for all lanes of these channels.
    unsafe fn octet(&self, group: usize, channel: usize, staged: *const f32) -> [__m512; OCTET];
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
    unsafe fn octet(&self, group: usize, channel: usize, _: *const f32) -> [__m512; OCTET] {
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
    unsafe fn octet(&self, group: usize, channel: usize, _: *const f32) -> [__m512; OCTET] {
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
/// way. Rows are read by whole cache lines, each once: those of 16 tokens, often a multiple of 4 KiB apart, would not stay.
pub(super) struct Rows<'a, O> {
    operands: O,
    inverse_smooth: Option<&'a [f32]>,
    /// Values, and input channels, between two groups.
    group: usize,
    /// Where the lanes of a group begin, and of the last one, which may have fewer: there the last column stands in the rest.
    values: [[usize; 16]; 2],
    /// The same for numbers of input channels.
    channels: [[usize; 16]; 2],
    last: usize,
}

/// What a [`Source`](super::super::Source) reads, from the first of the tokens on.
pub(super) trait Operands {
    /// Values of a token.
    fn width(&self) -> usize;

    /// What becomes of 16 channels of a lane's token: `at` is where its values lie, `channels` where the numbers for each
    /// input channel do.
    ///
    /// # Safety
    /// The machine has AVX-512, and the values are there.
    unsafe fn row(&self, lane: usize, at: usize, channels: usize) -> __m512;
}

impl<'a, O: Operands> Rows<'a, O> {
    pub(super) fn new(plan: &'a TransformQuantize, operands: O, shape: Shape) -> Self {
        let (block, last) = (plan.block, shape.groups() - 1);
        let starts = |step: usize| {
            [0, last].map(|group| {
                std::array::from_fn(|lane| {
                    let (token, of) = shape.place(group, lane);
                    let of = of.min(shape.blocks - 1) - group * shape.span();
                    token.min(shape.tokens - 1) * step + of * block
                })
            })
        };
        let inverse_smooth = plan.inverse_smooth.as_deref();
        let (values, channels) = (starts(operands.width()), starts(0));
        Self { operands, inverse_smooth, group: shape.span() * block, values, channels, last }
    }
}

impl<O: Operands> Input for Rows<'_, O> {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn stage(&self, group: usize, channel: usize, lane: usize, staged: *mut f32) {
        let at = group * self.group + channel;
        let which = usize::from(group == self.last);
        for i in 0..2 {
            let values = at + self.values[which][lane + i];
            let channels = at + self.channels[which][lane + i];
            // SAFETY: by the caller's promise; every number for input channels is there.
            unsafe {
                let mut v = self.operands.row(lane + i, values, channels);
                if let Some(factor) = self.inverse_smooth {
                    v = _mm512_mul_ps(v, load(factor, channels));
                }
                _mm512_store_ps(staged.add(i * CHUNK), default_nan(v));
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn octet(&self, _: usize, _: usize, staged: *const f32) -> [__m512; OCTET] {
        let mut v = [_mm512_setzero_ps(); 8];
        for (i, v) in v.iter_mut().enumerate() {
            let [a, b] = side_by_side(i);
            // SAFETY: by the caller's promise.
            *v = unsafe { two_halves(staged.add(a * CHUNK), staged.add(b * CHUNK)) };
        }
        transpose_octet(&v)
    }
}

/// 16 values from `at` on.
///
/// # Safety
/// The machine has AVX-512, and they are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(x: &[f32], at: usize) -> __m512 {
    debug_assert!(at + 16 <= x.len());
    // SAFETY: by the caller's promise.
    unsafe { _mm512_loadu_ps(x.as_ptr().add(at)) }
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
    unsafe fn row(&self, _: usize, at: usize, _: usize) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe { load(self.x, at) }
    }
}

/// `x` `[T, K]`, `weight` `[K]`, and the factor of each lane's token.
pub(super) struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    factors: [f32; 16],
}

impl<'a> RmsNorm<'a> {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn new(x: &'a [f32], weight: &'a [f32], epsilon: f32, shape: Shape) -> Self {
        // SAFETY: this function has the features.
        let l = unsafe { Avx512::new() };
        let k = weight.len();
        let mut factors = [0.0; 16];
        let (fours, rest) = x.split_at(x.len() / (4 * k) * (4 * k));
        let (of_fours, of_rest) = factors.split_at_mut(fours.len() / k);
        for (factors, x) in of_fours.as_chunks_mut().0.iter_mut().zip(fours.chunks_exact(4 * k)) {
            *factors = lanes::rms_factors(l, [&x[..k], &x[k..2 * k], &x[2 * k..3 * k], &x[3 * k..]], epsilon);
        }
        for (factor, x) in of_rest.iter_mut().zip(rest.chunks_exact(k)) {
            [*factor] = lanes::rms_factors(l, [x], epsilon);
        }
        let factors = std::array::from_fn(|lane| factors[shape.place(0, lane).0]);
        Self { x, weight, factors }
    }
}

impl Operands for RmsNorm<'_> {
    fn width(&self) -> usize {
        self.weight.len()
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn row(&self, lane: usize, at: usize, channels: usize) -> __m512 {
        // SAFETY: by the caller's promise.
        let (x, weight) = unsafe { (load(self.x, at), load(self.weight, channels)) };
        _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(self.factors[lane])), weight)
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
    unsafe fn row(&self, _: usize, at: usize, _: usize) -> __m512 {
        // SAFETY: by the caller's promise.
        let (gate, up) = unsafe { (load(self.gate_up, at), load(self.gate_up, at + self.channels)) };
        _mm512_mul_ps(silu(gate), up)
    }
}
