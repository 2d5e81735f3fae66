//! Which kernel runs on sm_80, sm_86 and sm_89, and how its work is dealt out: pure functions of the chip and the shape.

use super::super::{Arch, Chip, Kernel, TokenForm};
use super::{GemmTile, GemmW4A4Desc};

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
pub(super) struct Variant {
    pub(super) tile: GemmTile,
    pub(super) form: TokenForm,
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
pub(super) const VARIANTS: [Variant; 13] = [
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
    pub(super) fn of(form: TokenForm) -> impl Iterator<Item = Self> {
        VARIANTS.into_iter().filter(move |variant| variant.form == form)
    }

    pub(super) fn kernel(&self) -> Kernel {
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

    pub(super) fn threads(&self) -> u32 {
        match self.tile {
            GemmTile::Tiled { channels, .. } => 32 * self.warps * (channels / 64),
            GemmTile::Streamed { .. } => 32 * self.warps,
        }
    }

    pub(super) fn shared_bytes(&self) -> u32 {
        match self.tile {
            GemmTile::Tiled { channels, tokens } => {
                self.stages * (channels / 64 * UNIT_BYTES + tokens / 8 * self.form.atom_bytes() as u32)
            }
            // The sums of 64 channels by 8 tokens, of every warp, for up to four groups of tokens at a time.
            GemmTile::Streamed { tokens } => 2048 * self.warps * (tokens / 8).min(4),
        }
    }

    /// Blocks that run at a time.
    pub(super) fn resident(&self, chip: &Chip) -> u32 {
        let by_shared = chip.arch.shared_per_multiprocessor() / (self.shared_bytes() + 1024);
        chip.multiprocessors.max(1) * self.blocks.min(by_shared).max(1)
    }

    pub(super) fn takes(&self, tokens: usize) -> bool {
        match self.tile {
            GemmTile::Tiled { .. } => true,
            GemmTile::Streamed { tokens: most } => tokens <= most as usize,
        }
    }
}

/// The variant for `tokens` tokens: the smallest that streams them, or the tiles whose fullest multiprocessor has least to do.
pub(super) fn choose(chip: &Chip, form: TokenForm, n: usize, tokens: usize) -> Option<Variant> {
    let streamed = Variant::of(form).find(|v| matches!(v.tile, GemmTile::Streamed { .. }) && v.takes(tokens));
    let work = |variant: &Variant| match variant.tile {
        GemmTile::Streamed { .. } => u64::MAX,
        GemmTile::Tiled { channels, tokens: t } => {
            let tiles = (n as u64).div_ceil(u64::from(channels)) * (tokens as u64).div_ceil(u64::from(t));
            let tile = u64::from(channels) * u64::from(t) + STAGING * u64::from(channels + t);
            tiles.div_ceil(u64::from(chip.multiprocessors.max(1))) * tile
        }
    };
    streamed.or_else(|| Variant::of(form).min_by_key(work))
}

/// What `choose` gives for any number of tokens from 1 to `m_max`.
pub(super) fn rungs(chip: &Chip, form: TokenForm, n: usize, m_max: usize) -> Vec<Variant> {
    // Tiles take multiples of 64 tokens, and so does the choice among them; streams have steps of 8.
    let (few, many) = ((1..=m_max.min(64)).step_by(8), (64..m_max).step_by(64));
    let mut out: Vec<Variant> = Vec::new();
    for tokens in few.chain(many).chain([m_max]) {
        out.extend(choose(chip, form, n, tokens).filter(|variant| !out.contains(variant)));
    }
    out
}

/// How a stream is dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) units: u32,
    chunks: u32,
    pub(super) grid: u32,
}

impl Stream {
    pub(super) fn new(chip: &Chip, variant: &Variant, desc: &GemmW4A4Desc) -> Self {
        let units = (desc.blocks() * desc.chunks()) as u32;
        // Every warp is to have a unit.
        let grid = units.div_ceil(STREAM_WARPS).min(variant.resident(chip));
        Self { units, chunks: desc.chunks() as u32, grid }
    }

    /// Bytes of sums that blocks share: 64 channels by `tokens` for each block with a row that it begins and does not end.
    pub(super) fn partial_bytes(&self, tokens: u32) -> u64 {
        let whole = self.units.is_multiple_of(self.grid) && (self.units / self.grid).is_multiple_of(self.chunks);
        if whole { 0 } else { u64::from(self.grid) * u64::from(tokens) * 64 * 4 }
    }

