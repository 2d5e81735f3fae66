//! [`Dots`] on AMX-INT8 tiles: exact, and so the same as everywhere.

use crate::kernels::cpu::lanes::{Avx512, Dots, Finish, LANES};
use crate::kernels::cpu::tile_registers;
use crate::kernels::cpu::tiles::Line;
use std::arch::asm;
use std::arch::x86_64::*;

/// Rows of a tile.
const TILE_ROWS: usize = 16;
/// Bytes of a row of a tile.
const CODES: usize = 64;

/// Does the rows of `p` that fill tiles, and gives how many these are.
///
/// # Safety
/// As [`Dots::run`]; this process may use tiles, and `4 groups` is a multiple of 64.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn dots<F: Finish>(p: &Dots, finish: F) -> usize {
    let rows = p.rows / TILE_ROWS * TILE_ROWS;
    if rows == 0 {
        // As in decode with wide codes: tiles would be configured for nothing.
        return 0;
    }
    let mut sums = Line([0_i32; 2 * 2 * TILE_ROWS * LANES]);
    let sums = sums.0.as_mut_ptr();
    let mut before: Option<Products> = None;
    let mut turn = 0;
    // SAFETY: rows, blocks and codes stay below their counts; the sums are two pairs of tiles. What is configured is
    // released.
    unsafe {
        tile_registers::configure();
        for block in (0..p.blocks).step_by(2) {
            let blocks = (p.blocks - block).min(2);
            for row in (0..rows).step_by(TILE_ROWS) {
                let sums = sums.add(turn * 2 * TILE_ROWS * LANES);
                turn = 1 - turn;
                let products = Products { row, block, blocks, sums };
                products.multiply(p);
                // Those of the tiles before are within reach while these are multiplied.
                if let Some(before) = before.replace(products) {
                    before.finish(p, finish);
                }
            }
        }
        if let Some(before) = before {
            before.finish(p, finish);
        }
        tile_registers::release();
    }
    rows
}

/// Products of 16 rows with one or two blocks of columns.
#[derive(Clone, Copy)]
struct Products {
    row: usize,
    block: usize,
    blocks: usize,
    /// `[2][16 rows][16 columns]`.
    sums: *mut i32,
}

impl Products {
    /// # Safety
    /// The tiles are configured, the operands are there, and there is room for two tiles of sums.
    #[inline(always)]
    unsafe fn multiply(self, p: &Dots) {
        let (line, length) = (CODES, 4 * p.groups);
        // SAFETY: by the caller's promise.
        unsafe {
            let q = p.q.add(self.row * p.q_stride);
            let columns = p.columns.add(self.block * p.groups * CODES);
            asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
            for at in (0..length).step_by(CODES) {
                asm!(
                    "tileloadd tmm4, [{q} + {stride}]",
                    "tileloadd tmm6, [{c} + {s}]",
                    "tdpbsud tmm0, tmm4, tmm6",
                    q = in(reg) q.add(at), c = in(reg) columns.add(at * LANES), stride = in(reg) p.q_stride,
                    s = in(reg) line, options(nostack, readonly)
                );
                if self.blocks == 2 {
                    asm!(
                        "tileloadd tmm7, [{c} + {s}]",
                        "tdpbsud tmm1, tmm4, tmm7",
                        c = in(reg) columns.add((length + at) * LANES), s = in(reg) line,
                        options(nostack, readonly)
                    );
                }
            }
            asm!(
                "tilestored [{c} + {s}], tmm0",
                "tilestored [{c} + {s} + 1024], tmm1",
                c = in(reg) self.sums, s = in(reg) line, options(nostack)
            );
        }
    }

    /// # Safety
    /// As [`Dots::run`], and the sums are there.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn finish(self, p: &Dots, finish: impl Finish) {
        // SAFETY: by the caller's promise; this function has the features.
        unsafe {
            let l = Avx512::new();
            for v in 0..self.blocks {
                let mut dots = [_mm512_setzero_ps(); TILE_ROWS];
                for (r, dot) in dots.iter_mut().enumerate() {
                    *dot = _mm512_cvtepi32_ps(_mm512_load_si512(self.sums.add((v * TILE_ROWS + r) * LANES).cast()));
                }
                finish.finish(l, p.first + self.row, self.block + v, &dots);
            }
        }
    }
}
