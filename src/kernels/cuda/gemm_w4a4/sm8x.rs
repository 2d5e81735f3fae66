//! The kernels for `mma.sync`: sm_80, sm_86 and sm_89, whose tensor cores multiply 4-bit integers.
//!
//! Up to 64 tokens (32 of 8 bits) the time is that of reading the weights, `N K / 2` bytes: each is read once and meets all the
//! tokens ([`GemmTile::Streamed`]). Beyond, tiles of `y` go through shared memory ([`GemmTile::Tiled`]).

use super::super::checks::unsupported;
use super::super::{Address, Arch, Chip, Device, Error, Function, Kernel, Launch, TokenForm};
use super::{GemmTile, GemmW4A4Desc, Operands, Output};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

const ARCHS: &[Arch] = &[Arch::Sm80, Arch::Sm86, Arch::Sm89];

/// Warps of a block that streams: they take turns in its run of units.
const STREAM_WARPS: u32 = 8;
/// Bytes of a chunk of 128 input channels of 64 output channels.
const UNIT_BYTES: u32 = 4096;
/// What staging a row of either operand for a tile costs, in rows of multiplications: shared memory takes 64 bytes of it in and
/// gives them out to each warp that multiplies by it. It decides between tiles that fill the device equally well.
const STAGING: u64 = 16;

/// A kernel that is compiled, with what its launch needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Variant {
    tile: GemmTile,
    form: TokenForm,
    /// Of a tiled block: warps along the tokens, and chunks in shared memory.
    warps: u32,
    stages: u32,
    /// Blocks that a multiprocessor has registers for.
    blocks: u32,
    registers: u32,
}

const fn tiled(channels: u32, tokens: u32, form: TokenForm, warps: u32, stages: u32, blocks: u32) -> Variant {
    let registers = registers(32 * warps * (channels / 64), blocks);
    Variant { tile: GemmTile::Tiled { channels, tokens }, form, warps, stages, blocks, registers }
}

const fn streamed(tokens: u32, form: TokenForm, blocks: u32) -> Variant {
    let registers = registers(32 * STREAM_WARPS, blocks);
    Variant { tile: GemmTile::Streamed { tokens }, form, warps: STREAM_WARPS, stages: 0, blocks, registers }
}

/// Registers of a thread such that so many blocks fit a multiprocessor, which has 65,536 and gives them out by eights.
const fn registers(threads: u32, blocks: u32) -> u32 {
    let registers = 65_536 / (threads * blocks) / 8 * 8;
    if registers > 255 { 255 } else { registers }
}

/// By size. A warp multiplies 64 channels by at most 64 tokens: 128 sums a thread.
const VARIANTS: [Variant; 13] = [
    streamed(8, TokenForm::Fragments4, 2),
    streamed(16, TokenForm::Fragments4, 2),
    streamed(32, TokenForm::Fragments4, 1),
    streamed(64, TokenForm::Fragments4, 1),
    tiled(64, 64, TokenForm::Fragments4, 4, 4, 4),
    tiled(64, 128, TokenForm::Fragments4, 4, 4, 3),
    tiled(128, 128, TokenForm::Fragments4, 2, 3, 2),
    tiled(128, 256, TokenForm::Fragments4, 4, 4, 1),
    streamed(8, TokenForm::Fragments8, 2),
    streamed(16, TokenForm::Fragments8, 1),
    streamed(32, TokenForm::Fragments8, 1),
    tiled(64, 64, TokenForm::Fragments8, 4, 4, 3),
    tiled(128, 128, TokenForm::Fragments8, 4, 4, 1),
];

impl Variant {
    fn of(form: TokenForm) -> impl Iterator<Item = Self> {
        VARIANTS.into_iter().filter(move |variant| variant.form == form)
    }

    fn kernel(&self) -> Kernel {
        let form = ("FORM", self.form.define());
        let (file, entry, defines) = match self.tile {
            GemmTile::Tiled { channels, tokens } => (
                "gemm_w4a4_tiled.cu",
                "gemm_w4a4_tiled",
                vec![
                    ("TILE_CHANNELS", channels),
                    ("TILE_TOKENS", tokens),
                    ("WARPS_T", self.warps),
                    ("STAGES", self.stages),
                    ("BLOCKS", self.blocks),
                    form,
                ],
            ),
            GemmTile::Streamed { tokens } => (
                "gemm_w4a4_stream.cu",
                "gemm_w4a4_stream",
                vec![("TILE_TOKENS", tokens), ("BLOCKS", self.blocks), form],
            ),
        };
        Kernel { file, entry, defines, archs: ARCHS, registers: self.registers }
    }

    fn threads(&self) -> u32 {
        match self.tile {
            GemmTile::Tiled { channels, .. } => 32 * self.warps * (channels / 64),
            GemmTile::Streamed { .. } => 32 * self.warps,
        }
    }

    fn shared_bytes(&self) -> u32 {
        match self.tile {
            GemmTile::Tiled { channels, tokens } => {
                self.stages * (channels / 64 * UNIT_BYTES + tokens / 8 * self.form.atom_bytes() as u32)
            }
            // The sums of 64 channels by 8 tokens, of every warp, for up to four groups of tokens at a time.
            GemmTile::Streamed { tokens } => 2048 * self.warps * (tokens / 8).min(4),
        }
    }

