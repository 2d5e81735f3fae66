//! The kernels for Hopper: `wgmma` in INT8, weights unpacked in registers.

use super::sm90_schedule::{Schedule, Shape, TILES, Tile, loadable};
use super::{GemmTile, GemmW4A4Desc, Operands, Output};
use crate::kernels::cuda::checks::unsupported;
use crate::kernels::cuda::{Address, Arch, Device, Dtype, Error, Function, Kernel, Launch};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// A warpgroup that copies and two that multiply.
const THREADS: u32 = 384;
/// Tokens that a warpgroup brings to `y` at a time.
const ROUND: u32 = 32;

/// The kernels by tile, and what their schedules need.
#[derive(Debug, Clone)]
pub(super) struct Ladder {
    shape: Shape,
    n: u32,
    accumulate: bool,
    output: Output,
    only: Option<Tile>,
    functions: Vec<(Tile, Arc<Function>)>,
    sums: u64,
}

/// `GemmArgs` of `gemm_w4a4_sm90_epilogue.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GemmArgs {
    weights: Address,
    channels: Address,
    codes: Address,
    params: Address,
    y: Address,
    partial: Address,
    counters: Address,
    tokens: u32,
    n: u32,
    chunks: u32,
    blocks: u32,
    whole: u32,
    share: u32,
    longer: u32,
    band: u32,
    accumulate: u32,
    unused: u32,
}

impl Ladder {
    /// Loads the kernels for up to `m_max` tokens, or that of `tile`.
    pub(super) fn new(
        device: &dyn Device,
        desc: &GemmW4A4Desc,
        output: Output,
        tile: Option<GemmTile>,
    ) -> Result<Self, Error> {
        let only = tile.map(tile_of).transpose()?;
        let shape = Shape {
            blocks: desc.blocks() as u32,
            chunks: desc.chunks() as u32,
            multiprocessors: device.chip().multiprocessors,
        };
        let m_max = desc.m_max as u32;
        let tiles = only.as_ref().map_or_else(|| loadable(m_max), std::slice::from_ref);
        let functions = tiles
            .iter()
            .map(|&tile| Ok((tile, device.load(&kernel_of(tile, output))?)))
            .collect::<Result<_, Error>>()?;
        let accumulate = desc.accumulate && output != Output::Integers;
        let sums = shape.most_sums(m_max, only);
        Ok(Self { shape, n: desc.n as u32, accumulate, output, only, functions, sums })
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
        format!("gemm_w4a4_sm90 {}x{} on {grid} blocks, {whole} tiles whole, {split} split", tile.channels, tile.tokens)
    }

    /// One launch; none where the plan has no kernel, which cannot be for tokens up to its `m_max`.
    pub(super) fn launch(&self, tokens: usize, operands: &Operands) -> Option<Launch> {
        let schedule = self.shape.schedule(tokens as u32, self.only);
        let (tile, function) = self.functions.iter().find(|(tile, _)| *tile == schedule.tile)?;
        let counters = operands.workspace;
        let arguments = GemmArgs {
            weights: operands.weights.weights,
            channels: operands.weights.channels,
            codes: operands.tokens.codes,
            params: operands.tokens.params,
            y: operands.y,
            partial: counters.wrapping_add(self.counter_bytes()),
            counters,
            tokens: tokens as u32,
            n: self.n,
            chunks: self.shape.chunks,
            blocks: self.shape.blocks,
            whole: schedule.whole,
            share: schedule.share,
            longer: schedule.longer,
            band: schedule.band,
            accumulate: self.accumulate.into(),
            unused: 0,
        };
        Some(Launch::new(function, [schedule.grid, 1, 1], THREADS, shared_bytes(*tile, self.output), &arguments))
    }
}

/// The stages, what goes to `y` through shared memory, two barriers a stage, and two flags.
fn shared_bytes(tile: Tile, output: Output) -> u32 {
    let number = match output {
        Output::Float(Dtype::F16 | Dtype::Bf16) => 2,
        Output::Float(Dtype::F32) | Output::Integers => 4,
    };
    tile.stages * (tile.stage_bytes() + 16) + 2 * 64 * number * tile.tokens.min(ROUND) + 16
}

fn tile_of(tile: GemmTile) -> Result<Tile, Error> {
    let found = TILES.into_iter().find(|known| {
        tile == GemmTile::Tiled { channels: known.channels, tokens: known.tokens }
    });
    found.map_or_else(
        || {
            let known = TILES.map(|tile| format!("{}x{}", tile.channels, tile.tokens)).join(", ");
            unsupported("tile", known, tile)
        },
        Ok,
    )
}

fn kernel_of(tile: Tile, output: Output) -> Kernel {
    let defines = vec![
        ("TOKENS", tile.tokens),
        ("TILES", tile.channels / 128),
        ("STAGES", tile.stages),
        ("OUTPUT", output.define()),
    ];
    // One block a multiprocessor: with 384 threads it starts with 168 registers each, and the warps that multiply many tokens
    // then take 232.
    Kernel { file: "gemm_w4a4_sm90.cu", entry: "gemm_w4a4_sm90", defines, archs: &[Arch::Sm90a], registers: 168 }
}

/// Every kernel of this file.
pub(super) fn kernels() -> Vec<Kernel> {
    let outputs = [Output::Float(Dtype::F32), Output::Float(Dtype::F16), Output::Float(Dtype::Bf16), Output::Integers];
    TILES.into_iter().flat_map(|tile| outputs.map(|output| kernel_of(tile, output))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_fits_shared_memory() {
        for tile in TILES {
            assert!(shared_bytes(tile, Output::Integers) <= Arch::Sm90a.shared_per_block(), "{tile:?}");
            assert_eq!(tile.stage_bytes() % 1024, 0);
        }
    }
}
