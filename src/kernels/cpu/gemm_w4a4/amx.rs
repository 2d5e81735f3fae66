//! AMX: `tdpbuud` multiplies a tile of 16 tokens by 64 input channels with one of 64 input channels by 16 output
//! channels and adds into 16 by 16 `i32`. The intrinsics are not stable Rust, so the instructions stand in `asm!`.
//!
//! Activations are repacked into tiles once a call. A job takes two panels (32 channels) and some tokens: it unpacks a
//! stretch of `K` of the panels into the L1 cache and runs all its tokens over it, then the next stretch; the sums wait
//! in an L2-resident buffer in between. A job configures the tiles at its start and releases them at its end, because
//! it cannot know which thread it is on.

use super::pack::{BLOCK, PANEL};
use super::parallel;
use super::task::Task;
use rayon::prelude::*;
use std::arch::asm;
use std::arch::x86_64::{
    _mm512_and_si512, _mm512_loadu_si512, _mm512_set1_epi8, _mm512_srli_epi16, _mm512_storeu_si512,
};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Bytes of a tile: 16 rows of 64.
const TILE: usize = 1024;
/// Most blocks of 64 input channels in a stretch: two panels of them take 32 KB of the L1 cache.
const STRETCH: usize = 16;
/// Most tokens of a job.
const TOKENS: usize = 512;
/// Bytes of activations that a job keeps coming back to; half of a 2 MiB L2 cache.
const ACTIVATION_BYTES: usize = 1 << 20;

#[repr(C, align(64))]
struct Aligned<T>(T);

/// The tile configuration of `ldtilecfg`: palette 1, every tile 16 rows of 64 bytes.
static CONFIG: Aligned<[u8; 64]> = {
    let mut config = [0_u8; 64];
    config[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = 16;
        tile += 1;
    }
    Aligned(config)
};

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
    parallel(parts * pairs, |job| {
        let (part, pair) = (job / pairs, job % pairs);
        let range = part * per_part..((part + 1) * per_part).min(groups);
        // SAFETY: jobs are disjoint rectangles of the output; `plan` made sure that AMX is granted.
        unsafe { self::job(task, tiles, range, pair * 2) };
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
            let codes = (t < task.tokens).then(|| &task.codes[t * task.stride..][..blocks * BLOCK]);
            for (block, tile) in tiles.chunks_exact_mut(TILE).enumerate() {
                let to = &mut tile[row * 64..row * 64 + 64];
                match codes {
                    Some(codes) => to.copy_from_slice(&codes[block * BLOCK..(block + 1) * BLOCK]),
                    None => to.fill(0),
                }
            }
        }
    };
    if tiles.len() < 1 << 17 {
        tiles.chunks_exact_mut(blocks * TILE).enumerate().for_each(group);
    } else {
        tiles.par_chunks_exact_mut(blocks * TILE).enumerate().for_each(group);
    }
}

/// The groups of 16 tokens `groups` by the panels `panel` and `panel + 1`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn job(task: &Task, tiles: &[u8], groups: Range<usize>, panel: usize) {
    let mut weights = MaybeUninit::<Aligned<[u8; 2 * STRETCH * TILE]>>::uninit();
    let mut sums = MaybeUninit::<Aligned<[i32; 32 * TOKENS]>>::uninit();
    let (weights, sums) = (weights.as_mut_ptr().cast::<u8>(), sums.as_mut_ptr().cast::<i32>());
    let blocks = task.weights.blocks();
    let stretches = blocks.div_ceil(STRETCH).max(1);
    let stretch = blocks.div_ceil(stretches);
    // SAFETY: the configuration is 64 readable bytes of palette 1.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
    for s in 0..stretches {
        let first = s * stretch;
        let count = stretch.min(blocks - first);
        // SAFETY: `count <= STRETCH` blocks of each panel are written; `first + count <= blocks`.
        unsafe {
            unpack(task, panel, first, count, weights);
            unpack(task, panel + 1, first, count, weights.add(STRETCH * TILE));
        }
        let mut group = groups.start;
        while group < groups.end {
            let two = group + 1 < groups.end;
            // SAFETY: sums of group g are 16 tokens by 32 channels at 512 (g - start), and there are at most TOKENS / 16
            // groups; tiles of a group are `blocks` long.
            unsafe {
                let c = sums.add((group - groups.start) * 512);
                let a = tiles.as_ptr().add((group * blocks + first) * TILE);
                multiply(a, two.then(|| a.add(blocks * TILE)), weights, count, c, s == 0);
                if s + 1 == stretches {
                    finish(task, group, c, panel);
                    if two {
                        finish(task, group + 1, c.add(512), panel);
                    }
                }
            }
            group += 2;
        }
    }
    // SAFETY: releases what this job configured.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// Blocks `first..first + count` of a panel, one code a byte, to `out`, `[count][16 quads][16 channels][4]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn unpack(task: &Task, panel: usize, first: usize, count: usize, out: *mut u8) {
    let block_bytes = task.weights.block_bytes();
    let packed = &task.weights.panel(panel, 1)[first * block_bytes..(first + count) * block_bytes];
    if !task.weights.nibbles() {
        // SAFETY: `out` has room for `count` blocks of 1024 bytes, which is what `packed` is.
        unsafe { std::ptr::copy_nonoverlapping(packed.as_ptr(), out, packed.len()) };
        return;
    }
    let mask = _mm512_set1_epi8(15);
    for i in 0..packed.len() / 64 {
        // SAFETY: as above; nibbles double in size.
        unsafe {
            let both = _mm512_loadu_si512(packed.as_ptr().add(i * 64).cast());
            _mm512_storeu_si512(out.add(i * 128).cast(), _mm512_and_si512(both, mask));
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask);
            _mm512_storeu_si512(out.add(i * 128 + 64).cast(), high);
        }
    }
}

