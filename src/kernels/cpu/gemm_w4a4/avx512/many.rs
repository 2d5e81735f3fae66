//! Many tokens: a stretch of two panels is unpacked once into the L1 cache, and all tokens of a job run over it.

use super::super::TOKENS;
use super::super::pack::{BLOCK, PANEL};
use super::super::task::Task;
use super::{STEP, finish, multiply_add, offset, own, rows};
use crate::kernels::cpu::tiles::Line;
use std::arch::x86_64::{__m512i, _mm512_load_si512, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_store_si512};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Most blocks of 64 input channels in a stretch. Two panels of weights take 16 KB, codes of [`STEP`] tokens 4 KB and
/// their sums 1 KB: together they fit an L1 cache of 32 KB, where the weights stay while tokens pass.
const STRETCH: usize = 8;
/// Bytes of four input channels of two panels.
const QUAD: usize = 2 * PANEL * 4;

/// Computes the tokens `tokens`, at most [`TOKENS`], of the two panels from `panel` on.
///
/// # Safety
/// As [`super::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn pair<const NIBBLES: bool, const SIDES: u8>(task: &Task, tokens: Range<usize>, panel: usize) {
    let mut weights = MaybeUninit::<Line<[u8; STRETCH * (BLOCK / 4) * QUAD]>>::uninit();
    let mut sums = MaybeUninit::<Line<[i32; 2 * PANEL * TOKENS]>>::uninit();
    let (weights, sums) = (weights.as_mut_ptr().cast::<u8>(), sums.as_mut_ptr().cast::<__m512i>());
    let blocks = task.weights.blocks();
    let stretch = blocks.div_ceil(blocks.div_ceil(STRETCH).max(1));
    let packed = task.weights.panel(panel, 2);
    let panel_bytes = packed.len() / 2;
    let mut first = 0;
    loop {
        let count = stretch.min(blocks - first);
        for pair in 0..count * BLOCK / 8 {
            for p in 0..2 {
                // SAFETY: `first + count <= blocks`, so that both panels have this pair of rows; `weights` has room for
                // `STRETCH` blocks of both.
                unsafe {
                    let both = rows::<NIBBLES, SIDES>(packed.as_ptr().add(p * panel_bytes), first * BLOCK / 8 + pair);
                    let out = weights.add(2 * pair * QUAD + p * PANEL * 4);
                    _mm512_store_si512(out.cast(), both[0]);
                    _mm512_store_si512(out.add(QUAD).cast(), both[1]);
                }
            }
        }
        let mut t = tokens.start;
        while t < tokens.end {
            if first + count >= blocks {
                own(task, t..(t + STEP).min(tokens.end), panel);
            }
            let codes = task.codes[t * task.stride + first * BLOCK..].as_ptr();
            // SAFETY: sums of the token t are two vectors from 2 (t - start) on; rows of codes hold `blocks * 64`.
            unsafe {
                let sums = sums.add(2 * (t - tokens.start));
                let strip =
                    Strip { codes, stride: task.stride, weights, quads: count * BLOCK / 4, resume: first > 0, sums };
                t += match tokens.end - t {
                    STEP.. => strip.run::<SIDES, STEP>(),
                    4.. => strip.run::<SIDES, 4>(),
                    2.. => strip.run::<SIDES, 2>(),
                    _ => strip.run::<SIDES, 1>(),
                };
            }
        }
        first += count;
        if first >= blocks {
            break;
        }
    }
    for p in 0..2.min(task.weights.panels() - panel) {
        // SAFETY: the sums of every token were stored; the elements belong to the caller.
        unsafe {
            let acc = |i: usize| _mm512_load_si512(sums.add(2 * i + p));
            finish(task, tokens.start, tokens.len(), panel + p, offset(SIDES), acc);
        }
    }
}

/// A few tokens over a stretch of two unpacked panels.
struct Strip {
    codes: *const u8,
    stride: usize,
    weights: *const u8,
    /// Rows of [`QUAD`] bytes.
    quads: usize,
    /// Whether the sums go on from what stands there.
    resume: bool,
    /// Two vectors a token.
    sums: *mut __m512i,
}

impl Strip {
    /// Runs over `T` tokens, and says how many that were.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn run<const SIDES: u8, const T: usize>(self) -> usize {
        let mut acc = [[_mm512_setzero_si512(); 2]; T];
        // SAFETY: the caller has `T` tokens of `quads` times four codes, as many rows of weights, and room for sums.
        unsafe {
            if self.resume {
                for i in 0..T {
                    acc[i] = [_mm512_load_si512(self.sums.add(2 * i)), _mm512_load_si512(self.sums.add(2 * i + 1))];
                }
            }
            for quad in 0..self.quads {
                let w = self.weights.add(quad * QUAD).cast::<__m512i>();
                let w = [_mm512_load_si512(w), _mm512_load_si512(w.add(1))];
                for i in 0..T {
                    let x = self.codes.add(i * self.stride + quad * 4).cast::<i32>().read_unaligned();
                    let x = _mm512_set1_epi32(x);
                    acc[i] = [multiply_add::<SIDES>(acc[i][0], x, w[0]), multiply_add::<SIDES>(acc[i][1], x, w[1])];
                }
            }
            for i in 0..T {
                _mm512_store_si512(self.sums.add(2 * i), acc[i][0]);
                _mm512_store_si512(self.sums.add(2 * i + 1), acc[i][1]);
            }
        }
        T
    }
}