    /// Blocks that run at a time.
    fn resident(&self, chip: &Chip) -> u32 {
        let by_shared = chip.arch.shared_per_multiprocessor() / (self.shared_bytes() + 1024);
        chip.multiprocessors * self.blocks.min(by_shared).max(1)
    }

    fn takes(&self, tokens: usize) -> bool {
        match self.tile {
            GemmTile::Tiled { .. } => true,
            GemmTile::Streamed { tokens: most } => tokens <= most as usize,
        }
    }
}

/// The variant for `tokens` tokens: the smallest that streams them, or the tiles whose fullest multiprocessor has least to do.
fn choose(chip: &Chip, form: TokenForm, n: usize, tokens: usize) -> Option<Variant> {
    let streamed = Variant::of(form).find(|v| matches!(v.tile, GemmTile::Streamed { .. }) && v.takes(tokens));
    let work = |variant: &Variant| match variant.tile {
        GemmTile::Streamed { .. } => u64::MAX,
        GemmTile::Tiled { channels, tokens: t } => {
            let tiles = (n as u64).div_ceil(u64::from(channels)) * (tokens as u64).div_ceil(u64::from(t));
            let tile = u64::from(channels) * u64::from(t) + STAGING * u64::from(channels + t);
            tiles.div_ceil(u64::from(chip.multiprocessors)) * tile
        }
    };
    streamed.or_else(|| Variant::of(form).min_by_key(work))
}

/// How a stream is dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stream {
    units: u32,
    chunks: u32,
    grid: u32,
}

impl Stream {
    fn new(chip: &Chip, variant: &Variant, desc: &GemmW4A4Desc) -> Self {
        let units = (desc.blocks() * desc.chunks()) as u32;
        // Every warp is to have a unit.
        let grid = units.div_ceil(STREAM_WARPS).min(variant.resident(chip));
        Self { units, chunks: desc.chunks() as u32, grid }
    }

    /// Bytes of sums that blocks share: 64 channels by `tokens` for each block with a row that it begins and does not end.
    fn partial_bytes(&self, tokens: u32) -> u64 {
        let whole = self.units.is_multiple_of(self.grid) && (self.units / self.grid).is_multiple_of(self.chunks);
        if whole { 0 } else { u64::from(self.grid) * u64::from(tokens) * 64 * 4 }
    }

    /// Bytes of workspace, with a counter a block.
    fn workspace_bytes(&self, tokens: u32) -> u64 {
        let partials = self.partial_bytes(tokens);
        if partials == 0 { 0 } else { partials + u64::from(self.grid) * 4 }
    }
}

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
        let mut variants: Vec<Variant> = Vec::new();
        if let Some(tile) = tile {
            let fits = |v: &Variant| v.tile == tile && v.takes(desc.m_max);
            let Some(variant) = Variant::of(form).find(fits) else {
                let all: Vec<String> = Variant::of(form).map(|v| v.tile.to_string()).collect();
                let expected = format!("one of {} with room for {} tokens", all.join(", "), desc.m_max);
                return unsupported("tile", expected, tile);
            };
            variants.push(variant);
        } else {
            // Tiles take multiples of 64 tokens, and so does the choice among them; streams have finer steps.
            let few = (1..=desc.m_max.min(64)).step_by(8);
            for tokens in few.chain((64..desc.m_max).step_by(64)).chain([desc.m_max]) {
                if let Some(variant) = choose(&chip, form, desc.n, tokens).filter(|v| !variants.contains(v)) {
                    variants.push(variant);
                }
            }
        }
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

    /// What runs for `tokens` tokens. Every count has a kernel: `new` loaded what `choose` gives.
    fn rung(&self, tokens: usize) -> &(Variant, Arc<Function>) {
        let chosen = if self.forced { None } else { choose(&self.chip, self.form, self.desc.n, tokens) };
        self.kernels.iter().find(|(v, _)| Some(*v) == chosen).unwrap_or(&self.kernels[0])
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
                let counters = partials + stream.partial_bytes(tokens);
                let units = stream.units;
                let arguments =
                    StreamArgs { weights, codes, out, partials, counters, chunks, groups, units, unused: 0 };
                Launch::new(function, [stream.grid, 1, 1], threads, shared, &arguments)
            }
        }
    }
}

/// Tiles of channels in a column, so that the blocks that run at a time read least: `r` columns by `R / r` rows of tiles take
/// `r` tiles of weights and `R / r` of tokens, least where both weigh the same.
fn raster(variant: &Variant, running: u32) -> u32 {
    let GemmTile::Tiled { channels, tokens } = variant.tile else { return 1 };
    let token_bytes = tokens / 8 * variant.form.atom_bytes() as u32;
    let ratio = f64::from(token_bytes) / f64::from(channels / 64 * UNIT_BYTES);
    (f64::from(running) * ratio).sqrt().round() as u32
}

/// Every kernel of this file.
pub(super) fn kernels() -> Vec<Kernel> {
    VARIANTS.iter().map(Variant::kernel).collect()
}
