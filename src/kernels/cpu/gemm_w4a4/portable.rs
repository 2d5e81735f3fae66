//! Scalar Rust: what every machine can run, and the plainest reading of the layout.

use super::pack::{BLOCK, PANEL};
use super::task::Task;
use std::ops::Range;

/// Computes the tokens `tokens` of the panels `panels`.
///
/// # Safety
/// No other thread writes these elements of the output.
pub(super) unsafe fn run(task: &Task, tokens: Range<usize>, panels: Range<usize>) {
    for panel in panels {
        let packed = task.weights.panel(panel, 1);
        for t in tokens.clone() {
            let codes = &task.codes[t * task.stride..][..task.weights.blocks() * BLOCK];
            let acc = if task.weights.nibbles() { nibbles(codes, packed) } else { bytes(codes, packed) };
            // SAFETY: the caller's promise.
            unsafe { task.finish(t, panel, &acc, 0) };
        }
    }
}

fn nibbles(codes: &[u8], packed: &[u8]) -> [i32; PANEL] {
    let mut acc = [0_i32; PANEL];
    for (x, row) in codes.chunks_exact(8).zip(packed.chunks_exact(64)) {
        for (acc, w) in acc.iter_mut().zip(row.chunks_exact(4)) {
            for i in 0..4 {
                *acc += i32::from(x[i]) * i32::from(w[i] & 15) + i32::from(x[4 + i]) * i32::from(w[i] >> 4);
            }
        }
    }
    acc
}

fn bytes(codes: &[u8], packed: &[u8]) -> [i32; PANEL] {
    let mut acc = [0_i32; PANEL];
    for (x, row) in codes.chunks_exact(4).zip(packed.chunks_exact(64)) {
        for (acc, w) in acc.iter_mut().zip(row.chunks_exact(4)) {
            for i in 0..4 {
                *acc = acc.wrapping_add(i32::from(x[i]) * i32::from(w[i]));
            }
        }
    }
    acc
}
