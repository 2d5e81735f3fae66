//! The two products of attention on AMX tiles.
//!
//! `q k^T` is one of codes, exact in `i32` as everywhere. `weights values` is one of bfloat16, for
//! [`Arithmetic::Fast`](crate::kernels::Arithmetic::Fast): a value without its scale is an integer of up to 8 bits and a
//! sign, which bfloat16 holds exactly, and a weight is split into two bfloat16, so that `w v ~ w_h v + w_l v` in `f32` is
//! within `2^-16` of `w v`. Every output is one chain in the order of the keys, to which keys that a query does not see add
//! zeros: its bits do not depend on the queries beside it.

use super::STEP;
use crate::kernels::cpu::lanes::{Avx512, DotRows, LANES};
use crate::kernels::cpu::split_bf16::{default_nan, split_pairs};
use crate::kernels::cpu::tile_registers::TILE;
use crate::kernels::cpu::tiles::Line;
use std::arch::asm;
use std::arch::x86_64::*;

/// Rows of a tile.
const TILE_ROWS: usize = 16;
/// Codes of a row of a tile.
const CODES: usize = 64;

/// [`DotRows`] for its rows in whole tiles; gives how many these are.
///
/// # Safety
/// As [`DotRows::run`]; the tiles are configured, and `4 groups` is a multiple of 64.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn dots(p: &DotRows) -> usize {
    let rows = p.rows / TILE_ROWS * TILE_ROWS;
    let mut sums = Line([0_i32; 2 * 2 * TILE_ROWS * LANES]);
    let sums = sums.0.as_mut_ptr();
    let mut before: Option<(usize, usize, *const i32)> = None;
    let mut turn = 0;
    // SAFETY: rows, blocks and codes stay below their counts; the sums are two pairs of tiles.
    unsafe {
        for block in (0..p.blocks).step_by(2) {
            let two = block + 1 < p.blocks;
            for row in (0..rows).step_by(TILE_ROWS) {
                let q = p.q.cast::<u8>().add(row * 4 * p.groups);
                let keys = p.keys.add(block * p.groups * CODES);
                let out = sums.add(turn * 2 * TILE_ROWS * LANES);
                turn = 1 - turn;
                multiply_codes(q, 4 * p.groups, keys, two, out);
                // The sums of the tiles before are within reach while these are multiplied.
                if let Some((row, block, sums)) = before.replace((row, block, out)) {
                    scores(p, row, block, sums);
                }
            }
        }
        if let Some((row, block, sums)) = before {
            scores(p, row, block, sums);
        }
    }
    rows
}

/// Sums of 16 queries by one or two blocks of 16 keys.
///
/// # Safety
/// The tiles are configured; there are so many codes, and room for two tiles of sums.
#[inline(always)]
unsafe fn multiply_codes(q: *const u8, dim: usize, keys: *const u8, two: bool, out: *mut i32) {
    let line = CODES;
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
        for at in (0..dim).step_by(CODES) {
            asm!(
                "tileloadd tmm4, [{q} + {dim}]",
                "tileloadd tmm5, [{k} + {s}]",
                "tdpbsud tmm0, tmm4, tmm5",
                q = in(reg) q.add(at), k = in(reg) keys.add(at * LANES), dim = in(reg) dim, s = in(reg) line,
                options(nostack, readonly)
            );
            if two {
                asm!(
                    "tileloadd tmm6, [{k} + {s}]",
                    "tdpbsud tmm1, tmm4, tmm6",
                    k = in(reg) keys.add((dim + at) * LANES), s = in(reg) line,
                    options(nostack, readonly)
                );
            }
        }
        asm!(
            "tilestored [{c} + {s}], tmm0",
            "tilestored [{c} + {s} + 1024], tmm1",
            c = in(reg) out, s = in(reg) line, options(nostack)
        );
    }
}

