//! Dense rotations in 16-bit integers on AVX-512 VNNI, for [`Arithmetic::Fast`](crate::kernels::Arithmetic::Fast).
//!
//! `vpdpwssd` adds 32 products of 16 bits where a fused multiply-add takes 16 of `f32`. A rotation is coded once, by one scale;
//! the values of a token's block when they are rotated, by their largest magnitude `m`:
//!
//! ```text
//! r[k, j] ~ c[k, j] / C,   x[k] ~ q[k] m / A,   y[j] = m / (A C) sum_k q[k] c[k, j]
//! ```
//!
//! `C` makes the longest column of `c` some [`LENGTH`] long. A row of `q` is at most `sqrt(B) A` long, so that no sum of
//! products exceeds `sqrt(B) A |c|` (Cauchy and Schwarz), and `A` is the largest number with which that fits 32 bits.
//!
//! **Error.** Codes of `r` are off by `1 / 2 C` at most and those of `x` by `m / 2 A`. With orthogonal rotations, `C` is 2^14 and
//! `A` near `2^17 / sqrt(B)`: an output is off by at most `2^-15 sum |x| + 2^-18 sqrt(B) m sum |r_j|`, which is within
//! `(2^-15 sqrt(B) + 2^-18 B) |x|`, and by some roundings of `f32`. `m` is taken for [`Scales::smallest`] where it is less, some
//! `2^-99`, so that `m / (A C)` keeps its digits.

use super::COARSE_BITS;
use crate::kernels::cpu::Isa;
use crate::kernels::cpu::aligned::Aligned;
use crate::kernels::cpu::lanes::LANES;
use crate::kernels::{Affine, Transform};
use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _mm256_storeu_si256, _mm512_and_si512, _mm512_castps_si512, _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps,
    _mm512_cvtps_epi32, _mm512_load_si512, _mm512_loadu_ps, _mm512_max_epu32, _mm512_mul_ps, _mm512_reduce_max_epu32,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_storeu_ps,
};

/// Length of the longest column of codes.
const LENGTH: f64 = 16_384.0;
/// Largest block: larger ones leave codes of `x` too few bits.
const LARGEST_BLOCK: usize = 512;

/// The rotations of a plan as codes.
#[derive(Debug, Clone)]
pub(super) struct Vnni {
    block: usize,
    /// `c` in pairs of channels, `[rotation][strip][B / 2][16]`: the even one in the low half of a word.
    words: Aligned<i32>,
    scales: Vec<Scales>,
}

/// How a rotation and what it rotates are coded.
#[derive(Debug, Clone, Copy)]
struct Scales {
    /// `A`.
    largest: f32,
    /// `1 / (A C)`.
    step: f32,
    /// The least `m`: `2^-126 A C`.
    smallest: f32,
}

impl Vnni {
    /// Plans a validated transform; `None` where this kernel does not take it.
    pub(super) fn plan(transform: &Transform, affine: Option<Affine>, isa: Isa) -> Option<Self> {
        let block = transform.block;
        let rotations = transform.rotation_count();
        let dense = rotations > 0 && !transform.hadamard && block.is_multiple_of(LANES) && block <= LARGEST_BLOCK;
        let coarse = affine.is_some_and(|affine| affine.bits <= COARSE_BITS);
        if !(dense && coarse && matches!(isa, Isa::Avx512Vnni | Isa::Amx)) {
            return None;
        }
        let mut words = Aligned::new(rotations * packed_len(block));
        let packed = words.as_mut_slice().chunks_exact_mut(packed_len(block));
        let scales = packed.enumerate().map(|(i, words)| pack(transform.rotation(i), block, words)).collect();
        Some(Self { block, words, scales })
    }

    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.words.as_slice()) + size_of_val(self.scales.as_slice())
    }

    /// Rotates the blocks `x` with rotation `i` into `y`, and leaves anything in `x`.
    pub(super) fn rotate(&self, i: usize, x: &mut [f32], y: &mut [f32]) {
        let block = self.block;
        assert!(x.len() == y.len() && x.len().is_multiple_of(block), "whole blocks");
        let words = &self.words.as_slice()[i * packed_len(block)..(i + 1) * packed_len(block)];
        // SAFETY: `plan` was given an instruction set that the caller had seen on this machine.
        unsafe {
            for row in x.chunks_exact_mut(block) {
                encode(row, self.scales[i]);
            }
            product(x, block, words, y);
        }
    }
}

/// Words of one packed rotation.
fn packed_len(block: usize) -> usize {
    block / 2 * block
}

