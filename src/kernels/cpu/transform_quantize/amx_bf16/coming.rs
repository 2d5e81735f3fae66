//! The channels of all groups on their way into the operands of a rotation.

use super::columns::{CHUNK, OCTET};
use super::input::Input;
use super::product::Rotation;
use super::round::{round_pairs, split_pairs};
use super::steps::{DEPTH, parts};
use crate::kernels::cpu::tile_registers::TILE;
use crate::kernels::cpu::tiles::Line;
use std::arch::x86_64::_mm512_store_si512;

/// Where a chunk of channels begins.
#[derive(Clone, Copy)]
struct Cursor {
    group: usize,
    channel: usize,
}

impl Cursor {
    #[inline(always)]
    fn advance(&mut self, block: usize) {
        self.channel += CHUNK;
        if self.channel == block {
            *self = Self { group: self.group + 1, channel: 0 };
        }
    }
}

/// A chunk of 16 channels at a time: the rows of its lanes are staged, whole cache lines of them, and while those of the next
/// chunk are, it becomes columns of bfloat16, one or two a number. Both together are cut into ten pieces, of which each has little to do.
pub(super) struct Coming<'a, I, const FINE: bool> {
    rotation: Rotation<FINE>,
    input: &'a I,
    /// The chunk whose rows are staged.
    staged: Cursor,
    /// The chunk before, which becomes columns.
    laid: Cursor,
    /// Chunks to bring in during so many steps, and those due: its numerator, to the number of steps.
    chunks: usize,
    steps: usize,
    due: usize,
    /// Two chunks `[16 lanes][16 channels]`, in turns.
    stage: Line<[[f32; 16 * CHUNK]; 2]>,
}

impl<'a, I: Input, const FINE: bool> Coming<'a, I, FINE> {
    /// Stages the first chunk.
    ///
    /// # Safety
    /// The machine has AVX-512, `input` has the groups of the rotation, and its operands can be written.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn new(rotation: Rotation<FINE>, input: &'a I) -> Self {
        let start = Cursor { group: 0, channel: 0 };
        let stage = Line([[0.0; 16 * CHUNK]; 2]);
        let mut coming = Self { rotation, input, staged: start, laid: start, chunks: 0, steps: 1, due: 0, stage };
        for lane in (0..16).step_by(2) {
            // SAFETY: by the caller's promise.
            unsafe { coming.stage(lane) };
        }
        coming.staged.advance(rotation.block);
        coming
    }

    /// Spreads the next `chunks` evenly over `steps`.
    #[inline(always)]
    pub(super) fn spread(&mut self, chunks: usize, steps: usize) {
        (self.chunks, self.steps, self.due) = (chunks, steps, 0);
    }

    /// Whether there is a chunk to bring in during this step. If so all pieces of one are to follow, each once and in order, and
    /// [`Self::end_step`].
    #[inline(always)]
    pub(super) fn begin_step(&mut self) -> bool {
        self.due += self.chunks;
        self.due >= self.steps
    }

    /// Closes the chunk, and brings in more where more than one is due.
    ///
    /// # Safety
    /// As [`Self::bring`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn end_step(&mut self) {
        self.advance();
        self.due -= self.steps;
        while self.due >= self.steps {
            self.due -= self.steps;
            // SAFETY: by the caller's promise.
            unsafe { self.bring(1) };
        }
    }

    /// The next chunks.
    ///
    /// # Safety
    /// There are as many, and the operands of their groups are free.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn bring(&mut self, chunks: usize) {
        for _ in 0..chunks {
            // SAFETY: by the caller's promise.
            unsafe {
                self.columns(0);
                self.columns(1);
                for lane in (0..16).step_by(2) {
                    self.stage(lane);
                }
            }
            self.advance();
        }
    }

    /// Piece 0 to 9 of a chunk: columns of one half of the channels or two rows.
    ///
    /// # Safety
    /// As [`Self::bring`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn piece<const PIECE: usize>(&mut self) {
        // SAFETY: by the caller's promise.
        unsafe {
            if PIECE.is_multiple_of(5) {
                self.columns(PIECE / 5);
            } else {
                self.stage((PIECE - 1 - PIECE / 5) * 2);
            }
        }
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.staged.advance(self.rotation.block);
        self.laid.advance(self.rotation.block);
    }

    /// Two rows of the chunk that is staged. Behind the last chunk others take its place, which nothing comes to read: that
    /// saves a branch.
    ///
    /// # Safety
    /// As [`Self::bring`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn stage(&mut self, lane: usize) {
        let Cursor { group, channel } = self.staged;
        let group = group.min(self.rotation.groups - 1);
        let stage = self.stage.0[channel / CHUNK % 2].as_mut_ptr();
        // SAFETY: by the caller's promise.
        unsafe { self.input.stage(group, channel, lane, stage.add(lane * CHUNK)) };
    }

    /// Half `half` of the channels of the chunk before.
    ///
    /// # Safety
    /// As [`Self::bring`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn columns(&mut self, half: usize) {
        let Cursor { group, channel } = self.laid;
        let stage = self.stage.0[channel / CHUNK % 2].as_ptr();
        let channel = channel + half * OCTET;
        let out =
            self.rotation.operand(group).wrapping_add(channel / DEPTH * parts(FINE) * TILE + channel % DEPTH * 32);
        // SAFETY: by the caller's promise; two channels are a row of a tile.
        unsafe {
            let octet = self.input.octet(group, channel, stage.add(half * OCTET));
            for (pair, x) in octet.chunks_exact(2).enumerate() {
                let out = out.add(pair * 64);
                if FINE {
                    let (high, low) = split_pairs(x[0], x[1]);
                    _mm512_store_si512(out.cast(), high);
                    _mm512_store_si512(out.add(TILE).cast(), low);
                } else {
                    _mm512_store_si512(out.cast(), round_pairs(x[0], x[1]));
                }
            }
        }
    }
}