/// The scores of 16 queries against up to two blocks of keys from their sums.
///
/// # Safety
/// As [`DotRows::run`], and the sums are there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn scores(p: &DotRows, first: usize, block: usize, sums: *const i32) {
    // SAFETY: by the caller's promise; this function has the features.
    unsafe {
        let l = Avx512::new();
        for v in 0..(p.blocks - block).min(2) {
            let mut dots = [_mm512_setzero_ps(); TILE_ROWS];
            for (r, dot) in dots.iter_mut().enumerate() {
                *dot = _mm512_cvtepi32_ps(_mm512_load_si512(sums.add((v * TILE_ROWS + r) * LANES).cast()));
            }
            p.finish(l, first, block + v, &dots);
        }
    }
}

/// Quantized values without their scales as the right operand, `[value_dim / 16][steps][16 pairs of keys][16][2]` in
/// bfloat16: key `i` of a step and key `16 + i` make a pair.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    /// `[count][row]`.
    pub(super) codes: &'a [u8],
    pub(super) row: usize,
    /// `[count]`.
    pub(super) zero_point: &'a [u8],
    /// Whether two codes share a byte.
    pub(super) nibbles: bool,
}

impl Values<'_> {
    /// Keys in whole steps.
    fn steps(&self) -> usize {
        self.zero_point.len().div_ceil(STEP)
    }

    /// Brings them into `tiles`; keys that are not there are 0.
    ///
    /// # Safety
    /// The machine has the features, and `tiles` has room.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn pack(&self, tiles: *mut u8) {
        let count = self.zero_point.len();
        let (steps, chunks) = (self.steps(), self.row / LANES);
        for step in 0..steps {
            for pair in 0..LANES {
                let (a, b) = (step * STEP + pair, step * STEP + LANES + pair);
                for chunk in 0..chunks {
                    let [mut first, mut second] = [[_mm512_setzero_ps(); 2]; 2];
                    // SAFETY: by the caller's promise: chunks are tiles of columns.
                    unsafe {
                        if a < count {
                            first = self.chunk(a, chunk);
                        }
                        if b < count {
                            second = self.chunk(b, chunk);
                        }
                        let out = tiles.add((chunk * steps + step) * TILE + pair * CODES);
                        _mm512_store_si512(out.cast(), pair_up(first[0], second[0]));
                        if self.nibbles {
                            let out = out.add(chunks * steps * TILE);
                            _mm512_store_si512(out.cast(), pair_up(first[1], second[1]));
                        }
                    }
                }
            }
        }
    }

    /// 16 values of a key, and of packed codes 16 of its second half.
    ///
    /// # Safety
    /// The machine has the features, and the codes are there.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn chunk(&self, key: usize, chunk: usize) -> [__m512; 2] {
        // SAFETY: by the caller's promise.
        let codes = unsafe { _mm_loadu_si128(self.codes.as_ptr().add(key * self.row + chunk * LANES).cast()) };
        let codes = _mm512_cvtepu8_epi32(codes);
        let zero = _mm512_set1_epi32(i32::from(self.zero_point[key]));
        if self.nibbles {
            let low = _mm512_sub_epi32(_mm512_and_si512(codes, _mm512_set1_epi32(15)), zero);
            let high = _mm512_sub_epi32(_mm512_srli_epi32::<4>(codes), zero);
            [_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high)]
        } else {
            [_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero)), _mm512_setzero_ps()]
        }
    }

    /// Adds the values of a step of keys from `first` on, weighted, to two vectors of `sums`: those of a chunk of packed codes,
    /// or of two chunks of wide ones.
    ///
    /// # Safety
    /// The machine has the features, and the codes and sums are there.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn chains<const NIBBLES: bool>(
        &self,
        weights: &[[f32; STEP]; 2],
        first: usize,
        chunk: usize,
        sums: *mut f32,
    ) {
        let keys = STEP.min(self.zero_point.len() - first);
        // `[first or second keys][high, low][vector]`.
        let mut chains = [[[_mm512_setzero_ps(); 2]; 2]; 2];
        for (half, chains) in chains.iter_mut().enumerate() {
            for key in half * LANES..keys.min((half + 1) * LANES) {
                // SAFETY: by the caller's promise.
                let values = unsafe {
                    let values = self.chunk(first + key, chunk);
                    if NIBBLES { values } else { [values[0], self.chunk(first + key, chunk + 1)[0]] }
                };
                for part in 0..2 {
                    let weight = _mm512_set1_ps(weights[part][key]);
                    for n in 0..2 {
                        chains[part][n] = _mm512_fmadd_ps(weight, values[n], chains[part][n]);
                    }
                }
            }
        }
        let columns = [chunk, if NIBBLES { self.row / LANES + chunk } else { chunk + 1 }];
        for n in 0..2 {
            // SAFETY: as above.
            unsafe {
                let at = sums.add(columns[n] * LANES);
                let mut sum = _mm512_loadu_ps(at);
                for part in 0..2 {
                    let both = flush(_mm512_add_ps(flush(chains[0][part][n]), flush(chains[1][part][n])));
                    sum = flush(_mm512_add_ps(sum, both));
                }
                _mm512_storeu_ps(at, sum);
            }
        }
    }
}

