//! How a rotation is padded for the tensor cores, and how many tokens a block takes.

use super::super::{Arch, Error};
use super::TransformShape;

/// Threads of a block without rotations.
pub(super) const PLAIN_THREADS: u32 = 256;
/// Most warps of a block.
const WARPS: u32 = 16;
/// Bytes of shared memory beside the rows and the stages: `shared_of` of `transform_quantize.cu`.
const FIXED_BYTES: usize = 48 + 1024;

/// A rotation as the kernel multiplies it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rotation {
    /// `SIZE`: rows of the padded matrix.
    pub(super) size: u32,
    /// Rows of it that are used: as many blocks as fit, at least one.
    pub(super) span: usize,
    /// `HADAMARD`: 16 x 16 are multiplied, the rest is sums and differences.
    pub(super) butterflies: bool,
    /// Factor on the product: a Hadamard is packed as signs.
    pub(super) factor: f32,
}

impl Rotation {
    pub(super) fn of(shape: &TransformShape) -> Result<Self, Error> {
        let block = shape.block;
        let size = block.next_power_of_two().clamp(32, 256);
        let factor = if shape.hadamard { 1.0 / (block as f32).sqrt() } else { 1.0 };
        let butterflies = shape.hadamard && block >= 32;
        Ok(Self { size: size as u32, span: size / block * block, butterflies, factor })
    }

    /// One of every kind of kernel.
    pub(super) fn variants() -> impl Iterator<Item = Self> {
        [false, true].into_iter().flat_map(|butterflies| {
            [32, 64, 128, 256].map(|size| Self { size, span: size as usize, butterflies, factor: 1.0 })
        })
    }

    /// Strips of 16 rows of a warp: `STRIPS` of the kernel.
    pub(super) fn strips(&self) -> u32 {
        match (self.butterflies, self.size) {
            (false, 128) => 2,
            (false, 256) => 1,
            _ => self.size / 16,
        }
    }

    /// Warps that share a tile: `TILE_WARPS` of the kernel.
    pub(super) fn tile_warps(&self) -> u32 {
        self.size / 16 / self.strips()
    }

    /// Bytes that the warps of a block of `warps` give each other tokens in.
    fn stage_bytes(&self, warps: u32) -> usize {
        if self.tile_warps() == 1 { 0 } else { (warps / self.tile_warps() * 2 * self.size * 16) as usize }
    }
}

/// A block's share: eight columns are `1 << token_bits` tokens in `8 >> token_bits` segments of `rows` channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiling {
    pub(super) token_bits: u32,
    pub(super) rows: usize,
    pub(super) tiles: usize,
    /// Its number among those that fit.
    pub(super) index: usize,
    /// Bytes of shared memory beside the stages.
    fixed: usize,
    /// Whether two such blocks have room on a multiprocessor.
    pairs: bool,
}

impl Tiling {
    pub(super) fn tokens(&self) -> usize {
        1 << self.token_bits
    }

    /// Bytes of shared memory of a block of `threads`.
    pub(super) fn shared(&self, rotation: &Rotation, threads: u32) -> u32 {
        (self.fixed + rotation.stage_bytes(threads / 32)) as u32
    }

