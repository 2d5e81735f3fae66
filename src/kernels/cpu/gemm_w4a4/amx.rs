//! AMX: `tdpbuud` multiplies a tile of 16 tokens by 64 input channels with one of 64 input channels by 16 output
//! channels and adds into 16 by 16 `i32`. The intrinsics are not stable Rust, so the instructions stand in `asm!`.
//!
//! Activations are repacked into tiles once a call. A job takes two panels (32 channels) and some tokens: it unpacks a
//! stretch of `K` of the panels into the L1 cache and runs all its tokens over it, then the next stretch; the sums wait
//! in an L2-resident buffer in between. A job configures the tiles at its start and releases them at its end, because
//! it cannot know which thread it is on.

use super::pack::{BLOCK, PANEL};
use super::task::Task;
use super::{avx512, parallel};
use crate::kernels::cpu::tile_registers::{self, TILE};
use crate::kernels::cpu::tiles::Line;
use rayon::prelude::*;
use std::arch::asm;
use std::arch::x86_64::{
    _MM_HINT_T0, _mm_prefetch, _mm512_and_si512, _mm512_loadu_si512, _mm512_set1_epi8, _mm512_srli_epi16,
    _mm512_store_si512,
};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Most blocks of 64 input channels in a stretch. Two panels of weights take 18 KB, two groups of tokens as much, and the
/// sums 4 KB: together they fit an L1 cache of 48 KB, where weights stay while groups pass.
const STRETCH: usize = 9;
/// Most tokens of a job.
const TOKENS: usize = 512;
/// Bytes of activations that a job keeps coming back to; half of a 2 MiB L2 cache.
const ACTIVATION_BYTES: usize = 1 << 20;

/// Products of four tiles that a job should hold at least, some 10 microseconds.
const PRODUCTS: usize = 256;

/// Runs a task whose workspace has room for all tokens, in tiles of 16.
pub(super) fn run(task: &Task, workspace: &mut [u8]) {
    let blocks = task.weights.blocks();
    let groups = task.tokens.div_ceil(16);
    let skip = workspace.as_ptr().align_offset(64);
    let tiles = &mut workspace[skip..][..groups * blocks * TILE];
    repack(task, tiles);
    let tiles = &*tiles;

    let pairs = task.weights.panels().div_ceil(2);
    let most = (ACTIVATION_BYTES / (blocks * TILE).max(1)).clamp(2, TOKENS / 16);
    let parts = groups.div_ceil(most);
    let per_part = groups.div_ceil(parts).next_multiple_of(2);
    let parts = groups.div_ceil(per_part);
    // Configuring tiles costs some hundred cycles and a fork more, so that a job should hold many products of tiles.
    let products = (blocks * per_part.min(groups).div_ceil(2)).max(1);
    let width = (PRODUCTS / products).clamp(1, (pairs / 4).max(1));
    let across = pairs.div_ceil(width);
    parallel(parts * across, |job| {
        let (part, first) = (job / across, job % across * width);
        let range = part * per_part..((part + 1) * per_part).min(groups);
        // SAFETY: jobs are disjoint rectangles of the output; `plan` made sure that AMX is granted.
        unsafe { self::job(task, tiles, range, first..(first + width).min(pairs)) };
    });
}

/// Activation codes `[T, stride]` to tiles `[T / 16][K / 64][16][64]`; tokens that are not there become zeros.
fn repack(task: &Task, tiles: &mut [u8]) {
    let blocks = task.weights.blocks();
    if blocks == 0 {
        return;
    }
    let group = |(group, tiles): (usize, &mut [u8])| {
        for row in 0..16 {
            let t = group * 16 + row;
            let to = tiles[row * 64..].chunks_mut(TILE);
            if t < task.tokens {
                let codes = task.codes[t * task.stride..][..blocks * BLOCK].as_chunks::<BLOCK>().0;
                for (to, codes) in to.zip(codes) {
                    // A fixed length, so that this is one load and one store.
                    if let Some(to) = to.first_chunk_mut::<BLOCK>() {
                        *to = *codes;
                    }
                }
            } else {
                to.for_each(|to| to[..BLOCK].fill(0));
            }
        }
    };
    if tiles.len() < 1 << 17 {
        tiles.chunks_exact_mut(blocks * TILE).enumerate().for_each(group);
    } else {
        tiles.par_chunks_exact_mut(blocks * TILE).enumerate().for_each(group);
    }
}

/// The groups of 16 tokens `groups` by the pairs of panels `pairs`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn job(task: &Task, tiles: &[u8], groups: Range<usize>, pairs: Range<usize>) {
    // SAFETY: `plan` made sure that AMX is granted; what is configured here is released here.
    unsafe {
        tile_registers::configure();
        for pair in pairs {
            if groups.len() <= 2 {
                few(task, tiles, groups.clone(), pair * 2);
            } else {
                many(task, tiles, groups.clone(), pair * 2);
            }
        }
        tile_registers::release();
    }
}

