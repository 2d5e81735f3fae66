//! The products of a few queries: every code is used once or a few times, so that it goes from the cache to its products
//! without a stop in memory.

use super::KEYS;
use super::products::{Scores, Sums};
use crate::kernels::cpu::lanes::{Finish, LANES, Lanes};
use crate::kernels::cpu::prefetch::prefetch_line;

/// Rows that are multiplied at a time.
const ROWS: usize = 4;

/// `q k^T` with keys of packed codes.
pub(super) struct FewScores {
    /// `[rows, 8 lines]`.
    pub(super) q: *const i8,
    pub(super) rows: usize,
    /// Lines of 64 packed codes in a block of keys: groups of four channels in the lower halves of bytes, and as many in
    /// the upper.
    pub(super) lines: usize,
    /// `[blocks, lines, 16, 4]`.
    pub(super) codes: *const u8,
    pub(super) blocks: usize,
    /// Codes that are wanted next: as many lines are prefetched as are read.
    pub(super) ahead: *const u8,
    pub(super) scores: Scores,
}

impl FewScores {
    /// # Safety
    /// The operands are as the fields say, and those of the scores as theirs do.
    #[inline(always)]
    pub(super) unsafe fn run<L: Lanes>(&self, l: L) {
        // SAFETY: rows and blocks stay below their counts.
        unsafe {
            for block in (0..self.blocks).step_by(2) {
                for row in (0..self.rows).step_by(ROWS) {
                    match (self.rows - row, self.blocks - block) {
                        (1, 1) => self.block::<L, 1, 1>(l, row, block),
                        (2, 1) => self.block::<L, 2, 1>(l, row, block),
                        (3, 1) => self.block::<L, 3, 1>(l, row, block),
                        (_, 1) => self.block::<L, 4, 1>(l, row, block),
                        (1, _) => self.block::<L, 1, 2>(l, row, block),
                        (2, _) => self.block::<L, 2, 2>(l, row, block),
                        (3, _) => self.block::<L, 3, 2>(l, row, block),
                        _ => self.block::<L, 4, 2>(l, row, block),
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const NV: usize>(&self, l: L, row: usize, block: usize) {
        let mut acc = [[[l.zero_int(); 2]; R]; NV];
        let stride = 8 * self.lines;
        // SAFETY: by the caller's promise.
        unsafe {
            let q = self.q.add(row * stride);
            let codes = self.codes.add(block * self.lines * 64);
            for line in 0..self.lines {
                for (v, acc) in acc.iter_mut().enumerate() {
                    if row == 0 {
                        // In the order in which they lie, which the machine's own prefetcher follows.
                        prefetch_line(self.ahead.wrapping_add((block * self.lines + line * NV + v) * 64));
                    }
                    let (low, high) = l.nibbles(l.load_bytes_at(codes.add((v * self.lines + line) * 64)));
                    for (r, [of_low, of_high]) in acc.iter_mut().enumerate() {
                        let q = q.add(r * stride + 4 * line);
                        *of_low = l.dot4::<false>(*of_low, low, q.cast::<i32>().read_unaligned());
                        let q = q.add(4 * self.lines);
                        *of_high = l.dot4::<false>(*of_high, high, q.cast::<i32>().read_unaligned());
                    }
                }
            }
            for (v, acc) in acc.iter().enumerate() {
                let mut dots = [l.splat(0.0); R];
                for (dot, &[low, high]) in dots.iter_mut().zip(acc) {
                    *dot = l.to_float(l.add_int(low, high));
                }
                self.scores.finish(l, row, block + v, &dots);
            }
        }
    }
}

/// Weighted values of codes.
pub(super) struct FewSums {
    /// `[rows, 2, KEYS]`.
    pub(super) weights: *const i8,
    pub(super) rows: usize,
    /// `[4 groups, row]`.
    pub(super) codes: *const u8,
    pub(super) row: usize,
    pub(super) groups: usize,
    pub(super) bits: u32,
    /// As [`FewScores::ahead`].
    pub(super) ahead: *const u8,
    pub(super) sums: Sums,
}

impl FewSums {
    /// # Safety
    /// As [`FewScores::run`].
    #[inline(always)]
    pub(super) unsafe fn run<L: Lanes>(&self, l: L) {
        // SAFETY: by the caller's promise.
        unsafe {
            match self.bits {
                0..=4 => self.rows::<L, 2, false>(l),
                5..=7 => self.rows::<L, 1, false>(l),
                _ => self.rows::<L, 1, true>(l),
            }
        }
    }

    #[inline(always)]
    unsafe fn rows<L: Lanes, const NIBBLES: usize, const WIDE: bool>(&self, l: L) {
        // SAFETY: rows and chunks stay below their counts.
        unsafe {
            for chunk in 0..self.row / LANES {
                for row in (0..self.rows).step_by(ROWS) {
                    match self.rows - row {
                        1 => self.chunk::<L, 1, NIBBLES, WIDE>(l, row, chunk),
                        2 => self.chunk::<L, 2, NIBBLES, WIDE>(l, row, chunk),
                        3 => self.chunk::<L, 3, NIBBLES, WIDE>(l, row, chunk),
                        _ => self.chunk::<L, 4, NIBBLES, WIDE>(l, row, chunk),
                    }
                }
            }
        }
    }

    /// 16 bytes of every row of codes.
    #[inline(always)]
    unsafe fn chunk<L: Lanes, const R: usize, const NIBBLES: usize, const WIDE: bool>(
        &self,
        l: L,
        row: usize,
        chunk: usize,
    ) {
        // `[nibble][row][high, low]`.
        let mut acc = [[[l.zero_int(); 2]; R]; NIBBLES];
        // SAFETY: by the caller's promise.
        unsafe {
            let weights = self.weights.add(row * 2 * KEYS);
            let codes = self.codes.add(chunk * LANES);
            for group in 0..self.groups {
                let key = codes.add(group * 4 * self.row);
                if row == 0 {
                    // Four rows have as many lines as a row has chunks.
                    prefetch_line(self.ahead.wrapping_add((chunk * self.groups + group) * 64));
                }
                let [a, b, c, d] = [key, key.add(self.row), key.add(2 * self.row), key.add(3 * self.row)];
                let codes = l.interleave([&*a.cast(), &*b.cast(), &*c.cast(), &*d.cast()]);
                let (low, high) = if NIBBLES == 2 { l.nibbles(codes) } else { (codes, codes) };
                for (acc, codes) in acc.iter_mut().zip([low, high]) {
                    for (r, acc) in acc.iter_mut().enumerate() {
                        for (part, acc) in acc.iter_mut().enumerate() {
                            let weights = weights.add((2 * r + part) * KEYS + 4 * group);
                            *acc = l.dot4::<WIDE>(*acc, codes, weights.cast::<i32>().read_unaligned());
                        }
                    }
                }
            }
            for (nibble, acc) in acc.iter().enumerate() {
                let block = nibble * self.row / LANES + chunk;
                for (r, acc) in acc.iter().enumerate() {
                    self.sums.finish(l, 2 * (row + r), block, &[l.to_float(acc[0]), l.to_float(acc[1])]);
                }
            }
        }
    }
}
