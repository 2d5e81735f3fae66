//! One rotation of some groups: `y^T = R^T x^T` in tiles, with the vector work that comes before and behind it done while
//! tiles are multiplied.

use super::columns::{CHUNK, Extremes};
use super::coming::Coming;
use super::input::Input;
use super::round::{round, split};
use super::steps::{self, DEPTH, Step, Strip, group_bytes, parts};
use crate::kernels::cpu::tile_registers::TILE;

/// `u16` of one packed rotation.
pub(super) const fn packed_len(block: usize, fine: bool) -> usize {
    parts(fine) * block * block
}

/// `f32` that the operands of two pairs of groups take.
pub(super) const fn operands_len(block: usize, fine: bool) -> usize {
    4 * group_bytes(block, fine) / size_of::<f32>()
}

/// A rotation `[B, B]` as the left operand, `[B / 32 pairs of tiles of outputs][B / 32][high, low][2 tiles]` or high parts alone, a
/// tile being 16 outputs by 32 inputs: what a step reads lies in one piece.
pub(super) fn pack(rotation: &[f32], block: usize, fine: bool, tiles: &mut [u16]) {
    let mut tiles = tiles.chunks_exact_mut(TILE / size_of::<u16>());
    for outputs in (0..block).step_by(DEPTH) {
        for inputs in (0..block).step_by(DEPTH) {
            for part in 0..parts(fine) {
                for half in 0..2 {
                    let Some(tile) = tiles.next() else { return };
                    for (at, value) in tile.iter_mut().enumerate() {
                        let (row, column) = (inputs + at % DEPTH, outputs + half * 16 + at / DEPTH);
                        let number = rotation[row * block + column];
                        *value = if part == 0 { round(number) } else { split(number).1 };
                    }
                }
            }
        }
    }
}

/// One rotation of every group, with numbers of two bfloat16 if it is to be `FINE`.
#[derive(Clone, Copy)]
pub(super) struct Rotation<const FINE: bool> {
    pub(super) block: usize,
    /// [`pack`]'s.
    pub(super) tiles: *const u16,
    /// At least one.
    pub(super) groups: usize,
    /// `[groups][B][16 lanes]`.
    pub(super) out: *mut f32,
    /// [`operands_len`] values.
    pub(super) operands: *mut f32,
}

impl<const FINE: bool> Rotation<FINE> {
    /// Rotates what `input` brings in, and where `extremes` are wanted looks at every value of `out`.
    ///
    /// Two groups by two tiles of outputs are multiplied at a time, so that each tile that is loaded meets two. Nearly every
    /// product is followed by a little of bringing the next pair of groups in or of looking at the outputs before these: as
    /// long as the next products are within the reach of the processor, neither waits for the other.
    ///
    /// # Safety
    /// The pointers are good for what the fields say, `input` is good and reads nothing of `out`, and the tile registers are
    /// configured.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn run(&self, input: &impl Input, extremes: Option<&mut Extremes>) {
        // SAFETY: by the caller's promise.
        unsafe {
            let mut coming = Coming::new(*self, input);
            coming.bring(self.chunks(0));
            let mut looks = Looks { extremes: Extremes::new(), strip: None, depths: self.block / DEPTH };
            if let Some(extremes) = extremes {
                self.pairs::<true>(&mut coming, &mut looks);
                for slot in 0..Looks::SLOTS * looks.depths {
                    looks.slot(slot);
                }
                *extremes = looks.extremes;
            } else {
                self.pairs::<false>(&mut coming, &mut looks);
            }
        }
    }

    /// # Safety
    /// As [`Self::run`]; the first pair has been brought in.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn pairs<const LOOK: bool>(&self, coming: &mut Coming<'_, impl Input, FINE>, looks: &mut Looks) {
        let depths = self.block / DEPTH;
        for first in (0..self.groups).step_by(2) {
            coming.spread(self.chunks(first + 2), depths * depths);
            // SAFETY: by the caller's promise; groups stay below their count.
            unsafe {
                if first + 1 < self.groups {
                    self.pair::<true, LOOK>(first, coming, looks);
                } else {
                    self.pair::<false, LOOK>(first, coming, looks);
                }
            }
        }
    }

    /// The groups `first` and, if there are `TWO`, the next.
    ///
    /// # Safety
    /// As [`Self::run`]; the groups have been brought in.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn pair<const TWO: bool, const LOOK: bool>(
        &self,
        first: usize,
        coming: &mut Coming<'_, impl Input, FINE>,
        looks: &mut Looks,
    ) {
        let depths = self.block / DEPTH;
        let (b0, b1) = (self.operand(first), self.operand(first + 1));
        let mut a = self.tiles.cast::<u8>();
        for outputs in 0..depths {
            // SAFETY: channels stay below the block, tiles below the packed rotation's.
            unsafe {
                steps::zero();
                for depth in 0..depths {
                    let at = depth * parts(FINE) * TILE;
                    let step = Step::<TWO, FINE> { a, b0: b0.wrapping_add(at), b1: b1.wrapping_add(at) };
                    if coming.begin_step() {
                        busy::<TWO, LOOK, FINE>(step, coming, looks, depth);
                        coming.end_step();
                    } else {
                        step.all();
                        for slot in 0..Looks::SLOTS {
                            looks.turn::<LOOK>(depth * Looks::SLOTS + slot);
                        }
                    }
                    a = a.wrapping_add(parts(FINE) * 2 * TILE);
                }
                let out = self.out.add((first * self.block + outputs * DEPTH) * 16);
                let strip = Strip { out, block: self.block, two: TWO };
                strip.store();
                looks.strip = Some(strip);
            }
        }
    }

    /// Chunks of channels in the pair of groups that begins with `first`.
    fn chunks(&self, first: usize) -> usize {
        self.groups.saturating_sub(first).min(2) * (self.block / CHUNK)
    }

    /// Where the operand of a group lies; the pairs take turns.
    #[inline(always)]
    pub(super) fn operand(&self, group: usize) -> *mut u8 {
        self.operands.cast::<u8>().wrapping_add(group % 4 * group_bytes(self.block, FINE))
    }
}