/// One or two groups: the sums stay in the tiles, and each block is unpacked just before it is used, so that unpacking
/// the next one overlaps with multiplying this one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn few(task: &Task, tiles: &[u8], groups: Range<usize>, panel: usize) {
    const RING: usize = 4;
    let mut weights = MaybeUninit::<Line<[u8; 2 * RING * TILE]>>::uninit();
    let mut sums = MaybeUninit::<Line<[i32; 1024]>>::uninit();
    let (weights, sums) = (weights.as_mut_ptr().cast::<u8>(), sums.as_mut_ptr().cast::<i32>());
    let blocks = task.weights.blocks();
    let two = groups.len() == 2;
    let block_bytes = task.weights.block_bytes();
    let packed = task.weights.panel(panel, 2).as_ptr();
    // SAFETY: blocks of both panels and of the groups exist; the ring has `RING` pairs of tiles and `sums` four tiles.
    unsafe {
        let a = tiles.as_ptr().add(groups.start * blocks * TILE);
        zero();
        for block in 0..blocks {
            let b = weights.add(block % RING * 2 * TILE);
            for p in 0..2 {
                let packed = packed.add((p * blocks + block) * block_bytes);
                prefetch(packed.wrapping_add(AHEAD), block_bytes / 64);
                unpack(task.weights.nibbles(), packed, b.add(p * TILE));
            }
            let a = a.add(block * TILE);
            if two { step_two(a, a.add(blocks * TILE), b) } else { step_one(a, b) }
        }
        store(sums, two);
        finish(task, groups.start, sums, panel);
    }
}

/// Bytes of packed weights that are asked for ahead of their use.
const AHEAD: usize = 4096;

/// Asks for `lines` cache lines from `at` on, which may lie anywhere.
#[inline(always)]
fn prefetch(at: *const u8, lines: usize) {
    for line in 0..lines {
        // SAFETY: a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line * 64).cast()) };
    }
}

/// Many groups: a stretch of both panels is unpacked into the L1 cache and all groups run over it, while the sums wait
/// in a buffer.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn many(task: &Task, tiles: &[u8], groups: Range<usize>, panel: usize) {
    let mut weights = MaybeUninit::<Line<[u8; 2 * STRETCH * TILE]>>::uninit();
    let mut sums = MaybeUninit::<Line<[i32; 32 * TOKENS]>>::uninit();
    let (weights, sums) = (weights.as_mut_ptr().cast::<u8>(), sums.as_mut_ptr().cast::<i32>());
    let blocks = task.weights.blocks();
    let stretches = blocks.div_ceil(STRETCH).max(1);
    let stretch = blocks.div_ceil(stretches);
    let block_bytes = task.weights.block_bytes();
    let packed = task.weights.panel(panel, 2).as_ptr();
    for s in 0..stretches {
        let first = s * stretch;
        let count = stretch.min(blocks - first);
        for block in 0..count {
            for p in 0..2 {
                // SAFETY: `first + count <= blocks`, and `weights` has room for `STRETCH` blocks of both panels.
                unsafe {
                    let packed = packed.add((p * blocks + first + block) * block_bytes);
                    unpack(task.weights.nibbles(), packed, weights.add((block * 2 + p) * TILE));
                }
            }
        }
        // The next stretch, or the first one of the next pair of panels, comes while this one is multiplied.
        let next = if s + 1 == stretches { 2 * blocks } else { first + count };
        let lines = (count * block_bytes / 64).div_ceil(groups.len().div_ceil(2));
        let last = s + 1 == stretches;
        for group in groups.clone().step_by(2) {
            let two = group + 1 < groups.end;
            let ahead = next * block_bytes + (group - groups.start) / 2 * lines * 64;
            prefetch(packed.wrapping_add(ahead), lines);
            prefetch(packed.wrapping_add(ahead + blocks * block_bytes), lines);
            // SAFETY: sums of group g are 16 tokens by 32 channels at 512 (g - start), and there are at most TOKENS / 16
            // groups; tiles of a group are `blocks` long.
            unsafe {
                let c = sums.add((group - groups.start) * 512);
                let a = tiles.as_ptr().add((group * blocks + first) * TILE);
                if s == 0 {
                    zero()
                } else {
                    load(c, two)
                }
                for block in 0..count {
                    let (a, b) = (a.add(block * TILE), weights.add(block * 2 * TILE));
                    if two {
                        step_two(a, a.add(blocks * TILE), b)
                    } else {
                        step_one(a, b)
                    }
                    if last {
                        avx512::own(
                            task,
                            group * 16 + block * 32 / count..group * 16 + (block + 1) * 32 / count,
                            panel,
                        );
                    }
                }
                store(c, two);
                if last {
                    finish(task, group, c, panel);
                }
            }
        }
    }
}

