//! One rotation of some groups: `y^T = R^T x^T` in tiles, with the vector work that comes before and behind it done while
//! tiles are multiplied.

use super::columns::{CHUNK, Extremes, Input};
use super::split::{split, split_pairs};
use crate::kernels::cpu::tile_registers::TILE;
use std::arch::asm;
use std::arch::x86_64::*;

/// Input channels of a product of two tiles.
const DEPTH: usize = 32;

/// `u16` of one packed rotation.
pub(super) const fn packed_len(block: usize) -> usize {
    2 * block * block
}

/// `f32` that the operands of two pairs of groups take.
pub(super) const fn operands_len(block: usize) -> usize {
    4 * group_bytes(block) / size_of::<f32>()
}

/// Bytes of the operand that a group becomes: `[B / 32][high, low][16 pairs of channels][16 lanes][2]`.
const fn group_bytes(block: usize) -> usize {
    block / DEPTH * 2 * TILE
}

/// A rotation `[B, B]` as the left operand, `[B / 32 pairs of tiles of outputs][B / 32][high, low][2 tiles]`, a tile being
/// 16 outputs by 32 inputs: what a step reads lies in one piece.
pub(super) fn pack(rotation: &[f32], block: usize, tiles: &mut [u16]) {
    let mut tiles = tiles.chunks_exact_mut(TILE / size_of::<u16>());
    for outputs in (0..block).step_by(DEPTH) {
        for inputs in (0..block).step_by(DEPTH) {
            for part in 0..2 {
                for half in 0..2 {
                    let Some(tile) = tiles.next() else { return };
                    for (at, value) in tile.iter_mut().enumerate() {
                        let (row, column) = (inputs + at % DEPTH, outputs + half * 16 + at / DEPTH);
                        let parts = split(rotation[row * block + column]);
                        *value = if part == 0 { parts.0 } else { parts.1 };
                    }
                }
            }
        }
    }
}

/// One rotation of every group.
pub(super) struct Rotation<'a> {
    pub(super) block: usize,
    /// [`pack`]'s.
    pub(super) tiles: *const u16,
    pub(super) input: Input<'a>,
    pub(super) groups: usize,
    /// `[groups][B][16 lanes]`.
    pub(super) out: *mut f32,
    /// [`operands_len`] values.
    pub(super) operands: *mut f32,
}

impl Rotation<'_> {
    /// Rotates, and where `extremes` are wanted looks at every value of `out`.
    ///
    /// Two groups by two tiles of outputs are multiplied at a time, so that each tile that is loaded meets two. In between,
    /// the next pair of groups is brought in and the last pair looked at: neither waits for the tiles.
    ///
    /// # Safety
    /// The pointers are good for what the fields say, `input` is not `out`, and the tile registers are configured.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    pub(super) unsafe fn run(&self, mut extremes: Option<&mut Extremes>) {
        let block = self.block;
        let steps_of = block / DEPTH;
        let steps = steps_of * steps_of;
        // SAFETY: groups and chunks stay below their counts, tiles below the packed rotation's.
        unsafe {
            for unit in 0..self.units(0) {
                self.convert(0, unit);
            }
            for first in (0..self.groups).step_by(2) {
                let two = first + 1 < self.groups;
                let (b0, b1) = (self.operand(first), self.operand(first + 1));
                let (c0, c1) = (self.out.add(first * block * 16), self.out.add((first + 1) * block * 16));
                let units = self.units(first + 2);
                // The pair before this one, where there is one.
                let behind = self.out.add(first.saturating_sub(2) * block * 16);
                let rows = if first > 0 { 2 * block } else { 0 };
                for step in 0..steps {
                    let (outputs, depth) = (step / steps_of, step % steps_of);
                    if depth == 0 {
                        zero();
                    }
                    let a = self.tiles.cast::<u8>().add(step * 4 * TILE);
                    let at = depth * 2 * TILE;
                    if two {
                        step_two(a, b0.add(at), b1.add(at))
                    } else {
                        step_one(a, b0.add(at))
                    }
                    if depth + 1 == steps_of {
                        let at = outputs * 2 * 256;
                        store(c0.add(at), c1.wrapping_add(at), two);
                    }
                    for unit in step * units / steps..(step + 1) * units / steps {
                        self.convert(first + 2, unit);
                    }
                    if let Some(extremes) = extremes.as_deref_mut() {
                        extremes.look(behind, step * rows / steps..(step + 1) * rows / steps);
                    }
                }
            }
            if let Some(extremes) = extremes {
                let first = (self.groups - 1) / 2 * 2;
                extremes.look(self.out.add(first * block * 16), 0..(self.groups - first) * block);
            }
        }
    }

    /// Chunks of 16 channels in the pair of groups that begins with `first`.
    fn units(&self, first: usize) -> usize {
        self.groups.saturating_sub(first).min(2) * (self.block / CHUNK)
    }

    /// Where the operand of a group lies; the pairs take turns.
    fn operand(&self, group: usize) -> *mut u8 {
        self.operands.cast::<u8>().wrapping_add(group % 4 * group_bytes(self.block))
    }

    /// Brings chunk `unit` of the pair of groups that begins with `first` into the operand.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn convert(&self, first: usize, unit: usize) {
        let chunks = self.block / CHUNK;
        let (group, chunk) = (first + unit / chunks, unit % chunks);
        // SAFETY: the group and its chunk exist; a chunk fills half of a tile.
        unsafe {
            let rows = self.input.chunk(group, chunk);
            let out = self.operand(group).add(chunk / 2 * 2 * TILE + chunk % 2 * TILE / 2);
            for pair in 0..CHUNK / 2 {
                let (high, low) = split_pairs(rows[2 * pair], rows[2 * pair + 1]);
                _mm512_store_si512(out.add(pair * 64).cast(), high);
                _mm512_store_si512(out.add(TILE + pair * 64).cast(), low);
            }
        }
    }
}

