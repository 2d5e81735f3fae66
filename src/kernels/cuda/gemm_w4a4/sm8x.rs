//! The kernels for `mma.sync`: sm_80, sm_86 and sm_89, whose tensor cores multiply 4-bit integers.
//!
//! Up to 64 tokens (32 of 8 bits) the time is that of reading the weights, `N K / 2` bytes: each is read once and meets all the
//! tokens ([`GemmTile::Streamed`]). Beyond, tiles of `y` go through shared memory ([`GemmTile::Tiled`]).

use super::super::checks::unsupported;
use super::super::{Address, Chip, Device, Error, Function, Kernel, Launch, TokenForm};
use super::sm8x_choice::{Stream, VARIANTS, Variant, choose, raster, rungs};
use super::{GemmTile, GemmW4A4Desc, Operands, Output};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// `GemmOutputArgs` of `gemm_w4a4.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct OutputArgs {
    token_params: Address,
    channels: Address,
    y: Address,
    tokens: u32,
    n: u32,
    output: u32,
    accumulate: u32,
}

impl OutputArgs {
    pub(super) fn new(desc: &GemmW4A4Desc, output: Output, tokens: usize, operands: &Operands) -> Self {
        Self {
            token_params: operands.tokens.params,
            channels: operands.weights.channels,
            y: operands.y,
            tokens: tokens as u32,
            n: desc.n as u32,
            output: output.define(),
            accumulate: u32::from(desc.accumulate && output != Output::Integers),
        }
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TiledArgs {
    weights: Address,
    codes: Address,
    out: OutputArgs,
    chunks: u32,
    groups: u32,
    blocks: u32,
    channel_tiles: u32,
    token_tiles: u32,
    raster: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct StreamArgs {
    weights: Address,
    codes: Address,
    out: OutputArgs,
    partials: Address,
    counters: Address,
    chunks: u32,
    groups: u32,
    units: u32,
    unused: u32,
}

/// The kernels of a plan.
#[derive(Debug, Clone)]
pub(super) struct Ladder {
    chip: Chip,
    desc: GemmW4A4Desc,
    output: Output,
    form: TokenForm,
    kernels: Vec<(Variant, Arc<Function>)>,
    forced: bool,
}

impl Ladder {
    pub(super) fn new(
        device: &dyn Device,
        desc: &GemmW4A4Desc,
        output: Output,
        tile: Option<GemmTile>,
    ) -> Result<Self, Error> {
        let chip = device.chip();
        let form = TokenForm::of(chip.arch, desc.activation_bits);
        let variants = match tile {
            None => rungs(&chip, form, desc.n, desc.m_max),
            Some(tile) => match Variant::of(form).find(|v| v.tile == tile && v.takes(desc.m_max)) {
                Some(variant) => vec![variant],
                None => {
                    let all: Vec<String> = Variant::of(form).map(|v| v.tile.to_string()).collect();
                    let expected = format!("one of {} with room for {} tokens", all.join(", "), desc.m_max);
                    return unsupported("tile", expected, tile);
                }
            },
        };
        let kernels = variants.into_iter().map(|v| Ok((v, device.load(&v.kernel())?))).collect::<Result<_, Error>>()?;
        Ok(Self { chip, desc: *desc, output, form, kernels, forced: tile.is_some() })
    }

    pub(super) fn workspace_bytes(&self) -> u64 {
        let bytes = |(variant, _): &(Variant, _)| match variant.tile {
            GemmTile::Tiled { .. } => 0,
            GemmTile::Streamed { tokens } => Stream::new(&self.chip, variant, &self.desc).workspace_bytes(tokens),
        };
        self.kernels.iter().map(bytes).max().unwrap_or(0)
    }

    /// What runs for `tokens` tokens: what `choose` gives, which `rungs` has for every count, or the one that was asked for.
    fn rung(&self, tokens: usize) -> &(Variant, Arc<Function>) {
        let chosen = if self.forced { None } else { choose(&self.chip, self.form, self.desc.n, tokens) };
        self.kernels.iter().find(|(v, _)| Some(*v) == chosen).unwrap_or(&self.kernels[self.kernels.len() - 1])
    }

    pub(super) fn kernel(&self, tokens: usize) -> String {
        let (variant, function) = self.rung(tokens);
        format!("gemm_w4a4 {} {}", variant.tile, function.kernel)
    }

    pub(super) fn launch(&self, tokens: usize, operands: &Operands) -> Launch {
        let (variant, function) = self.rung(tokens);
        let out = OutputArgs::new(&self.desc, self.output, tokens, operands);
        let (weights, codes) = (operands.weights.weights, operands.tokens.codes);
        let (chunks, blocks) = (self.desc.chunks() as u32, self.desc.blocks() as u32);
        let groups = tokens.div_ceil(8) as u32;
        let (threads, shared) = (variant.threads(), variant.shared_bytes());
        match variant.tile {
            GemmTile::Tiled { channels, tokens: tile_tokens } => {
                let channel_tiles = blocks.div_ceil(channels / 64);
                let token_tiles = (tokens as u32).div_ceil(tile_tokens);
                let grid = (channel_tiles * token_tiles).min(variant.resident(&self.chip));
                let raster = raster(variant, grid).clamp(1, channel_tiles);
                let arguments =
                    TiledArgs { weights, codes, out, chunks, groups, blocks, channel_tiles, token_tiles, raster };
                Launch::new(function, [grid, 1, 1], threads, shared, &arguments)
            }
            GemmTile::Streamed { tokens } => {
                let stream = Stream::new(&self.chip, variant, &self.desc);
                let partials = operands.workspace;
                let counters = partials.wrapping_add(stream.partial_bytes(tokens));
                let units = stream.units;
                let arguments =
                    StreamArgs { weights, codes, out, partials, counters, chunks, groups, units, unused: 0 };
                Launch::new(function, [stream.grid, 1, 1], threads, shared, &arguments)
            }
        }
    }
}

/// Every kernel of this file.
pub(super) fn kernels() -> Vec<Kernel> {
    VARIANTS.iter().map(Variant::kernel).collect()
}
