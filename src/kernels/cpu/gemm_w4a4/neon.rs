//! NEON with the dot product instruction: a panel is four registers of 4 channels by 4 input channels. `udot` stands in
//! `asm!` because its intrinsic is not stable Rust everywhere that this crate builds.

use super::pack::PANEL;
use super::task::Task;
use std::arch::aarch64::{
    uint8x16_t, uint32x4_t, vandq_u8, vdupq_n_u8, vdupq_n_u32, vld1q_u8, vreinterpretq_u8_u32, vshrq_n_u8, vst1q_u32,
};
use std::arch::asm;
use std::ops::Range;

/// Computes the tokens `tokens` of the panels `panels`.
///
/// # Safety
/// The machine has NEON and the dot product; no other thread writes these elements of the output.
pub(super) unsafe fn run(task: &Task, tokens: Range<usize>, panels: Range<usize>) {
    // SAFETY: the caller's promises.
    unsafe {
        if task.weights.nibbles() {
            sweep::<true>(task, tokens, panels);
        } else {
            sweep::<false>(task, tokens, panels);
        }
    }
}

#[target_feature(enable = "neon,dotprod")]
unsafe fn sweep<const NIBBLES: bool>(task: &Task, tokens: Range<usize>, panels: Range<usize>) {
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
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile<const NIBBLES: bool, const T: usize>(task: &Task, t: usize, panel: usize) {
    let packed = task.weights.panel(panel, 1).as_ptr();
    let pairs = task.weights.blocks() * 8;
    let stride = task.stride;
    let codes = task.codes[t * stride..][..(T - 1) * stride + pairs * 8].as_ptr();
    let mut sums = [[vdupq_n_u32(0); 4]; T];
    for pair in 0..pairs {
        let mut x = [[vdupq_n_u8(0); 2]; T];
        for i in 0..T {
            // SAFETY: 8 codes from 8 * pair on lie in row t + i, whose `blocks * 64` codes were sliced above.
            x[i] = unsafe {
                let x = codes.add(i * stride + pair * 8).cast::<u32>();
                [
                    vreinterpretq_u8_u32(vdupq_n_u32(x.read_unaligned())),
                    vreinterpretq_u8_u32(vdupq_n_u32(x.add(1).read_unaligned())),
                ]
            };
        }
        for quarter in 0..4 {
            // SAFETY: row `pair` of the panel has 64 bytes (128 for wide codes).
            let w = unsafe { rows::<NIBBLES>(packed, pair, quarter) };
            for i in 0..T {
                sums[i][quarter] = udot(udot(sums[i][quarter], w[0], x[i][0]), w[1], x[i][1]);
            }
        }
    }
    for i in 0..T {
        let mut acc = [0_u32; PANEL];
        for quarter in 0..4 {
            // SAFETY: `acc` is four registers.
            unsafe { vst1q_u32(acc.as_mut_ptr().add(4 * quarter), sums[i][quarter]) };
        }
        // Sums stay below 2^31, which `plan` checks.
        let acc = acc.map(u32::cast_signed);
        // SAFETY: the element range belongs to the caller.
        unsafe { task.finish(t + i, panel, &acc, 0) };
    }
}

/// A quarter of two rows of a panel, one code a byte.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn rows<const NIBBLES: bool>(panel: *const u8, pair: usize, quarter: usize) -> [uint8x16_t; 2] {
    // SAFETY: the caller promises that this pair of rows exists.
    unsafe {
        if NIBBLES {
            let both = vld1q_u8(panel.add(pair * 64 + quarter * 16));
            [vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8::<4>(both)]
        } else {
            let row = panel.add(pair * 128 + quarter * 16);
            [vld1q_u8(row), vld1q_u8(row.add(64))]
        }
    }
}

/// Four products of unsigned bytes added to each of four sums.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn udot(mut sum: uint32x4_t, a: uint8x16_t, b: uint8x16_t) -> uint32x4_t {
    // SAFETY: touches registers alone, and the function's features include the instruction.
    unsafe {
        asm!(
            "udot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b, options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
