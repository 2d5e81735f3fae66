//! Many tokens by 4-bit weights: a stretch of a panel is unpacked once into the L1 cache, all tokens of a job run over it, and
//! products are summed up in 16 bits for as long as they fit.

use super::super::TOKENS;
use super::super::pack::{BLOCK, PANEL};
use super::super::task::Task;
use super::rows;
use crate::kernels::cpu::tiles::Line;
use std::arch::x86_64::{
    __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_load_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_store_si256,
};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Most blocks of 64 input channels in a stretch. The sums of as many products of 4 by 4 bits fit 16 bits.
const STRETCH: usize = 4;
/// Rows of four input channels in a block.
const QUADS: usize = BLOCK / 4;
/// Bytes of such a row, two registers.
const QUAD: usize = PANEL * 4;

/// Computes the tokens `tokens`, at most [`TOKENS`], of one panel of nibbles.
///
/// # Safety
/// As [`super::run`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn panel(task: &Task, tokens: Range<usize>, panel: usize) {
    let mut weights = MaybeUninit::<Line<[u8; STRETCH * QUADS * QUAD]>>::uninit();
    let weights = weights.as_mut_ptr().cast::<u8>();
    let mut sums = Line([[0_i32; PANEL]; TOKENS]);
    let blocks = task.weights.blocks();
    let packed = task.weights.panel(panel, 1).as_ptr();
    let most = |bits: u32| (1_usize << bits) - 1;
    let interval = i16::MAX as usize / (2 * most(task.activation_bits) * most(task.weights.bits()));
    for first in (0..blocks).step_by(STRETCH) {
        let quads = STRETCH.min(blocks - first) * QUADS;
        for pair in 0..quads / 2 {
            for half in 0..2 {
                // SAFETY: the panel has `blocks` blocks, and `weights` has room for a stretch of them.
                unsafe {
                    let both = rows::<true>(packed, first * QUADS / 2 + pair, half);
                    let out = weights.add(2 * pair * QUAD + half * QUAD / 2);
                    _mm256_store_si256(out.cast(), both[0]);
                    _mm256_store_si256(out.add(QUAD).cast(), both[1]);
                }
            }
        }
        let mut t = tokens.start;
        while t < tokens.end {
            let codes = task.codes[t * task.stride + first * BLOCK..].as_ptr();
            let sums = sums.0[t - tokens.start..].as_mut_ptr().cast();
            let strip = Strip { codes, stride: task.stride, weights, quads, interval, sums };
            // SAFETY: rows of codes hold `blocks * 64`, and so many tokens are left.
            t += unsafe {
                match tokens.end - t {
                    4.. => strip.run::<4>(),
                    2.. => strip.run::<2>(),
                    _ => strip.run::<1>(),
                }
            };
        }
    }
    for (t, sums) in tokens.zip(&sums.0) {
        // SAFETY: the element range belongs to the caller.
        unsafe { task.finish(t, panel, sums, 0) };
    }
}

/// A few tokens over a stretch of an unpacked panel.
struct Strip {
    codes: *const u8,
    stride: usize,
    weights: *const u8,
    /// Rows of [`QUAD`] bytes.
    quads: usize,
    /// Rows whose products can be summed up in 16 bits.
    interval: usize,
    /// Two vectors a token, which are added to.
    sums: *mut __m256i,
}

impl Strip {
    /// Runs over `T` tokens, and says how many that were.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run<const T: usize>(self) -> usize {
        let ones = _mm256_set1_epi16(1);
        for start in (0..self.quads).step_by(self.interval) {
            let mut pairs = [[_mm256_setzero_si256(); 2]; T];
            // SAFETY: the caller has `T` tokens of `quads` times four codes, as many rows of weights, and their sums.
            unsafe {
                for quad in start..self.quads.min(start + self.interval) {
                    let w = self.weights.add(quad * QUAD).cast::<__m256i>();
                    let w = [_mm256_load_si256(w), _mm256_load_si256(w.add(1))];
                    for i in 0..T {
                        let x = self.codes.add(i * self.stride + quad * 4).cast::<i32>().read_unaligned();
                        let x = _mm256_set1_epi32(x);
                        for half in 0..2 {
                            pairs[i][half] = _mm256_add_epi16(pairs[i][half], _mm256_maddubs_epi16(x, w[half]));
                        }
                    }
                }
                for i in 0..T {
                    for half in 0..2 {
                        let sum = self.sums.add(2 * i + half);
                        let more = _mm256_madd_epi16(pairs[i][half], ones);
                        _mm256_store_si256(sum, _mm256_add_epi32(_mm256_load_si256(sum), more));
                    }
                }
            }
        }
        T
    }
}