/// `c (+)= a b` over `count` blocks, for one or two groups of tokens by two panels. `c` is `[group][panel][16][16]`.
unsafe fn multiply(a0: *const u8, a1: Option<*const u8>, b: *const u8, count: usize, c: *mut i32, first: bool) {
    // SAFETY: in all of this function tiles are configured as 16 rows of 64 bytes, and the caller vouches for `count`
    // tiles behind each of `a0`, `a1`, `b` and `b + STRETCH * TILE` and for four (or two) tiles at `c`.
    unsafe {
        if first {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        } else {
            asm!(
                "tileloadd tmm0, [{c} + {s}]",
                "tileloadd tmm1, [{c} + {s} + 1024]",
                c = in(reg) c, s = in(reg) 64_usize, options(nostack, readonly)
            );
            if a1.is_some() {
                asm!(
                    "tileloadd tmm2, [{c} + {s} + 2048]",
                    "tileloadd tmm3, [{c} + {s} + 3072]",
                    c = in(reg) c, s = in(reg) 64_usize, options(nostack, readonly)
                );
            }
        }
        if let Some(a1) = a1 {
            for block in 0..count {
                let at = block * TILE;
                asm!(
                    "tileloadd tmm6, [{b} + {s}]",
                    "tileloadd tmm4, [{a0} + {s}]",
                    "tdpbuud tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {s} + {panel}]",
                    "tdpbuud tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a1} + {s}]",
                    "tdpbuud tmm2, tmm5, tmm6",
                    "tdpbuud tmm3, tmm5, tmm7",
                    a0 = in(reg) a0.add(at), a1 = in(reg) a1.add(at), b = in(reg) b.add(at), s = in(reg) 64_usize,
                    panel = const STRETCH * TILE, options(nostack, readonly)
                );
            }
        } else {
            for block in 0..count {
                let at = block * TILE;
                asm!(
                    "tileloadd tmm6, [{b} + {s}]",
                    "tileloadd tmm4, [{a0} + {s}]",
                    "tdpbuud tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {s} + {panel}]",
                    "tdpbuud tmm1, tmm4, tmm7",
                    a0 = in(reg) a0.add(at), b = in(reg) b.add(at), s = in(reg) 64_usize,
                    panel = const STRETCH * TILE, options(nostack, readonly)
                );
            }
        }
        asm!(
            "tilestored [{c} + {s}], tmm0",
            "tilestored [{c} + {s} + 1024], tmm1",
            c = in(reg) c, s = in(reg) 64_usize, options(nostack)
        );
        if a1.is_some() {
            asm!(
                "tilestored [{c} + {s} + 2048], tmm2",
                "tilestored [{c} + {s} + 3072], tmm3",
                c = in(reg) c, s = in(reg) 64_usize, options(nostack)
            );
        }
    }
}

/// The epilogue of 16 tokens by two panels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn finish(task: &Task, group: usize, c: *const i32, panel: usize) {
    for p in panel..(panel + 2).min(task.weights.panels()) {
        for row in 0..16.min(task.tokens - group * 16) {
            // SAFETY: `c` holds 16 by 16 sums a panel; the elements belong to this job.
            unsafe {
                let acc = &*c.add((p - panel) * 256 + row * PANEL).cast::<[i32; PANEL]>();
                task.finish(group * 16 + row, p, acc, 0);
            }
        }
    }
}
