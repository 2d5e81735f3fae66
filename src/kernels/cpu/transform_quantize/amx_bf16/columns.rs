//! Groups of 16 columns by `B` channels: where they come from and where they go.

use std::arch::x86_64::*;
use std::ops::Range;

/// Channels that are brought in at a time.
pub(super) const CHUNK: usize = 16;
/// Largest block of a rotation.
pub(super) const LARGEST_BLOCK: usize = 512;

/// Which columns stand in the 16 lanes of a group: one block of up to 16 tokens, a permutation being which rows are read; or 16
/// blocks of a token that is alone, which is 16 times less work for it, and a permutation gathers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// From 1 to 16.
    pub(super) tokens: usize,
    /// Blocks of a token.
    pub(super) blocks: usize,
}

impl Shape {
    /// Whether there is one token and lanes are blocks.
    #[inline(always)]
    pub(super) fn alone(self) -> bool {
        self.tokens == 1
    }

    /// Blocks in a group.
    pub(super) fn span(self) -> usize {
        if self.alone() { 16 } else { 1 }
    }

    /// Groups of all blocks.
    pub(super) fn groups(self) -> usize {
        self.blocks.div_ceil(self.span())
    }

    /// Token and block of a lane, which need not be there.
    #[inline(always)]
    pub(super) fn place(self, group: usize, lane: usize) -> (usize, usize) {
        if self.alone() { (0, group * 16 + lane) } else { (lane, group) }
    }

    /// [`Self::place`] if there is such a column.
    #[inline(always)]
    pub(super) fn column(self, group: usize, lane: usize) -> Option<(usize, usize)> {
        Some(self.place(group, lane)).filter(|&(token, block)| token < self.tokens && block < self.blocks)
    }

    /// The lanes of a token.
    pub(super) fn lanes(self, token: usize) -> std::ops::Range<usize> {
        if self.alone() { 0..16 } else { token..token + 1 }
    }
}

/// Channels that are transposed at a time.
pub(super) const OCTET: usize = 8;

/// The lanes that stand side by side in vector `i` of 8 when 8 channels of 16 lanes are about to be transposed.
pub(super) const fn side_by_side(i: usize) -> [usize; 2] {
    let first = i / 4 * 8 + i % 4;
    [first, first + 4]
}

/// `out[c]`: channel `c` of 16 lanes, from the 8 channels of two lanes in each vector, those that [`side_by_side`] says.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn transpose_octet(v: &[__m512; 8]) -> [__m512; OCTET] {
    let low = |a, b| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    let high = |a, b| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    // 16 bytes of what comes out of four vectors are channel `c` or `4 + c` of four lanes.
    let quad = |a, b, c, d| {
        let (low01, high01) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (low23, high23) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        [low(low01, low23), high(low01, low23), low(high01, high23), high(high01, high23)]
    };
    let (left, right) = (quad(v[0], v[1], v[2], v[3]), quad(v[4], v[5], v[6], v[7]));
    let mut out = [_mm512_setzero_ps(); OCTET];
    for c in 0..4 {
        out[c] = _mm512_shuffle_f32x4::<0x88>(left[c], right[c]);
        out[4 + c] = _mm512_shuffle_f32x4::<0xdd>(left[c], right[c]);
    }
    out
}

/// Eight values at each of two places.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn two_halves(a: *const f32, b: *const f32) -> __m512 {
    // SAFETY: by the caller's promise.
    unsafe { _mm512_insertf32x8::<1>(_mm512_castps256_ps512(_mm256_loadu_ps(a)), _mm256_loadu_ps(b)) }
}

/// `out[c]`: value `c` of each of 16 rows `step` apart.
///
/// # Safety
/// 16 values can be read in every row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn transpose(first: *const f32, step: usize) -> [__m512; 16] {
    let mut out = [_mm512_setzero_ps(); 16];
    for (octet, out) in out.chunks_exact_mut(OCTET).enumerate() {
        let mut v = [_mm512_setzero_ps(); 8];
        for (i, v) in v.iter_mut().enumerate() {
            let [a, b] = side_by_side(i);
            // SAFETY: by the caller's promise.
            *v = unsafe { two_halves(first.add(a * step + octet * OCTET), first.add(b * step + octet * OCTET)) };
        }
        out.copy_from_slice(&transpose_octet(&v));
    }
    out
}

/// Smallest and largest value of each lane, and whether it holds any that is not finite: then `poison` is NaN. The
/// operations of `lanes::row_params`.
pub(super) struct Extremes {
    pub(super) min: __m512,
    pub(super) max: __m512,
    pub(super) poison: __m512,
}

impl Extremes {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn new() -> Self {
        let zero = _mm512_setzero_ps();
        Self { min: zero, max: zero, poison: zero }
    }

    /// Smallest, largest and poison of each lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn lanes(&self) -> [[f32; 16]; 3] {
        let mut out = [[0.0; 16]; 3];
        for (out, v) in out.iter_mut().zip([self.min, self.max, self.poison]) {
            // SAFETY: 16 values.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) };
        }
        out
    }

    /// Takes in some rows of 16 lanes.
    ///
    /// # Safety
    /// The rows can be read at `x`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn look(&mut self, x: *const f32, rows: Range<usize>) {
        // SAFETY: by the caller's promise.
        unsafe {
            let zero = _mm512_setzero_ps();
            for row in rows {
                let x = _mm512_loadu_ps(x.add(row * 16));
                self.min = _mm512_min_ps(x, self.min);
                self.max = _mm512_max_ps(x, self.max);
                self.poison = _mm512_fmadd_ps(x, zero, self.poison);
            }
        }
    }
}
