//! AVX-512 VNNI: one register holds 16 channels by 4 input channels, one `vpdpbusd` adds their products with four
//! broadcast activation codes.

mod many;

use super::pack::PANEL;
use super::task::{Output, Task};
use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_epi32, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_mul_ps, _mm512_mullo_epi32, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512,
    _mm512_srli_epi16, _mm512_sub_epi32, _mm512_xor_si512,
};
use std::ops::Range;

/// `vpdpbusd` multiplies unsigned by signed bytes. Activations of up to 7 bits take the signed side, so that weights
/// may have 8 bits and the broadcast folds into the instruction.
const SIGNED_TOKENS: u8 = 0;
/// 8-bit activations on the unsigned side, weights of up to 7 bits on the signed one.
const SIGNED_WEIGHTS: u8 = 1;
/// 8-bit activations and 8-bit weights: weights less 128, which the epilogue puts right.
const SHIFTED_WEIGHTS: u8 = 2;

/// What weights are less by than their codes.
const fn offset(sides: u8) -> i32 {
    if sides == SHIFTED_WEIGHTS { 128 } else { 0 }
}

/// Most tokens whose sums stay in registers, by two panels.
const STEP: usize = 8;
/// From so many tokens on weights are unpacked ahead of them, rather than anew with every step.
const MANY: usize = 32;

