//! Dense rotations on AMX-BF16 tiles, for [`Arithmetic::Fast`](crate::kernels::Arithmetic::Fast).
//!
//! A rotation is `y^T = R^T x^T` on groups of 16 columns: one block of 16 tokens, or 16 blocks of one token. What comes out lies as
//! what goes in, `[channel][16]`, so that the permutation in between is which rows are read next (or a gather, where the
//! lanes are blocks), and extremes and codes are taken lane by lane.
//!
//! `x` and `R` are rounded to bfloat16, as they are in models of that type, where [`COARSE_BITS`] or fewer bits come behind: sums
//! and all that follows are `f32`. Else each is the sum of two bfloat16, and `x R ~ x_h R_h + x_l R_h + x_h R_l`.
//!
//! **Error.** Rounding `x` and `R` is within `2^-8` of each; splitting leaves `2^-16` of each out, and the product of the two low
//! parts, left out as well, is another `2^-16 |x| |R|`. Products are exact in `f32`; a tile of 32 channels is
//! summed up in two chains of 16, which are added to each other and to the sum so far, each time within `2^-24`. With `n B / 32`
//! tiles, of `n` products, an output is off by at most `(r + (17 + n B / 32) 2^-24 (1 + 2^-6)) sum |x| |R|`, where `r` is
//! `2^-7 + 2^-16` or `3 2^-16`, which is below [`error_bound`], and by what tiles take for zero: numbers below `2^-126`.
//!
//! Each output is one fixed chain of operations on its own column, whatever the group beside it and whichever the shape of
//! the groups: the bits of a token depend on that token alone.

mod codes;
mod columns;
mod coming;
mod input;
mod product;
mod round;
mod silu;
mod steps;

#[cfg(test)]
mod tests;

use super::tile::{Sink, Write};
use super::{COARSE_BITS, Source, TransformQuantize};
use crate::kernels::cpu::aligned::Aligned;
use crate::kernels::cpu::tile_registers;
use crate::kernels::{Affine, Transform};
use codes::{Codes, Columns};
use columns::{Extremes, LARGEST_BLOCK, Shape};
use input::{Gathered, Operands, Permuted, RmsNorm, Rows, SiluMul, Tokens};
use product::Rotation;

/// Tokens of a tile of them.
const TILE_TOKENS: usize = 16;

/// Least clip ratio with which codes are rounded in 32-bit integers.
const LEAST_CLIP: f32 = 1.0 / 1024.0;

/// Multiply-adds below which everything stays on the calling thread.
pub(super) const INLINE_WORK: usize = 1 << 22;

/// How some tokens are cut into jobs: tiles of them, and single ones where that ends sooner.
#[derive(Debug, Clone, Copy)]
pub(super) struct Division {
    tokens: usize,
    /// Jobs of one token, the last tokens.
    singles: usize,
}

/// What a tile costs, whether full or not, when one token alone costs 1: many tokens share a rotation's tiles in the first-level
/// cache. More where `K` is large and a single token fills many groups by itself; measured from 3 to 11.
const TILE_COST: usize = 6;

impl Division {
    pub(super) fn new(tokens: usize, threads: usize) -> Self {
        let rest = tokens % TILE_TOKENS;
        let cost = |&singles: &usize| {
            let tiles = (tokens - singles).div_ceil(TILE_TOKENS);
            let shared = (tiles * TILE_COST + singles).div_ceil(threads);
            shared.max(tiles.div_ceil(threads) * TILE_COST)
        };
        let singles = [rest, 0, tokens].into_iter().min_by_key(cost).unwrap_or(rest);
        Self { tokens, singles }
    }

    pub(super) fn jobs(self) -> usize {
        self.singles + (self.tokens - self.singles).div_ceil(TILE_TOKENS)
    }

    /// First token and count of a job. The last job is the first to run, so the long ones stand there.
    pub(super) fn job(self, job: usize) -> (usize, usize) {
        let tiled = self.tokens - self.singles;
        if job < self.singles {
            return (tiled + job, 1);
        }
        let first = (job - self.singles) * TILE_TOKENS;
        (first, TILE_TOKENS.min(tiled - first))
    }
}

