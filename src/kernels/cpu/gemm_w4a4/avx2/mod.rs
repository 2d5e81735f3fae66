//! AVX2: a panel is two registers of 8 channels by 4 input channels. Weight nibbles go through `vpmaddubsw`, whose
//! 16-bit sums they cannot fill; 8-bit weights could, so they are widened and go through `vpmaddwd`.

mod many;

use super::pack::PANEL;
use super::task::Task;
use std::arch::x86_64::{
    __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_srli_epi16, _mm256_storeu_si256,
};
use std::ops::Range;

/// From so many tokens on nibbles are unpacked ahead of them, rather than anew with every few.
const MANY: usize = 8;

/// Computes the tokens `tokens` of the panels `panels`.
///
/// # Safety
/// The machine has AVX2 and FMA, there are at most [`super::TOKENS`] tokens, and no other thread writes these elements of the
/// output.
pub(super) unsafe fn run(task: &Task, tokens: Range<usize>, panels: Range<usize>) {
    // SAFETY: the caller's promises.
    unsafe {
        if task.weights.nibbles() { sweep::<true>(task, tokens, panels) } else { sweep::<false>(task, tokens, panels) }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn sweep<const NIBBLES: bool>(task: &Task, tokens: Range<usize>, panels: Range<usize>) {
    if NIBBLES && tokens.len() >= MANY {
        for panel in panels {
            // SAFETY: the caller's promises.
            unsafe { many::panel(task, tokens.clone(), panel) };
        }
        return;
    }
    let mut t = tokens.start;
    while t < tokens.end {
        let step = match tokens.end - t {
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        for panel in panels.clone() {
            // SAFETY: tokens and panels stay inside the ranges that the caller owns.
            unsafe {
                match step {
                    4 => tile::<NIBBLES, 4>(task, t, panel),
                    2 => tile::<NIBBLES, 2>(task, t, panel),
                    _ => tile::<NIBBLES, 1>(task, t, panel),
                }
            }
        }
        t += step;
    }
}

/// `T` tokens by one panel, all sums in registers.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const NIBBLES: bool, const T: usize>(task: &Task, t: usize, panel: usize) {
    let packed = task.weights.panel(panel, 1).as_ptr();
    let pairs = task.weights.blocks() * 8;
    let stride = task.stride;
    let codes = task.codes[t * stride..][..(T - 1) * stride + pairs * 8].as_ptr();
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    for pair in 0..pairs {
        for half in 0..2 {
            // SAFETY: row `pair` of the panel has 64 bytes (128 for wide codes).
            let w = unsafe { rows::<NIBBLES>(packed, pair, half) };
            for i in 0..T {
                // SAFETY: 8 codes from 8 * pair on lie in row t + i, whose `blocks * 64` codes were sliced above.
                let [x0, x1] = unsafe {
                    let x = codes.add(i * stride + pair * 8).cast::<i32>();
                    [_mm256_set1_epi32(x.read_unaligned()), _mm256_set1_epi32(x.add(1).read_unaligned())]
                };
                let sum = if NIBBLES { nibbles(w, x0, x1) } else { _mm256_add_epi32(bytes(w[0], x0), bytes(w[1], x1)) };
                sums[i][half] = _mm256_add_epi32(sums[i][half], sum);
            }
        }
    }
    for i in 0..T {
        let mut acc = [0_i32; PANEL];
        // SAFETY: `acc` is two registers; the element range belongs to the caller.
        unsafe {
            _mm256_storeu_si256(acc.as_mut_ptr().cast(), sums[i][0]);
            _mm256_storeu_si256(acc.as_mut_ptr().add(8).cast(), sums[i][1]);
            task.finish(t + i, panel, &acc, 0);
        }
    }
}

/// Half of two rows of a panel, one code a byte.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn rows<const NIBBLES: bool>(panel: *const u8, pair: usize, half: usize) -> [__m256i; 2] {
    if NIBBLES {
        let mask = _mm256_set1_epi8(15);
        // SAFETY: the caller promises that this pair of rows exists.
        let both = unsafe { _mm256_loadu_si256(panel.add(pair * 64 + half * 32).cast()) };
        [_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask)]
    } else {
        // SAFETY: as above.
        unsafe {
            let row = panel.add(pair * 128 + half * 32);
            [_mm256_loadu_si256(row.cast()), _mm256_loadu_si256(row.add(64).cast())]
        }
    }
}

/// Eight products a channel. Two `vpmaddubsw` results are at most 2 * 2 * 255 * 15 = 15,300 and fit 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn nibbles(w: [__m256i; 2], x0: __m256i, x1: __m256i) -> __m256i {
    let pairs = _mm256_add_epi16(_mm256_maddubs_epi16(x0, w[0]), _mm256_maddubs_epi16(x1, w[1]));
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// Four products a channel of full bytes: even and odd bytes apart, as 16-bit numbers.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn bytes(w: __m256i, x: __m256i) -> __m256i {
    let low = _mm256_set1_epi16(255);
    let even = _mm256_madd_epi16(_mm256_and_si256(w, low), _mm256_and_si256(x, low));
    let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), _mm256_srli_epi16::<8>(x));
    _mm256_add_epi32(even, odd)
}
