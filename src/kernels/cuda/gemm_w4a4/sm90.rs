//! The kernels for Hopper: `wgmma` in INT8, weights unpacked in registers.

use super::super::checks::unsupported;
use super::super::{Address, Arch, Device, Error, Function, Kernel, Launch};
use super::sm8x::OutputArgs;
use super::sm90_schedule::{Schedule, Shape, TILES, Tile, loadable};
use super::{GemmTile, GemmW4A4Desc, Operands, Output};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// A warpgroup that copies and two that multiply.
const THREADS: u32 = 384;
/// Tokens that a warpgroup brings to `y` at a time.
const ROUND: u32 = 128;

/// The kernels by tile, and what their schedules need.
#[derive(Debug, Clone)]
pub(super) struct Ladder {
    shape: Shape,
    desc: GemmW4A4Desc,
    output: Output,
    only: Option<Tile>,
    /// For each tile that a schedule may choose; at least one.
    functions: Vec<(Tile, Arc<Function>)>,
    sums: u64,
}

/// `GemmArgs` of `gemm_w4a4_sm90_epilogue.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GemmArgs {
    weights: Address,
    codes: Address,
    out: OutputArgs,
    partial: Address,
    counters: Address,
    blocks: u32,
    chunks: u32,
    whole: u32,
    share: u32,
    longer: u32,
    band: u32,
}

impl Ladder {
    /// Loads the kernels for up to `m_max` tokens, or that of `tile`.
    pub(super) fn new(
        device: &dyn Device,
        desc: &GemmW4A4Desc,
        output: Output,
        tile: Option<GemmTile>,
    ) -> Result<Self, Error> {
        let only = tile.map(|tile| tile_of(tile, desc.m_max)).transpose()?;
        let shape = Shape {
            blocks: desc.blocks() as u32,
            chunks: desc.chunks() as u32,
            multiprocessors: device.chip().multiprocessors,
        };
        let m_max = desc.m_max as u32;
        let tiles = only.as_ref().map_or_else(|| loadable(m_max), std::slice::from_ref);
        let functions =
            tiles.iter().map(|&tile| Ok((tile, device.load(&kernel_of(tile))?))).collect::<Result<_, Error>>()?;
        let sums = shape.most_sums(m_max, only);
        Ok(Self { shape, desc: *desc, output, only, functions, sums })
    }

    /// The sums of split tiles behind a counter for each half of each.
    pub(super) fn workspace_bytes(&self) -> u64 {
        if self.sums == 0 { 0 } else { self.counter_bytes() + 4 * self.sums }
    }

    fn counter_bytes(&self) -> u64 {
        (8 * u64::from(self.shape.multiprocessors)).next_multiple_of(16)
    }

    /// The kernel for `tokens` tokens, and how the grid shares its tiles.
    pub(super) fn kernel(&self, tokens: usize) -> String {
        let Schedule { tile, grid, whole, split, .. } = self.shape.schedule(tokens.max(1) as u32, self.only);
        let Tile { channels, tokens, .. } = tile;
        format!(
            "gemm_w4a4 {channels}x{tokens} {} on {grid} blocks, {whole} tiles whole, {split} split",
            kernel_of(tile)
        )
    }

    /// One launch, for 1 to `m_max` tokens.
    pub(super) fn launch(&self, tokens: usize, operands: &Operands) -> Launch {
        let schedule = self.shape.schedule(tokens as u32, self.only);
        let at = self.functions.iter().position(|(tile, _)| *tile == schedule.tile);
        let (tile, function) = &self.functions[at.unwrap_or(0)];
        let counters = operands.workspace;
        let arguments = GemmArgs {
            weights: operands.weights.weights,
            codes: operands.tokens.codes,
            out: OutputArgs::new(&self.desc, self.output, tokens, operands),
            partial: counters.wrapping_add(self.counter_bytes()),
            counters,
            blocks: self.shape.blocks,
            chunks: self.shape.chunks,
            whole: schedule.whole,
            share: schedule.share,
            longer: schedule.longer,
            band: schedule.band,
        };
        Launch::new(function, [schedule.grid, 1, 1], THREADS, shared_bytes(*tile), &arguments)
    }
}

/// The stages, the sums of both warpgroups on their way to `y`, two barriers a stage, and two flags.
fn shared_bytes(tile: Tile) -> u32 {
    tile.stages * (tile.stage_bytes() + 16) + 2 * 64 * 4 * tile.tokens.min(ROUND) + 16
}

/// The tile that was asked for. Streams are the small ones, which take one tile of tokens.
fn tile_of(tile: GemmTile, m_max: usize) -> Result<Tile, Error> {
    let is = |known: &Tile| match tile {
        GemmTile::Tiled { channels, tokens } => known.channels == channels && known.tokens == tokens,
        GemmTile::Streamed { tokens } => known.tokens == tokens && tokens <= 64 && m_max <= tokens as usize,
    };
    TILES.into_iter().find(is).map_or_else(
        || {
            let tiled = TILES.map(|tile| GemmTile::Tiled { channels: tile.channels, tokens: tile.tokens }.to_string());
            let expected =
                format!("one of {}, or stream:8 to stream:64 with room for {m_max} tokens", tiled.join(", "));
            unsupported("tile", expected, tile)
        },
        Ok,
    )
}

fn kernel_of(tile: Tile) -> Kernel {
    let defines = vec![("TOKENS", tile.tokens), ("TILES", tile.channels / 128), ("STAGES", tile.stages)];
    // One block a multiprocessor: with 384 threads it starts with 168 registers each, and the warps that multiply many tokens
    // then take 232.
    Kernel { file: "gemm_w4a4_sm90.cu", entry: "gemm_w4a4_sm90", defines, archs: &[Arch::Sm90a], registers: 168 }
}

/// Every kernel of this file.
pub(super) fn kernels() -> Vec<Kernel> {
    TILES.into_iter().map(kernel_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_fits_shared_memory() {
        for tile in TILES {
            assert!(shared_bytes(tile) <= Arch::Sm90a.shared_per_block(), "{tile:?}");
            assert_eq!(tile.stage_bytes() % 1024, 0);
        }
    }
}