// The tiles: outputs in tmm0 to tmm3 (`[tile of outputs][group]`), rotation in tmm4 and tmm5, groups in tmm6 and tmm7.

#[inline(always)]
unsafe fn zero() {
    // SAFETY: the caller has configured the tiles.
    unsafe { asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem)) };
}

/// Two tiles of outputs, of one or two groups.
#[inline(always)]
unsafe fn store(c0: *mut f32, c1: *mut f32, two: bool) {
    // SAFETY: the caller has configured the tiles and has room for two of them at each pointer that is used.
    unsafe {
        asm!(
            "tilestored [{c} + {s}], tmm0",
            "tilestored [{c} + {s} + 1024], tmm2",
            c = in(reg) c0, s = in(reg) 64_usize, options(nostack)
        );
        if two {
            asm!(
                "tilestored [{c} + {s}], tmm1",
                "tilestored [{c} + {s} + 1024], tmm3",
                c = in(reg) c1, s = in(reg) 64_usize, options(nostack)
            );
        }
    }
}

/// 32 input channels of two groups: high by low, high by high and low by high, in this order for each output.
#[inline(always)]
unsafe fn step_two(a: *const u8, b0: *const u8, b1: *const u8) {
    // SAFETY: the caller has configured the tiles, and has four tiles at `a` and two at `b0` and `b1`.
    unsafe {
        asm!(
            "tileloadd tmm6, [{b0} + {s} + 1024]",
            "tileloadd tmm4, [{a} + {s}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {s} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {s} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{b0} + {s}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {s}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {s} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {s} + 3072]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            a = in(reg) a, b0 = in(reg) b0, b1 = in(reg) b1, s = in(reg) 64_usize, options(nostack, readonly)
        );
    }
}

/// [`step_two`] of one group: the same operations for each output.
#[inline(always)]
unsafe fn step_one(a: *const u8, b: *const u8) {
    // SAFETY: the caller has configured the tiles, and has four tiles at `a` and two at `b`.
    unsafe {
        asm!(
            "tileloadd tmm7, [{b} + {s} + 1024]",
            "tileloadd tmm6, [{b} + {s}]",
            "tileloadd tmm4, [{a} + {s}]",
            "tileloadd tmm5, [{a} + {s} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm7",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm4, [{a} + {s} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a} + {s} + 3072]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            a = in(reg) a, b = in(reg) b, s = in(reg) 64_usize, options(nostack, readonly)
        );
    }
}
