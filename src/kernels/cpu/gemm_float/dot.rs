//! Dot products of a few tokens with rows of a weight, widened in registers. Bound by reading the weight once.

use super::super::Isa;
use half::{bf16, f16};
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Rows of the weight that are summed at a time.
pub(super) const ROWS: usize = 4;

/// Bytes of the weight that are asked for ahead of their use.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 8192;

/// A type that weights are stored in.
pub(super) trait Element: Copy + Send + Sync {
    /// The number as `f32`, exactly.
    fn widen(self) -> f32;

    /// All numbers as `f32`: the slice itself, or a copy in `buffer`.
    fn widen_all<'a>(values: &'a [Self], buffer: &'a mut Vec<f32>) -> &'a [f32];

    /// The first `count` (1 to 16) numbers from `at` on, zeros behind them.
    ///
    /// # Safety
    /// AVX-512 F, BW and VL; `count` readable numbers.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load16(at: *const Self, mask: u16) -> __m512;

    /// Eight numbers from `at` on.
    ///
    /// # Safety
    /// AVX2 and F16C; eight readable numbers.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load8(at: *const Self) -> __m256;
}

impl Element for f32 {
    fn widen(self) -> f32 {
        self
    }

    fn widen_all<'a>(values: &'a [f32], _: &'a mut Vec<f32>) -> &'a [f32] {
        values
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load16(at: *const f32, mask: u16) -> __m512 {
        // SAFETY: the caller's promises.
        unsafe { _mm512_maskz_loadu_ps(mask, at) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load8(at: *const f32) -> __m256 {
        // SAFETY: the caller's promises.
        unsafe { _mm256_loadu_ps(at) }
    }
}

impl Element for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn widen_all<'a>(values: &'a [f16], buffer: &'a mut Vec<f32>) -> &'a [f32] {
        use half::slice::HalfFloatSliceExt;
        buffer.resize(values.len(), 0.0);
        values.convert_to_f32_slice(buffer);
        buffer
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load16(at: *const f16, mask: u16) -> __m512 {
        // SAFETY: the caller's promises.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(mask, at.cast()) })
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load8(at: *const f16) -> __m256 {
        // SAFETY: the caller's promises.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
    }
}

impl Element for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn widen_all<'a>(values: &'a [bf16], buffer: &'a mut Vec<f32>) -> &'a [f32] {
        use half::slice::HalfFloatSliceExt;
        buffer.resize(values.len(), 0.0);
        values.convert_to_f32_slice(buffer);
        buffer
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load16(at: *const bf16, mask: u16) -> __m512 {
        // SAFETY: the caller's promises.
        let halves = unsafe { _mm256_maskz_loadu_epi16(mask, at.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load8(at: *const bf16) -> __m256 {
        // SAFETY: the caller's promises.
        let halves = unsafe { _mm_loadu_si128(at.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }
}

/// Gives `(t, row, sum_k x[t, k] w[row, k])` for every token of `x [T, k]` and every row in `rows` to `write`.
pub(super) fn run<W: Element>(
    isa: Isa,
    x: &[f32],
    w: &[W],
    k: usize,
    rows: Range<usize>,
    mut write: impl FnMut(usize, usize, f32),
) {
    if k == 0 {
        // No numbers, no way to tell how many tokens there are: `gemm_float` does not come here.
        return;
    }
    let mut row = rows.start;
    while row < rows.end {
        if row + ROWS <= rows.end {
            group::<W, ROWS>(isa, x, w, k, row, &mut write);
            row += ROWS;
        } else {
            group::<W, 1>(isa, x, w, k, row, &mut write);
            row += 1;
        }
    }
}

/// `R` rows by all tokens, up to four tokens at a time.
fn group<W: Element, const R: usize>(
    isa: Isa,
    x: &[f32],
    w: &[W],
    k: usize,
    row: usize,
    write: &mut impl FnMut(usize, usize, f32),
) {
    let w = &w[row * k..(row + R) * k];
    let mut t = 0;
    for x in x.chunks(4 * k) {
        let step = match x.len() / k {
            4 => {
                emit(sums::<W, R, 4>(isa, x, w, k), t, row, write);
                4
            }
            count => {
                for (i, x) in x.chunks_exact(k).enumerate() {
                    emit(sums::<W, R, 1>(isa, x, w, k), t + i, row, write);
                }
                count
            }
        };
        t += step;
    }
}

fn emit<const R: usize, const T: usize>(
    sums: [[f32; R]; T],
    t: usize,
    row: usize,
    write: &mut impl FnMut(usize, usize, f32),
) {
    for i in 0..T {
        for r in 0..R {
            write(t + i, row + r, sums[i][r]);
        }
    }
}

/// `T` tokens `x [T, k]` by `R` rows `w [R, k]`.
fn sums<W: Element, const R: usize, const T: usize>(isa: Isa, x: &[f32], w: &[W], k: usize) -> [[f32; R]; T] {
    assert!(x.len() == T * k && w.len() == R * k, "operands hold whole rows");
    match isa {
        // SAFETY: the caller passes an instruction set of this machine; lengths are checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Amx | Isa::Avx512Vnni => unsafe { avx512::<W, R, T>(x, w, k) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::<W, R, T>(x, w, k) },
        _ => portable::<W, R, T>(x, w, k),
    }
}

/// Adds lanes pairwise, in one order whatever the number of lanes came from.
fn reduce(mut lanes: [f32; 16]) -> f32 {
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

fn portable<W: Element, const R: usize, const T: usize>(x: &[f32], w: &[W], k: usize) -> [[f32; R]; T] {
    let mut sums = [[0.0; R]; T];
    for i in 0..T {
        for r in 0..R {
            let mut lanes = [0.0_f32; 16];
            let (x, w) = (x[i * k..(i + 1) * k].chunks_exact(16), w[r * k..(r + 1) * k].chunks_exact(16));
            let (x_rest, w_rest) = (x.remainder(), w.remainder());
            for (x, w) in x.zip(w) {
                for lane in 0..16 {
                    lanes[lane] += x[lane] * w[lane].widen();
                }
            }
            for (lane, (x, w)) in x_rest.iter().zip(w_rest).enumerate() {
                lanes[lane] += x * w.widen();
            }
            sums[i][r] = reduce(lanes);
        }
    }
    sums
}

/// Asks for `count` numbers from `at` on, which may lie anywhere.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch<W>(at: *const W, count: usize) {
    for line in 0..(count * size_of::<W>()).div_ceil(64) {
        // SAFETY: a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(line * 64)) };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn avx512<W: Element, const R: usize, const T: usize>(x: &[f32], w: &[W], k: usize) -> [[f32; R]; T] {
    let mut acc = [[_mm512_setzero_ps(); R]; T];
    let mut at = 0;
    while at < k {
        let mask = if k - at >= 16 { u16::MAX } else { (1 << (k - at)) - 1 };
        // The next rows follow in memory; the hardware does not see that through `R` short streams.
        prefetch(w.as_ptr().wrapping_add(AHEAD / size_of::<W>() + at * R), 16 * R);
        let mut tokens = [_mm512_setzero_ps(); T];
        for i in 0..T {
            // SAFETY: the mask keeps the load inside row i.
            tokens[i] = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().add(i * k + at)) };
        }
        for r in 0..R {
            // SAFETY: the mask keeps the load inside row r.
            let row = unsafe { W::load16(w.as_ptr().add(r * k + at), mask) };
            for i in 0..T {
                acc[i][r] = _mm512_fmadd_ps(tokens[i], row, acc[i][r]);
            }
        }
        at += 16;
    }
    let mut sums = [[0.0; R]; T];
    for i in 0..T {
        for r in 0..R {
            let mut lanes = [0.0_f32; 16];
            // SAFETY: `lanes` is one register.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), acc[i][r]) };
            sums[i][r] = reduce(lanes);
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<W: Element, const R: usize, const T: usize>(x: &[f32], w: &[W], k: usize) -> [[f32; R]; T] {
    let mut acc = [[_mm256_setzero_ps(); R]; T];
    let whole = k / 8 * 8;
    for at in (0..whole).step_by(8) {
        let mut tokens = [_mm256_setzero_ps(); T];
        for i in 0..T {
            // SAFETY: eight numbers of row i.
            tokens[i] = unsafe { _mm256_loadu_ps(x.as_ptr().add(i * k + at)) };
        }
        for r in 0..R {
            // SAFETY: eight numbers of row r.
            let row = unsafe { W::load8(w.as_ptr().add(r * k + at)) };
            for i in 0..T {
                acc[i][r] = _mm256_fmadd_ps(tokens[i], row, acc[i][r]);
            }
        }
    }
    let mut sums = [[0.0; R]; T];
    for i in 0..T {
        for r in 0..R {
            let mut lanes = [0.0_f32; 16];
            // SAFETY: `lanes` is two registers.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), acc[i][r]) };
            for at in whole..k {
                lanes[8 + at - whole] = x[i * k + at] * w[r * k + at].widen();
            }
            sums[i][r] = reduce(lanes);
        }
    }
    sums
}