    /// Bytes of workspace, with a counter a block.
    pub(super) fn workspace_bytes(&self, tokens: u32) -> u64 {
        let partials = self.partial_bytes(tokens);
        if partials == 0 { 0 } else { partials + u64::from(self.grid) * 4 }
    }
}

/// Tiles of channels in a column, so that the blocks that run at a time read least: `r` columns by `R / r` rows of tiles take
/// `r` tiles of weights and `R / r` of tokens, least where both weigh the same.
pub(super) fn raster(variant: &Variant, running: u32) -> u32 {
    let GemmTile::Tiled { channels, tokens } = variant.tile else { return 1 };
    let token_bytes = tokens / 8 * variant.form.atom_bytes() as u32;
    let ratio = f64::from(token_bytes) / f64::from(channels / 64 * UNIT_BYTES);
    (f64::from(running) * ratio).sqrt().round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cuda::Dtype;

    fn desc(m_max: usize, n: usize, k: usize) -> GemmW4A4Desc {
        GemmW4A4Desc {
            m_max,
            n,
            k,
            weight_bits: 4,
            activation_bits: 4,
            out: Dtype::F16,
            bias: false,
            accumulate: false,
        }
    }

    fn tile(arch: Arch, form: TokenForm, n: usize, tokens: usize) -> String {
        choose(&Chip::typical(arch), form, n, tokens).unwrap().tile.to_string()
    }

    #[test]
    fn every_variant_fits_every_chip() {
        for variant in VARIANTS {
            for &arch in ARCHS {
                assert!(variant.shared_bytes() <= arch.shared_per_block(), "{variant:?} on {arch:?}");
                assert!(variant.registers * variant.threads() * variant.blocks <= 65_536, "{variant:?}");
            }
        }
    }

    #[test]
    fn few_tokens_stream_and_many_take_the_tile_that_fills_the_device() {
        for &arch in ARCHS {
            for (tokens, expected) in [(1, 8), (8, 8), (9, 16), (17, 32), (33, 64), (64, 64)] {
                assert_eq!(tile(arch, TokenForm::Fragments4, 4096, tokens), format!("stream:{expected}"));
            }
            assert_eq!(tile(arch, TokenForm::Fragments8, 4096, 32), "stream:32");
            assert_eq!(tile(arch, TokenForm::Fragments8, 4096, 33), "64x64");
            // LLaMA-7B's gate and up at 2048 tokens: many waves, so the tile that stages least.
            assert_eq!(tile(arch, TokenForm::Fragments4, 22_016, 2048), "128x256");
            assert_eq!(tile(arch, TokenForm::Fragments8, 22_016, 2048), "128x128");
            // SmolLM2's q, k, v at 65 tokens: fewer tiles than multiprocessors whatever the tile, so the least of them.
            assert_eq!(tile(arch, TokenForm::Fragments4, 960, 65), "64x64");
        }
    }

    #[test]
    fn every_number_of_tokens_has_its_kernel() {
        for (arch, n) in [(Arch::Sm80, 4096), (Arch::Sm86, 960), (Arch::Sm89, 11_008)] {
            for form in [TokenForm::Fragments4, TokenForm::Fragments8] {
                let chip = Chip::typical(arch);
                for m_max in [1, 8, 63, 100, 1500] {
                    let rungs = rungs(&chip, form, n, m_max);
                    for tokens in 1..=m_max {
                        let variant = choose(&chip, form, n, tokens).unwrap();
                        assert!(rungs.contains(&variant) && variant.takes(tokens), "{tokens} of {m_max}: {variant:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_stream_gives_every_warp_a_unit_and_shares_rows_only_where_it_must() {
        let chip = Chip::typical(Arch::Sm80);
        let variant = VARIANTS[0];
        let stream = Stream::new(&chip, &variant, &desc(1, 4096, 4096));
        assert_eq!((stream.units, stream.grid), (64 * 32, 216));
        assert_eq!(stream.workspace_bytes(8), 216 * (8 * 64 * 4 + 4));
        // 576 x 576: 9 rows of 5 units.
        let stream = Stream::new(&chip, &variant, &desc(1, 576, 576));
        assert_eq!((stream.units, stream.grid), (45, 6));
        // 8 rows of 8 units for 8 blocks: nothing is shared.
        let stream = Stream::new(&chip, &variant, &desc(1, 512, 1024));
        assert_eq!((stream.grid, stream.workspace_bytes(8)), (8, 0));
    }

    #[test]
    fn columns_of_tiles_are_about_square_in_bytes() {
        let big = VARIANTS[7];
        assert_eq!(big.tile, GemmTile::Tiled { channels: 128, tokens: 256 });
        // 82 blocks, tokens twice as heavy as channels: 13 tiles of channels by 6 of tokens.
        assert_eq!(raster(&big, 82), 13);
        assert_eq!(raster(&VARIANTS[6], 164), 13);
    }
}