/// The rotations of a plan as tiles.
#[derive(Debug, Clone)]
pub(super) struct AmxBf16 {
    channels: usize,
    block: usize,
    rotations: usize,
    /// Whether numbers are two bfloat16.
    fine: bool,
    /// Each as [`product::pack`] lays it out.
    tiles: Aligned<u16>,
    /// Each permutation for 16 blocks of one token, `[groups][B][16]`: where the value lies in the groups before it, or the
    /// zeros behind them for a lane without a column.
    gathers: Vec<u32>,
}

impl AmxBf16 {
    /// Plans a validated transform; `None` where this kernel does not take it or the machine has no AMX-BF16.
    pub(super) fn plan(transform: &Transform, affine: Option<Affine>) -> Option<Self> {
        let (channels, block) = (transform.channels, transform.block);
        let rotations = transform.rotation_count();
        let takes = rotations > 0 && !transform.hadamard && block.is_multiple_of(32) && block <= LARGEST_BLOCK;
        let rounds = affine.is_none_or(|affine| affine.clip >= LEAST_CLIP);
        if !(takes && rounds && crate::kernels::cpu::isa::amx_bf16()) {
            return None;
        }
        let fine = affine.is_none_or(|affine| affine.bits > COARSE_BITS);
        let size = product::packed_len(block, fine);
        let mut tiles = Aligned::new(rotations * size);
        for (i, tiles) in tiles.as_mut_slice().chunks_exact_mut(size).enumerate() {
            product::pack(transform.rotation(i), block, fine, tiles);
        }
        let blocks = channels / block;
        let groups = blocks.div_ceil(16);
        let mut gathers = Vec::with_capacity(transform.permutation_count() * groups * block * 16);
        for i in 0..transform.permutation_count() {
            let order = transform.permutation(i);
            for at in 0..groups * block * 16 {
                let (lane, channel) = (at / (block * 16) * 16 + at % 16, at / 16 % block);
                gathers.push(match order.get(lane * block + channel) {
                    Some(&from) if lane < blocks => {
                        let (from, channel) = (from as usize / block, from as usize % block);
                        ((from / 16 * block + channel) * 16 + from % 16) as u32
                    }
                    _ => (groups * block * 16) as u32,
                });
            }
        }
        Some(Self { channels, block, rotations, fine, tiles, gathers })
    }