fn pack(r: &[f32], block: usize, words: &mut [i32]) -> Scales {
    let lengths = |code: &dyn Fn(f32) -> f64| {
        let mut squares = vec![0.0; block];
        for row in r.chunks_exact(block) {
            squares.iter_mut().zip(row).for_each(|(sum, &r)| *sum += code(r).powi(2));
        }
        squares.into_iter().fold(0.0, f64::max).sqrt()
    };
    let longest = lengths(&f64::from);
    let scale = if longest > 0.0 { LENGTH / longest } else { 1.0 };
    let code = |r: f32| (f64::from(r) * scale).round();
    for (k, row) in r.chunks_exact(block).enumerate() {
        for (j, &r) in row.iter().enumerate() {
            let word = &mut words[(j / LANES * (block / 2) + k / 2) * LANES + j % LANES];
            *word |= i32::from(code(r) as i16 as u16) << (16 * (k % 2)) as i32;
        }
    }
    let most = f64::from(i32::MAX) / ((block as f64).sqrt() * lengths(&code).max(1.0));
    let largest = most.floor().min(f64::from(i16::MAX));
    let (step, smallest) = (1.0 / (largest * scale), largest * scale * f64::from(f32::MIN_POSITIVE));
    Scales { largest: largest as f32, step: step as f32, smallest: smallest as f32 }
}

/// Codes a block in place: its first half becomes 16-bit codes, and behind them stands `m / (A C)`. That is NaN or infinite
/// where a value is, and so are all products of the block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn encode(row: &mut [f32], scales: Scales) {
    let vectors = row.len() / LANES;
    let at = row.as_mut_ptr();
    let magnitude = _mm512_set1_epi32(i32::MAX);
    let mut largest = _mm512_set1_epi32(scales.smallest.to_bits() as i32);
    for v in 0..vectors {
        // SAFETY: the row is whole vectors.
        let x = _mm512_castps_si512(unsafe { _mm512_loadu_ps(at.add(v * LANES)) });
        // As integers, so that a NaN is larger than any number.
        largest = _mm512_max_epu32(largest, _mm512_and_si512(x, magnitude));
    }
    let m = f32::from_bits(_mm512_reduce_max_epu32(largest));
    let inverse = _mm512_set1_ps(scales.largest / m);
    for v in 0..vectors {
        // SAFETY: codes of a vector end before its own values do, so that none is overwritten which is still to be read.
        unsafe {
            let x = _mm512_mul_ps(_mm512_loadu_ps(at.add(v * LANES)), inverse);
            let codes = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x));
            _mm256_storeu_si256(at.add(v * LANES / 2).cast(), codes);
        }
    }
    row[row.len() / 2] = m * scales.step;
}

/// Every row of `x`, coded, by every strip of `words`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn product(x: &[f32], block: usize, words: &[i32], y: &mut [f32]) {
    const ROWS: usize = 12;
    let (rows, strips) = (x.len() / block, block / LANES);
    let mut strip = 0;
    while strip < strips {
        let two = strip + 2 <= strips;
        let words = words[strip * block / 2 * LANES..].as_ptr();
        let mut row = 0;
        while row < rows {
            let (x, y) = (x[row * block..].as_ptr(), y[row * block + strip * LANES..].as_mut_ptr());
            // SAFETY: so many rows and strips are left.
            row += unsafe {
                match (rows - row, two) {
                    (ROWS.., true) => tile::<ROWS, 2>(x, block, words, y),
                    (4.., true) => tile::<4, 2>(x, block, words, y),
                    (_, true) => tile::<1, 2>(x, block, words, y),
                    (ROWS.., false) => tile::<ROWS, 1>(x, block, words, y),
                    (_, false) => tile::<1, 1>(x, block, words, y),
                }
            };
        }
        strip += if two { 2 } else { 1 };
    }
}

/// `R` rows by `S` strips; says how many rows that were.
///
/// # Safety
/// `R` coded rows can be read at `x`, `S` strips at `words` on a cache line, and `R` rows written at `y`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<const R: usize, const S: usize>(x: *const f32, block: usize, words: *const i32, y: *mut f32) -> usize {
    let half = block / 2;
    let mut sums = [[_mm512_setzero_si512(); S]; R];
    // SAFETY: as the caller promises.
    unsafe {
        for k in 0..half {
            let mut c = [_mm512_setzero_si512(); S];
            for s in 0..S {
                c[s] = _mm512_load_si512(words.add((s * half + k) * LANES).cast());
            }
            for r in 0..R {
                let q = _mm512_set1_epi32(x.add(r * block + k).cast::<i32>().read());
                for s in 0..S {
                    sums[r][s] = multiply_add(sums[r][s], q, c[s]);
                }
            }
        }
        for r in 0..R {
            let scale = _mm512_set1_ps(*x.add(r * block + half));
            for s in 0..S {
                let value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][s]), scale);
                _mm512_storeu_ps(y.add(r * block + s * LANES), value);
            }
        }
    }
    R
}

/// `vpdpwssd`: adds the two products of 16 bits of each lane. The intrinsic becomes two instructions unless the compiler is told
/// which processor it is for, and that takes twice as long.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply_add(mut sum: __m512i, q: __m512i, c: __m512i) -> __m512i {
    // SAFETY: the machine has the instruction, which reads and writes registers alone.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {q}, {c}",
            sum = inout(zmm_reg) sum, q = in(zmm_reg) q, c = in(zmm_reg) c,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

#[cfg(test)]
#[path = "vnni_tests.rs"]
mod tests;
