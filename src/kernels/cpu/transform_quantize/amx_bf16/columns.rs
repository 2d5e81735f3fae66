//! Groups of 16 columns by `B` channels: where they come from and where they go.

use std::arch::x86_64::*;
use std::ops::Range;

/// Channels that are brought in at a time.
pub(super) const CHUNK: usize = 16;
/// Largest block of a rotation.
pub(super) const LARGEST_BLOCK: usize = 512;

/// What a lane without a column reads.
static ZEROS: [f32; LARGEST_BLOCK] = [0.0; LARGEST_BLOCK];

/// Which columns stand in the lanes of a group.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// One block of up to 16 tokens. A permutation is which rows are read.
    Tokens { count: usize },
    /// 16 blocks of one token: 16 times less work for it. A permutation gathers.
    Blocks { count: usize },
}

impl Shape {
    /// Lanes of `group` that hold a column.
    pub(super) fn lanes(self, group: usize) -> usize {
        match self {
            Shape::Tokens { count } => count,
            Shape::Blocks { count } => (count - group * 16).min(16),
        }
    }

    /// Where the channels of a column begin in rows of tokens, `stride` apart.
    pub(super) fn offset(self, group: usize, lane: usize, stride: usize, block: usize) -> usize {
        match self {
            Shape::Tokens { .. } => lane * stride + group * block,
            Shape::Blocks { .. } => (group * 16 + lane) * block,
        }
    }
}

/// Where the columns of a rotation come from.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    /// Rows of tokens, `K` apart.
    Rows { rows: *const f32, shape: Shape, channels: usize, block: usize },
    /// Groups of tokens, permuted: `[K]`.
    Permuted { from: *const f32, order: &'a [u32], block: usize },
    /// Groups of blocks, permuted: `[groups][B][16]`, each an offset into `from`.
    Gathered { from: *const f32, table: &'a [u32], block: usize },
}

impl Input<'_> {
    /// 16 channels of a group, a vector of lanes each.
    ///
    /// # Safety
    /// The operands are there, as are the group and the chunk in them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn chunk(&self, group: usize, chunk: usize) -> [__m512; 16] {
        let mut out = [_mm512_setzero_ps(); 16];
        // SAFETY: by the caller's promise; orders and tables name values of `from`.
        unsafe {
            match *self {
                Input::Rows { rows, shape, channels, block } => {
                    let lanes = shape.lanes(group);
                    let mut lines = [ZEROS.as_ptr(); 16];
                    for (lane, line) in lines.iter_mut().enumerate().take(lanes) {
                        *line = rows.add(shape.offset(group, lane, channels, block));
                    }
                    out = transpose(&lines, chunk * CHUNK);
                    for row in &mut out {
                        *row = default_nan(*row);
                    }
                }
                Input::Permuted { from, order, block } => {
                    let order = &order[group * block + chunk * CHUNK..][..CHUNK];
                    for (row, &channel) in out.iter_mut().zip(order) {
                        *row = _mm512_loadu_ps(from.add(channel as usize * 16));
                    }
                }
                Input::Gathered { from, table, block } => {
                    let table = &table[(group * block + chunk * CHUNK) * 16..][..CHUNK * 16];
                    for (row, index) in out.iter_mut().zip(table.chunks_exact(16)) {
                        *row = _mm512_i32gather_ps::<4>(_mm512_loadu_si512(index.as_ptr().cast()), from);
                    }
                }
            }
        }
        out
    }
}

/// The default NaN for every NaN: rounding to bfloat16 by an addition of integers would make numbers of some.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn default_nan(x: __m512) -> __m512 {
    // A digit for each class of numbers, quiet and signalling NaN last: 3 is the default NaN, 1 the number itself.
    _mm512_fixupimm_ps::<0>(x, x, _mm512_set1_epi32(0x1111_1133))
}

/// `out[c]`: value `from + c` of each of 16 lines.
///
/// # Safety
/// 16 values can be read at `from` in every line.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn transpose(lines: &[*const f32; 16], from: usize) -> [__m512; 16] {
    let mut out = [_mm512_setzero_ps(); 16];
    for quad in 0..4 {
        // Lane `l` of vector `i` is four values of line `4 l + i`, so that what is left to do stays within lanes.
        let mut v = [_mm512_setzero_ps(); 4];
        for (i, v) in v.iter_mut().enumerate() {
            // SAFETY: the caller has 16 values in every line, and these are four of them.
            unsafe {
                let four = |line: usize| _mm_loadu_ps(lines[line].add(from + quad * 4));
                let all = _mm512_castps128_ps512(four(i));
                let all = _mm512_insertf32x4::<1>(all, four(4 + i));
                let all = _mm512_insertf32x4::<2>(all, four(8 + i));
                *v = _mm512_insertf32x4::<3>(all, four(12 + i));
            }
        }
        let pairs = |a, b| (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (low01, high01) = pairs(v[0], v[1]);
        let (low23, high23) = pairs(v[2], v[3]);
        let quads = |a, b| {
            let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
            (_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
        };
        (out[quad * 4], out[quad * 4 + 1]) = quads(low01, low23);
        (out[quad * 4 + 2], out[quad * 4 + 3]) = quads(high01, high23);
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
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    pub(super) unsafe fn look(&mut self, x: *const f32, rows: Range<usize>) {
        let zero = _mm512_setzero_ps();
        for row in rows {
            // SAFETY: by the caller's promise.
            let x = unsafe { _mm512_loadu_ps(x.add(row * 16)) };
            self.min = _mm512_min_ps(x, self.min);
            self.max = _mm512_max_ps(x, self.max);
            self.poison = _mm512_fmadd_ps(x, zero, self.poison);
        }
    }
}