/// A step with the pieces of a chunk between its products. There is no branch in here but what `coming` does itself.
///
/// # Safety
/// As [`Rotation::run`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn busy<const TWO: bool, const LOOK: bool, const FINE: bool>(
    step: Step<TWO, FINE>,
    coming: &mut Coming<'_, impl Input, FINE>,
    looks: &mut Looks,
    depth: usize,
) {
    let slot = depth * Looks::SLOTS;
    // SAFETY: by the caller's promise.
    unsafe {
        if FINE {
            step.first::<0>();
            coming.piece::<0>();
            step.second::<0>();
            coming.piece::<1>();
            step.first::<1>();
            coming.piece::<2>();
            step.second::<1>();
            coming.piece::<3>();
            step.first::<2>();
            coming.piece::<4>();
            step.second::<2>();
            looks.turn::<LOOK>(slot);
            step.first::<3>();
            coming.piece::<5>();
            step.second::<3>();
            looks.turn::<LOOK>(slot + 1);
            coming.piece::<6>();
            step.first::<4>();
            coming.piece::<7>();
            step.second::<4>();
            looks.turn::<LOOK>(slot + 2);
            coming.piece::<8>();
            step.first::<5>();
            coming.piece::<9>();
            step.second::<5>();
            looks.turn::<LOOK>(slot + 3);
        } else {
            step.first::<0>();
            coming.piece::<0>();
            coming.piece::<1>();
            looks.turn::<LOOK>(slot);
            step.second::<0>();
            coming.piece::<2>();
            coming.piece::<3>();
            coming.piece::<4>();
            looks.turn::<LOOK>(slot + 1);
            step.first::<1>();
            coming.piece::<5>();
            coming.piece::<6>();
            looks.turn::<LOOK>(slot + 2);
            step.second::<1>();
            coming.piece::<7>();
            coming.piece::<8>();
            coming.piece::<9>();
            looks.turn::<LOOK>(slot + 3);
        }
    }
}

/// Looks at the outputs of the strip before, some in each slot of a strip's steps.
struct Looks {
    extremes: Extremes,
    strip: Option<Strip>,
    /// Steps of a strip.
    depths: usize,
}

impl Looks {
    /// Slots of a step.
    const SLOTS: usize = 4;

    /// Slot `slot` of a strip, if there is to be a `LOOK`.
    ///
    /// # Safety
    /// The strip is stored.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn turn<const LOOK: bool>(&mut self, slot: usize) {
        if LOOK {
            // SAFETY: by the caller's promise.
            unsafe { self.slot(slot) };
        }
    }

    /// # Safety
    /// The strip is stored.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn slot(&mut self, slot: usize) {
        let Some(strip) = self.strip else { return };
        // Where slots do not divide the rows, the last ones look at some again.
        let rows = DEPTH.div_ceil(Self::SLOTS * self.depths);
        let first = (slot * rows).min(DEPTH - rows);
        // SAFETY: by the caller's promise.
        unsafe {
            self.extremes.look(strip.out, first..first + rows);
            if strip.two {
                self.extremes.look(strip.second(), first..first + rows);
            }
        }
    }
}