/// One block of a panel to one code a byte, `[16 quads][16 channels][4]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn unpack(nibbles: bool, packed: *const u8, out: *mut u8) {
    let mask = _mm512_set1_epi8(15);
    // SAFETY: the caller vouches for a block at `packed` (512 bytes of nibbles or 1024 of bytes) and a tile at `out`.
    unsafe {
        if nibbles {
            for row in 0..8 {
                let both = _mm512_loadu_si512(packed.add(row * 64).cast());
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask);
                _mm512_store_si512(out.add(row * 128).cast(), _mm512_and_si512(both, mask));
                _mm512_store_si512(out.add(row * 128 + 64).cast(), high);
            }
        } else {
            for row in 0..16 {
                _mm512_store_si512(out.add(row * 64).cast(), _mm512_loadu_si512(packed.add(row * 64).cast()));
            }
        }
    }
}

// The tiles: sums of 16 tokens by 16 channels in tmm0 to tmm3 (`[group][panel]`), activations of two groups in tmm4 and
// tmm5, weights of two panels in tmm6 and tmm7.

#[inline(always)]
unsafe fn zero() {
    // SAFETY: the caller has configured the tiles.
    unsafe { asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem)) };
}

/// Loads the sums of one or two groups, two tiles each.
#[inline(always)]
unsafe fn load(c: *const i32, two: bool) {
    // SAFETY: the caller has configured the tiles and has so many tiles at `c`.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c} + {s}]",
            "tileloadd tmm1, [{c} + {s} + 1024]",
            c = in(reg) c, s = in(reg) 64_usize, options(nostack, readonly)
        );
        if two {
            asm!(
                "tileloadd tmm2, [{c} + {s} + 2048]",
                "tileloadd tmm3, [{c} + {s} + 3072]",
                c = in(reg) c, s = in(reg) 64_usize, options(nostack, readonly)
            );
        }
    }
}

/// Stores what [`load`] loads.
#[inline(always)]
unsafe fn store(c: *mut i32, two: bool) {
    // SAFETY: the caller has configured the tiles and has room for so many tiles at `c`.
    unsafe {
        asm!(
            "tilestored [{c} + {s}], tmm0",
            "tilestored [{c} + {s} + 1024], tmm1",
            c = in(reg) c, s = in(reg) 64_usize, options(nostack)
        );
        if two {
            asm!(
                "tilestored [{c} + {s} + 2048], tmm2",
                "tilestored [{c} + {s} + 3072], tmm3",
                c = in(reg) c, s = in(reg) 64_usize, options(nostack)
            );
        }
    }
}

/// Adds one block of one group by two panels.
#[inline(always)]
unsafe fn step_one(a: *const u8, b: *const u8) {
    // SAFETY: the caller has configured the tiles and has a tile at each pointer.
    unsafe {
        asm!(
            "tileloadd tmm6, [{b} + {s}]",
            "tileloadd tmm4, [{a0} + {s}]",
            "tdpbuud tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {s} + 1024]",
            "tdpbuud tmm1, tmm4, tmm7",
            a0 = in(reg) a, b = in(reg) b, s = in(reg) 64_usize, options(nostack, readonly)
        );
    }
}

/// Adds one block of two groups by two panels.
#[inline(always)]
unsafe fn step_two(a0: *const u8, a1: *const u8, b: *const u8) {
    // SAFETY: the caller has configured the tiles and has a tile at each pointer.
    unsafe {
        asm!(
            "tileloadd tmm6, [{b} + {s}]",
            "tileloadd tmm4, [{a0} + {s}]",
            "tdpbuud tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {s} + 1024]",
            "tdpbuud tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a1} + {s}]",
            "tdpbuud tmm2, tmm5, tmm6",
            "tdpbuud tmm3, tmm5, tmm7",
            a0 = in(reg) a0, a1 = in(reg) a1, b = in(reg) b, s = in(reg) 64_usize,
            options(nostack, readonly)
        );
    }
}

/// The epilogue of one or two groups by two panels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn finish(task: &Task, group: usize, c: *const i32, panel: usize) {
    let first = group * 16;
    let count = 32.min(task.tokens - first);
    for p in 0..(task.weights.panels() - panel).min(2) {
        // SAFETY: `c` holds 16 by 16 sums for each panel of each group; the elements belong to this job.
        unsafe {
            let acc = |row: usize| _mm512_loadu_si512(c.add(row / 16 * 512 + p * 256 + row % 16 * PANEL).cast());
            avx512::finish(task, first, count, panel + p, 0, acc);
        }
    }
}