/// Pairs of bfloat16 of two vectors of integers of up to 8 bits, of which nothing is lost.
#[inline]
#[target_feature(enable = "avx512f")]
fn pair_up(a: __m512, b: __m512) -> __m512i {
    _mm512_or_si512(_mm512_srli_epi32::<16>(_mm512_castps_si512(a)), _mm512_castps_si512(b))
}

/// 0 for what is below `2^-126`, as tiles give.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn flush(x: __m512) -> __m512 {
    let normal = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(x), _mm512_set1_ps(f32::MIN_POSITIVE));
    _mm512_maskz_mov_ps(normal, x)
}

/// Rows up to which [`Weighted::run_few`] is faster than tiles with most of their rows empty.
pub(super) const FEW: usize = 2;

/// Adds weighted values to sums.
pub(super) struct Weighted {
    /// `[rows, stride]` weights of `keys` keys, a whole number of vectors.
    pub(super) weights: *const f32,
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) keys: usize,
    /// Room for the weights as the left operand, `[rows / 16][steps][high, low][16 rows][32]` in bfloat16.
    pub(super) split: *mut u8,
    pub(super) value_dim: usize,
    /// `[rows, value_dim]`, with room for whole tiles of rows.
    pub(super) sums: *mut f32,
}

impl Weighted {
    /// `values` are what [`Values::pack`] leaves.
    ///
    /// # Safety
    /// The machine has AMX-BF16, the tiles are configured, and the operands are as the fields say.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn run(&self, values: *const u8) {
        let steps = self.keys.div_ceil(STEP);
        let tiles = self.rows.div_ceil(TILE_ROWS);
        // SAFETY: tiles of rows, steps and columns stay below their counts.
        unsafe {
            for row in 0..self.rows {
                self.split_row(row, steps);
            }
            for tile in (0..tiles).step_by(2) {
                let two = tile + 1 < tiles;
                let a = self.split.add(tile * steps * 2 * TILE);
                for column in (0..self.value_dim / LANES).step_by(2) {
                    let b = values.add(column * steps * TILE);
                    let c = self.sums.add(tile * TILE_ROWS * self.value_dim + column * LANES);
                    self.multiply(a, b, c, steps, two);
                }
            }
        }
    }

    /// The bits of [`Self::run`] without tiles. A product of tiles sums up the first and the second keys of its pairs in a
    /// chain of fused multiply-adds each, adds the one to the other and both to the sum so far; what is below `2^-126` it
    /// takes for 0.
    ///
    /// # Safety
    /// The machine has the features, and the operands are as the fields say.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn run_few(&self, values: &Values<'_>) {
        let chunks = values.row / LANES;
        for row in 0..self.rows {
            for first in (0..values.zero_point.len()).step_by(STEP) {
                // SAFETY: rows, keys and columns stay below their counts.
                unsafe {
                    let weights = self.split_step(row, first);
                    let sums = self.sums.add(row * self.value_dim);
                    if values.nibbles {
                        for chunk in 0..chunks {
                            values.chains::<true>(&weights, first, chunk, sums);
                        }
                    } else {
                        for chunk in (0..chunks).step_by(2) {
                            values.chains::<false>(&weights, first, chunk, sums);
                        }
                    }
                }
            }
        }
    }

    /// The weights of a row for the keys of a step, as two `f32`: `[high, low][key]`.
    ///
    /// # Safety
    /// As [`Self::run_few`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn split_step(&self, row: usize, first: usize) -> [[f32; STEP]; 2] {
        let mut out = [[0.0; STEP]; 2];
        // SAFETY: by the caller's promise.
        unsafe {
            let weights = self.weights.add(row * self.stride + first);
            let a = default_nan(_mm512_loadu_ps(weights));
            let there = first + LANES < self.keys;
            let b = if there { default_nan(_mm512_loadu_ps(weights.add(LANES))) } else { _mm512_setzero_ps() };
            let (high, low) = split_pairs(a, b);
            for (out, pairs) in out.iter_mut().zip([high, low]) {
                let a = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
                let b = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32)));
                _mm512_storeu_ps(out.as_mut_ptr(), flush(a));
                _mm512_storeu_ps(out.as_mut_ptr().add(LANES), flush(b));
            }
        }
        out
    }

    /// The weights of a row, split.
    ///
    /// # Safety
    /// As [`Self::run`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn split_row(&self, row: usize, steps: usize) {
        // SAFETY: by the caller's promise.
        unsafe {
            let out = self.split.add(row / TILE_ROWS * steps * 2 * TILE + row % TILE_ROWS * CODES);
            for step in 0..steps {
                let weights = self.weights.add(row * self.stride + step * STEP);
                let a = default_nan(_mm512_loadu_ps(weights));
                let there = step * STEP + LANES < self.keys;
                let b = if there { default_nan(_mm512_loadu_ps(weights.add(LANES))) } else { _mm512_setzero_ps() };
                let (high, low) = split_pairs(a, b);
                _mm512_store_si512(out.add(step * 2 * TILE).cast(), high);
                _mm512_store_si512(out.add(step * 2 * TILE + TILE).cast(), low);
            }
        }
    }

    /// One or two tiles of rows by two of columns: sums in tmm0 to tmm3 (`[rows][columns]`), weights in tmm4 and tmm5, values
    /// in tmm6 and tmm7.
    ///
    /// # Safety
    /// As [`Self::run`].
    #[inline(always)]
    unsafe fn multiply(&self, a: *const u8, b: *const u8, c: *mut f32, steps: usize, two: bool) {
        let (line, stride) = (CODES, self.value_dim * size_of::<f32>());
        let below = c.wrapping_add(TILE_ROWS * self.value_dim);
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "tileloadd tmm0, [{c} + {n}]",
                "tileloadd tmm1, [{c} + {n} + 64]",
                c = in(reg) c, n = in(reg) stride, options(nostack, readonly)
            );
            if two {
                asm!(
                    "tileloadd tmm2, [{c} + {n}]",
                    "tileloadd tmm3, [{c} + {n} + 64]",
                    c = in(reg) below, n = in(reg) stride, options(nostack, readonly)
                );
            }
            for step in 0..steps {
                let a = a.add(step * 2 * TILE);
                let b = b.add(step * TILE);
                asm!(
                    "tileloadd tmm6, [{b} + {s}]",
                    "tileloadd tmm4, [{a} + {s}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b1} + {s}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    a = in(reg) a, b = in(reg) b, b1 = in(reg) b.add(steps * TILE), s = in(reg) line,
                    options(nostack, readonly)
                );
                let second = a.wrapping_add(steps * 2 * TILE);
                if two {
                    asm!(
                        "tileloadd tmm5, [{a} + {s}]",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        a = in(reg) second, s = in(reg) line, options(nostack, readonly)
                    );
                }
                asm!(
                    "tileloadd tmm4, [{a} + {s} + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    a = in(reg) a, s = in(reg) line, options(nostack, readonly)
                );
                if two {
                    asm!(
                        "tileloadd tmm5, [{a} + {s} + 1024]",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        a = in(reg) second, s = in(reg) line, options(nostack, readonly)
                    );
                }
            }
            asm!(
                "tilestored [{c} + {n}], tmm0",
                "tilestored [{c} + {n} + 64], tmm1",
                c = in(reg) c, n = in(reg) stride, options(nostack)
            );
            if two {
                asm!(
                    "tilestored [{c} + {n}], tmm2",
                    "tilestored [{c} + {n} + 64], tmm3",
                    c = in(reg) below, n = in(reg) stride, options(nostack)
                );
            }
        }
    }
}