    /// How `count` tokens lie in groups, at most a tile of them.
    fn shape(&self, count: usize) -> Shape {
        Shape { tokens: count, blocks: self.channels / self.block }
    }

    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        self.tiles.bytes() + size_of_val(self.gathers.as_slice())
    }

    /// `f32` that [`Self::run`] needs for up to `tokens` tokens.
    pub(super) fn scratch_len(&self, tokens: usize) -> usize {
        2 * self.half_len(tokens) + product::operands_len(self.block, self.fine)
    }

    /// One of two buffers: groups, and the zeros behind those of one token.
    fn half_len(&self, tokens: usize) -> usize {
        let groups = self.shape(1).groups().max(if tokens > 1 { self.shape(2).groups() } else { 0 });
        (groups * self.block + 1) * 16
    }

    /// Up to a tile of tokens from token `first` on, from the source to the sink. Every shape of groups gives the same bits.
    ///
    /// `scratch` is [`Self::scratch_len`] of as many tokens or more, on a cache line.
    pub(super) fn run(
        &self,
        plan: &TransformQuantize,
        source: Source<'_>,
        first: usize,
        count: usize,
        scratch: &mut [f32],
        sink: Sink<'_>,
    ) {
        let k = self.channels;
        let half = self.half_len(count);
        let (x, rest) = scratch.split_at_mut(half);
        let (y, operands) = rest.split_at_mut(half);
        let shape = self.shape(count);
        let work = Work { plan, shape, x, y, operands, sink };
        let tokens = first * k..(first + count) * k;
        // SAFETY: `plan` has seen the features; buffers have the length of the groups, and operands hold the tokens.
        unsafe {
            match source {
                Source::Tokens(x) => self.either(Tokens { x: &x[tokens], channels: k }, work),
                Source::RmsNorm { x, weight, epsilon } => {
                    self.either(RmsNorm::new(&x[tokens], weight, epsilon, shape), work);
                }
                Source::SiluMul { gate_up } => {
                    let gate_up = &gate_up[2 * tokens.start..2 * tokens.end];
                    self.either(SiluMul { gate_up, channels: k }, work);
                }
            }
        }
    }

    /// [`Self::transform`] with numbers of one bfloat16 or of two.
    ///
    /// # Safety
    /// As [`Self::transform`].
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn either(&self, source: impl Operands, work: Work<'_>) {
        // SAFETY: by the caller's promise.
        unsafe { if self.fine { self.transform::<true>(source, work) } else { self.transform::<false>(source, work) } }
    }

    /// Transforms, and quantizes where the sink takes codes.
    ///
    /// # Safety
    /// The machine has AMX-BF16, and `source` the tokens. Of the buffers, `x` and `y` are [`Self::half_len`] long, and
    /// `operands` is as long as a rotation's.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn transform<const FINE: bool>(&self, source: impl Operands, work: Work<'_>) {
        let Work { plan, shape, x, y, operands, sink } = work;
        let (k, block) = (self.channels, self.block);
        let groups = shape.groups();
        let values = groups * block * 16;
        let codes = matches!(sink, Sink::Codes { .. });
        let rows = Rows::new(plan, source, shape);
        let mut extremes = Extremes::new();
        let (mut from, mut to) = (x.as_mut_ptr(), y.as_mut_ptr());
        // SAFETY: by the caller's promise; what is configured is released.
        unsafe {
            tile_registers::configure();
            for i in 0..self.rotations {
                let tiles = self.tiles.as_slice()[i * product::packed_len(block, FINE)..].as_ptr();
                let rotation = Rotation::<FINE> { block, tiles, groups, out: to, operands: operands.as_mut_ptr() };
                let extremes = (codes && i + 1 == self.rotations).then_some(&mut extremes);
                if i == 0 {
                    rotation.run(&rows, extremes);
                } else if shape.alone() {
                    from.add(values).write_bytes(0, 16);
                    let table = &self.gathers[(i - 1) * values..i * values];
                    rotation.run(&Gathered { from, table, block }, extremes);
                } else {
                    let order = &plan.permutations[(i - 1) * k..i * k];
                    rotation.run(&Permuted { from, order, block }, extremes);
                }
                std::mem::swap(&mut from, &mut to);
            }
            tile_registers::release();
            let columns = Columns { values: from, shape, block };
            match sink {
                Sink::Codes { affine, codes, stride, scale, zero_point, row_sum } => {
                    let codes = Codes { affine, codes, stride, scale, zero_point, row_sum };
                    codes::quantize(&columns, &extremes, codes);
                }
                Sink::Values { .. } => {
                    codes::rows(&columns, to, k);
                    let x = std::slice::from_raw_parts(to, shape.tokens * k);
                    plan.level.run(Write { k, x, sink });
                }
            }
        }
    }
}

/// What [`AmxBf16::transform`] works with, apart from where the tokens come from.
struct Work<'a> {
    plan: &'a TransformQuantize,
    shape: Shape,
    /// Values go from one of two buffers to the other.
    x: &'a mut [f32],
    y: &'a mut [f32],
    operands: &'a mut [f32],
    sink: Sink<'a>,
}

/// An output `sum_k x[k] R[k, j]` of one rotation is within this times `sum_k |x[k]| |R[k, j]|` of the real number.
#[cfg(test)]
pub(super) const fn error_bound(block: usize, fine: bool) -> f64 {
    let (relative, sums) = if fine { (3.0 / 65_536.0, 18 + block / 10) } else { (513.0 / 65_536.0, 18 + block / 30) };
    relative + sums as f64 / 16_777_216.0
}