/// Computes the tokens `tokens` of the panels `panels`.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and VNNI, there are at most [`super::TOKENS`] tokens, and no other thread writes these
/// elements of the output.
pub(super) unsafe fn run(task: &Task, tokens: Range<usize>, panels: Range<usize>) {
    let nibbles = task.weights.nibbles();
    // SAFETY: the caller's promises.
    unsafe {
        match (nibbles, task.activation_bits, task.weights.bits()) {
            (true, ..=7, _) => sweep::<true, SIGNED_TOKENS>(task, tokens, panels),
            (true, _, _) => sweep::<true, SIGNED_WEIGHTS>(task, tokens, panels),
            (false, ..=7, _) => sweep::<false, SIGNED_TOKENS>(task, tokens, panels),
            (false, _, ..=7) => sweep::<false, SIGNED_WEIGHTS>(task, tokens, panels),
            (false, _, _) => sweep::<false, SHIFTED_WEIGHTS>(task, tokens, panels),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn sweep<const NIBBLES: bool, const SIDES: u8>(task: &Task, tokens: Range<usize>, panels: Range<usize>) {
    if tokens.len() >= MANY {
        for panel in panels.step_by(2) {
            // SAFETY: the caller's promises; a panel beside the last one is padding.
            unsafe { many::pair::<NIBBLES, SIDES>(task, tokens.clone(), panel) };
        }
        return;
    }
    let mut t = tokens.start;
    while t < tokens.end {
        let left = tokens.end - t;
        let mut panel = panels.start;
        // SAFETY (all below): tokens and panels stay inside the ranges that the caller owns.
        let step = if left >= 8 {
            8
        } else if left >= 4 {
            4
        } else if left >= 2 {
            2
        } else {
            1
        };
        if step == 1 {
            while panel + 4 <= panels.end {
                // SAFETY: as above.
                unsafe { tile::<NIBBLES, SIDES, 1, 4>(task, t, panel) };
                panel += 4;
            }
        }
        while panel < panels.end {
            let two = panel + 2 <= panels.end;
            // SAFETY: as above.
            unsafe {
                match (step, two) {
                    (8, true) => tile::<NIBBLES, SIDES, 8, 2>(task, t, panel),
                    (8, false) => tile::<NIBBLES, SIDES, 8, 1>(task, t, panel),
                    (4, true) => tile::<NIBBLES, SIDES, 4, 2>(task, t, panel),
                    (4, false) => tile::<NIBBLES, SIDES, 4, 1>(task, t, panel),
                    (2, true) => tile::<NIBBLES, SIDES, 2, 2>(task, t, panel),
                    (2, false) => tile::<NIBBLES, SIDES, 2, 1>(task, t, panel),
                    (_, true) => tile::<NIBBLES, SIDES, 1, 2>(task, t, panel),
                    (_, false) => tile::<NIBBLES, SIDES, 1, 1>(task, t, panel),
                }
            }
            panel += if two { 2 } else { 1 };
        }
        t += step;
    }
}

/// `T` tokens by `P` panels, all sums in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile<const NIBBLES: bool, const SIDES: u8, const T: usize, const P: usize>(
    task: &Task,
    t: usize,
    panel: usize,
) {
    let packed = task.weights.panel(panel, P);
    let panel_bytes = packed.len() / P;
    let quads = task.weights.blocks() * 16;
    let codes = task.codes[t * task.stride..][..(T - 1) * task.stride + quads * 4].as_ptr();
    let stride = task.stride;
    // Even and odd quads have sums of their own, so that few tokens still keep both ports busy.
    let mut even = [[_mm512_setzero_si512(); P]; T];
    let mut odd = [[_mm512_setzero_si512(); P]; T];
    for pair in 0..quads / 2 {
        let mut w = [[_mm512_setzero_si512(); 2]; P];
        for p in 0..P {
            // SAFETY: pair < quads / 2, so the rows of 64 bytes lie inside panel p.
            w[p] = unsafe { rows::<NIBBLES, SIDES>(packed.as_ptr().add(p * panel_bytes), pair) };
        }
        for i in 0..T {
            // SAFETY: 8 codes from 8 * pair on lie in row t + i, whose `blocks * 64` codes were sliced above.
            let [x0, x1] = unsafe {
                let x = codes.add(i * stride + pair * 8).cast::<i32>();
                [x.read_unaligned(), x.add(1).read_unaligned()]
            };
            let (x0, x1) = (_mm512_set1_epi32(x0), _mm512_set1_epi32(x1));
            for p in 0..P {
                even[i][p] = multiply_add::<SIDES>(even[i][p], x0, w[p][0]);
                if T < 8 {
                    odd[i][p] = multiply_add::<SIDES>(odd[i][p], x1, w[p][1]);
                } else {
                    even[i][p] = multiply_add::<SIDES>(even[i][p], x1, w[p][1]);
                }
            }
        }
    }
    for p in 0..P {
        // SAFETY: the element range belongs to the caller.
        unsafe { finish(task, t, T, panel + p, offset(SIDES), |i| _mm512_add_epi32(even[i][p], odd[i][p])) };
    }
}

/// Asks for the cache lines of the output of some tokens by two panels, to write them: they arrive while products
/// are summed up, where stores that miss would hold up everything behind them.
#[inline(always)]
pub(super) fn own(task: &Task, tokens: Range<usize>, panel: usize) {
    let n = task.weights.n();
    let out = match task.output {
        Output::Float { y, .. } => y.cast::<u8>(),
        Output::Integer(out) => out.cast::<u8>(),
    };
    for t in tokens {
        let at = out.wrapping_add(4 * (t * n + panel * PANEL));
        // SAFETY: a prefetch changes no state and may name any address.
        unsafe { asm!("prefetchw [{0}]", "prefetchw [{0} + 64]", in(reg) at, options(nostack, readonly)) };
    }
}

/// [`Task::finish`] in registers for `count` tokens from `t` on: the same operations in the same order. `acc` gives the
/// sums of the token `t + i`.
///
/// # Safety
/// The machine has the features; `t + count <= tokens`, `panel < weights.panels()`, and no other thread touches these
/// elements of the output.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn finish(
    task: &Task,
    t: usize,
    count: usize,
    panel: usize,
    offset: i32,
    acc: impl Fn(usize) -> __m512i,
) {
    let (n, first) = (task.weights.n(), panel * PANEL);
    let width = (n - first).min(PANEL);
    let mask = (u32::MAX >> (32 - width)) as u16;
    let per_token = (&task.zero_point[t..t + count], &task.row_sum[t..t + count], &task.scale[t..t + count]);
    // SAFETY: per-channel numbers are padded to whole panels; the mask keeps bias and output inside their rows.
    unsafe {
        let zw = _mm512_loadu_si512(task.weights.zero_point.as_ptr().add(first).cast());
        let zw = _mm512_sub_epi32(zw, _mm512_set1_epi32(offset));
        let c = _mm512_loadu_si512(task.weights.centred_sum.as_ptr().add(first).cast());
        let sw = _mm512_loadu_ps(task.weights.scale.as_ptr().add(first));
        let integers = |i: usize| {
            let zx = _mm512_set1_epi32(per_token.0[i]);
            let rs = _mm512_set1_epi32(per_token.1[i]);
            _mm512_sub_epi32(_mm512_sub_epi32(acc(i), _mm512_mullo_epi32(zw, rs)), _mm512_mullo_epi32(zx, c))
        };
        match task.output {
            Output::Integer(out) => {
                for i in 0..count {
                    _mm512_mask_storeu_epi32(out.add((t + i) * n + first), mask, integers(i));
                }
            }
            Output::Float { y, bias, accumulate } => {
                let bias = bias.map(|bias| _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(first)));
                for i in 0..count {
                    let sx = _mm512_set1_ps(per_token.2[i]);
                    let mut value = _mm512_mul_ps(_mm512_mul_ps(sx, sw), _mm512_cvtepi32_ps(integers(i)));
                    if let Some(bias) = bias {
                        value = _mm512_add_ps(value, bias);
                    }
                    let y = y.add((t + i) * n + first);
                    if accumulate {
                        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, y));
                    }
                    _mm512_mask_storeu_ps(y, mask, value);
                }
            }
        }
    }
}

/// Two rows of a panel, one code a byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn rows<const NIBBLES: bool, const SIDES: u8>(panel: *const u8, pair: usize) -> [__m512i; 2] {
    if NIBBLES {
        let mask = _mm512_set1_epi8(15);
        // SAFETY: the caller promises that this pair of rows exists.
        let both = unsafe { _mm512_loadu_si512(panel.add(pair * 64).cast()) };
        [_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask)]
    } else {
        // SAFETY: as above.
        let both = unsafe {
            let panel = panel.add(pair * 128).cast::<__m512i>();
            [_mm512_loadu_si512(panel), _mm512_loadu_si512(panel.add(1))]
        };
        if SIDES == SHIFTED_WEIGHTS {
            let sign = _mm512_set1_epi8(-128);
            [_mm512_xor_si512(both[0], sign), _mm512_xor_si512(both[1], sign)]
        } else {
            both
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply_add<const SIDES: u8>(sum: __m512i, x: __m512i, w: __m512i) -> __m512i {
    if SIDES == SIGNED_TOKENS { _mm512_dpbusd_epi32(sum, w, x) } else { _mm512_dpbusd_epi32(sum, x, w) }
}
