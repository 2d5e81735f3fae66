//! One rotation of some groups: `y^T = R^T x^T` in tiles, with the vector work that comes before and behind it done while
//! tiles are multiplied.

use super::columns::{Extremes, OCTET};
use super::input::Input;
use super::split::{split, split_pairs};
use super::steps::{DEPTH, SLOTS, Step, Strip, group_bytes};
use crate::kernels::cpu::tile_registers::TILE;
use std::arch::x86_64::_mm512_store_si512;

/// `u16` of one packed rotation.
pub(super) const fn packed_len(block: usize) -> usize {
    2 * block * block
}

/// `f32` that the operands of two pairs of groups take.
pub(super) const fn operands_len(block: usize) -> usize {
    4 * group_bytes(block) / size_of::<f32>()
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
pub(super) struct Rotation {
    pub(super) block: usize,
    /// [`pack`]'s.
    pub(super) tiles: *const u16,
    pub(super) groups: usize,
    /// `[groups][B][16 lanes]`.
    pub(super) out: *mut f32,
    /// [`operands_len`] values.
    pub(super) operands: *mut f32,
}

impl Rotation {
    /// Rotates what `input` brings in, and where `extremes` are wanted looks at every value of `out`.
    ///
    /// Two groups by two tiles of outputs are multiplied at a time, so that each tile that is loaded meets two. Every slot
    /// of a step is followed by a little of bringing the next pair of groups in and of looking at the outputs before these:
    /// as long as the next products are within the reach of the processor, neither waits for the other.
    ///
    /// # Safety
    /// The pointers are good for what the fields say, `input` is good and reads nothing of `out`, and the tile registers are
    /// configured.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn run(&self, input: &impl Input, mut extremes: Option<&mut Extremes>) {
        let block = self.block;
        let depths = block / DEPTH;
        // SAFETY: groups and channels stay below their counts, tiles below the packed rotation's.
        unsafe {
            let mut coming = Coming { rotation: self, input, group: 0, channel: 0, pace: Pace::new(0, 1) };
            for _ in 0..self.octets(0) {
                coming.octet();
            }
            let mut before: Option<Strip> = None;
            for first in (0..self.groups).step_by(2) {
                let two = first + 1 < self.groups;
                let (b0, b1) = (self.operand(first), self.operand(first + 1));
                coming.pace = Pace::new(self.octets(first + 2), SLOTS * depths * depths);
                for outputs in 0..depths {
                    let a = self.tiles.cast::<u8>().add(outputs * depths * 4 * TILE);
                    let mut looks = Looks::new(extremes.as_deref_mut(), before, depths);
                    for depth in 0..depths {
                        let at = depth * 2 * TILE;
                        let a = a.add(2 * at);
                        let step = Step { a, b0: b0.wrapping_add(at), b1: b1.wrapping_add(at), two };
                        if depth == 0 {
                            step.begin::<0>(before.as_ref());
                            coming.slot();
                            step.begin::<1>(before.as_ref());
                        } else {
                            step.slot::<0>();
                            coming.slot();
                            step.slot::<1>();
                        }
                        coming.slot();
                        step.slot::<2>();
                        coming.slot();
                        looks.slot();
                        step.slot::<3>();
                        coming.slot();
                        looks.slot();
                        step.slot::<4>();
                        coming.slot();
                        looks.slot();
                        step.slot::<5>();
                        coming.slot();
                        looks.slot();
                    }
                    before = Some(Strip { out: self.out.add((first * block + outputs * DEPTH) * 16), block, two });
                }
            }
            if let Some(last) = before {
                last.store();
                let mut looks = Looks::new(extremes, before, 1);
                for _ in 0..Looks::SLOTS {
                    looks.slot();
                }
            }
        }
    }

    /// Runs of eight channels in the pair of groups that begins with `first`.
    fn octets(&self, first: usize) -> usize {
        self.groups.saturating_sub(first).min(2) * (self.block / OCTET)
    }

    /// Where the operand of a group lies; the pairs take turns.
    #[inline(always)]
    fn operand(&self, group: usize) -> *mut u8 {
        self.operands.cast::<u8>().wrapping_add(group % 4 * group_bytes(self.block))
    }
}

/// Spreads some pieces of work evenly over slots.
struct Pace {
    pieces: usize,
    slots: usize,
    due: usize,
}

impl Pace {
    fn new(pieces: usize, slots: usize) -> Self {
        Self { pieces, slots, due: 0 }
    }

    /// Begins a slot.
    #[inline(always)]
    fn slot(&mut self) {
        self.due += self.pieces;
    }

    /// Whether there is a piece to do in this slot.
    #[inline(always)]
    fn piece(&mut self) -> bool {
        let due = self.due >= self.slots;
        if due {
            self.due -= self.slots;
        }
        due
    }
}

/// The channels of all groups on their way into the operands, eight at a time.
struct Coming<'a, I> {
    rotation: &'a Rotation,
    input: &'a I,
    group: usize,
    channel: usize,
    pace: Pace,
}

impl<I: Input> Coming<'_, I> {
    /// What is due in the next slot.
    ///
    /// # Safety
    /// As [`Self::octet`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn slot(&mut self) {
        self.pace.slot();
        while self.pace.piece() {
            // SAFETY: by the caller's promise.
            unsafe { self.octet() };
        }
    }

    /// The next eight channels.
    ///
    /// # Safety
    /// There are any, and the operand of their group is free.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn octet(&mut self) {
        let (group, channel) = (self.group, self.channel);
        let out = self.rotation.operand(group).wrapping_add(channel / DEPTH * 2 * TILE + channel % DEPTH * 32);
        // SAFETY: by the caller's promise; two channels are a row of a tile.
        unsafe {
            let octet = self.input.octet(group, channel);
            for (pair, x) in octet.chunks_exact(2).enumerate() {
                let (high, low) = split_pairs(x[0], x[1]);
                _mm512_store_si512(out.add(pair * 64).cast(), high);
                _mm512_store_si512(out.add(TILE + pair * 64).cast(), low);
            }
        }
        self.channel += OCTET;
        if self.channel == self.rotation.block {
            (self.group, self.channel) = (group + 1, 0);
        }
    }
}

/// Looks at the outputs of a strip, two of each group at a time, in four of the slots of each step.
struct Looks<'a> {
    work: Option<(&'a mut Extremes, Strip)>,
    row: usize,
    pace: Pace,
}

impl<'a> Looks<'a> {
    /// Slots for all outputs where there is one step.
    const SLOTS: usize = 4;

    #[inline(always)]
    fn new(extremes: Option<&'a mut Extremes>, strip: Option<Strip>, steps: usize) -> Self {
        Self { work: extremes.zip(strip), row: 0, pace: Pace::new(DEPTH / 2, Self::SLOTS * steps) }
    }

    /// # Safety
    /// The outputs are stored.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn slot(&mut self) {
        let Some((extremes, strip)) = &mut self.work else { return };
        self.pace.slot();
        while self.pace.piece() {
            // SAFETY: by the caller's promise.
            unsafe {
                extremes.look(strip.out, self.row..self.row + 2);
                if strip.two {
                    extremes.look(strip.second(), self.row..self.row + 2);
                }
            }
            self.row += 2;
        }
    }
}