    /// Threads of a block. 128 registers a thread are one block of 512 threads a multiprocessor or two of 256: two hide each
    /// other's barriers and global memory where there are enough of them.
    pub(super) fn threads(&self, rotation: &Rotation, tokens: usize, multiprocessors: u32) -> u32 {
        let most = if self.pairs && tokens.div_ceil(self.tokens()) >= 2 * multiprocessors as usize { 8 } else { WARPS };
        let useful = rotation.tile_warps() as usize * self.tiles;
        32 * (useful.next_power_of_two().clamp(4, most as usize) as u32).max(rotation.tile_warps())
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// The tilings that fit into a block of `arch`, by ascending tokens.
pub(super) fn fitting(arch: Arch, shape: &TransformShape, rotation: &Rotation) -> Result<Vec<Tiling>, Error> {
    let (k, limit) = (shape.channels, arch.shared_per_block() as usize);
    let buffers = if shape.rotations > 2 { 2 } else { 1 };
    let mut least = usize::MAX;
    let mut fitting = Vec::new();
    for token_bits in 0..=3_u32 {
        let segments = 8 >> token_bits;
        // Segments are made of whole tiles, and of whole chunks of codes.
        let (rows, tiles) = if segments == 1 {
            let tiles = k.div_ceil(rotation.span);
            ((tiles * rotation.span).next_multiple_of(128), tiles)
        } else {
            let unit = rotation.span / greatest_common_divisor(rotation.span, 128) * 128;
            let rows = k.div_ceil(segments).next_multiple_of(unit);
            (rows, rows / rotation.span)
        };
        let fixed = 16 * rows * buffers + FIXED_BYTES;
        let bytes = fixed + rotation.stage_bytes(WARPS);
        least = least.min(bytes);
        if bytes <= limit {
            let pair = 2 * (fixed + rotation.stage_bytes(WARPS / 2) + 1024);
            let pairs = rotation.tile_warps() <= WARPS / 2 && pair <= arch.shared_per_multiprocessor() as usize;
            fitting.push(Tiling { token_bits, rows, tiles, index: fitting.len(), fixed, pairs });
        }
    }
    if fitting.is_empty() {
        let what = format!("shared memory of one token of {k} channels");
        return Err(Error::Limit { what, limit: limit as u64, got: least as u64 });
    }
    Ok(fitting)
}

/// The tiling for `tokens` tokens. A block's time is about that of its tokens plus that of about three more, for the rotations' way
/// into registers and its barriers (counted for K = 4096, B = 128: 1024 matrix instructions a token, 256 KiB of packed rotation
/// from the caches a block); blocks run in waves of one a multiprocessor. Of equals the one with more tokens a block, which
/// reads the rotations less often.
pub(super) fn choose(tilings: &[Tiling], tokens: usize, multiprocessors: u32) -> &Tiling {
    let cost = |tiling: &Tiling| {
        let waves = tokens.div_ceil(tiling.tokens()).div_ceil(multiprocessors.max(1) as usize);
        waves * (tiling.tokens() + 3)
    };
    let mut best = &tilings[0];
    for tiling in &tilings[1..] {
        if cost(tiling) <= cost(best) && tokens > best.tokens() {
            best = tiling;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tilings(arch: Arch, channels: usize) -> (Rotation, Vec<Tiling>) {
        let shape = TransformShape { channels, block: 128, rotations: 2, hadamard: false, smooth: false };
        let rotation = Rotation::of(&shape).unwrap_or_else(|error| panic!("{error}"));
        (rotation, fitting(arch, &shape, &rotation).unwrap_or_else(|error| panic!("{error}")))
    }

    #[test]
    fn every_model_fits_every_chip() {
        for arch in Arch::ALL {
            for k in [4096, 5120, 8192, 11_008, 13_824, 14_336, 28_672] {
                let (rotation, tilings) = tilings(arch, k);
                for tiling in &tilings {
                    assert!(tiling.shared(&rotation, 512) <= arch.shared_per_block(), "{arch:?} {k}: {tiling:?}");
                    assert!(tiling.rows * (8 / tiling.tokens()) >= k, "{arch:?} {k}: {tiling:?}");
                }
                assert_eq!(choose(&tilings, 1, 108).tokens(), 1, "{arch:?} {k}");
            }
        }
    }

    #[test]
    fn many_tokens_take_eight_a_block_and_two_blocks_a_multiprocessor() {
        let (rotation, tilings) = tilings(Arch::Sm80, 4096);
        let tiling = choose(&tilings, 8192, 108);
        assert_eq!((tiling.tokens(), tiling.threads(&rotation, 8192, 108)), (8, 256));
    }
}
