//! How the GEMMs cut their work, and what each cut asks of the device.

use super::tune::Steps;
use super::{Error, Gpu};
use std::fmt;
use std::str::FromStr;

/// Channels that lie next to each other in packed weights.
pub(super) const PANEL: usize = 32;

/// How a GEMM kernel cuts its work into workgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tile {
    /// Weights go from memory to registers. A workgroup of 32 by `slices` invocations computes `tokens` by
    /// `32 * panels` outputs; the slices share the input channels.
    Stream {
        /// Tokens of an invocation.
        tokens: u32,
        /// Channels of an invocation.
        panels: u32,
        /// Invocations that share the input channels of one output.
        slices: u32,
    },
    /// Both operands go through workgroup memory. A workgroup computes `tokens` by `channels` outputs.
    Tiled {
        /// Tokens of a workgroup, a multiple of `thread_tokens`.
        tokens: u32,
        /// Channels of a workgroup, a multiple of `thread_channels`.
        channels: u32,
        /// Tokens of an invocation.
        thread_tokens: u32,
        /// Channels of an invocation.
        thread_channels: u32,
    },
}

/// Quads (4 channels in floating point) and blocks (32 codes) that a step of [`Tile::Tiled`] holds.
const FLOAT_STEP: u32 = 4;
const W4A4_STEP: u32 = 2;

/// Most tokens and channels (or panels) of an invocation: so many are unrolled in the shaders.
const UNROLLED: u32 = 8;

impl Tile {
    /// Tokens and channels of a workgroup.
    #[must_use]
    pub fn outputs(&self) -> (usize, usize) {
        match *self {
            Self::Stream { tokens, panels, .. } => (tokens as usize, panels as usize * PANEL),
            Self::Tiled { tokens, channels, .. } => (tokens as usize, channels as usize),
        }
    }

    fn workgroup(&self) -> [u32; 2] {
        match *self {
            Self::Stream { slices, .. } => [PANEL as u32, slices],
            Self::Tiled { tokens, channels, thread_tokens, thread_channels } => {
                [channels / thread_channels, tokens / thread_tokens]
            }
        }
    }

    /// Whether the numbers make a kernel at all: none zero, tiles whole, and no more than registers or memory could hold.
    fn sound(&self) -> bool {
        match *self {
            Self::Stream { tokens, panels, slices } => {
                (1..=UNROLLED).contains(&tokens) && (1..=UNROLLED).contains(&panels) && (1..=32).contains(&slices)
            }
            Self::Tiled { tokens, channels, thread_tokens, thread_channels } => {
                (1..=UNROLLED).contains(&thread_tokens)
                    && (1..=UNROLLED).contains(&thread_channels)
                    && (1..=1024).contains(&tokens)
                    && (1..=1024).contains(&channels)
                    && tokens.is_multiple_of(thread_tokens)
                    && channels.is_multiple_of(thread_channels)
            }
        }
    }

    /// Bytes of workgroup memory.
    fn workgroup_bytes(&self, float: bool) -> u64 {
        match *self {
            Self::Stream { slices: 1, .. } => 0,
            Self::Stream { tokens, panels, slices } => {
                4 * PANEL as u64 * u64::from(tokens) * u64::from(panels) * u64::from(slices)
            }
            Self::Tiled { tokens, channels, .. } => {
                let vectors = if float { FLOAT_STEP } else { 2 * W4A4_STEP };
                16 * u64::from(vectors) * (u64::from(tokens) + u64::from(channels))
            }
        }
    }

    /// The constants of the shaders, as WGSL.
    pub(super) fn constants(&self, float: bool) -> String {
        match *self {
            Self::Stream { tokens, panels, slices } => {
                format!(
                    "const TOKENS: u32 = {tokens}u;\nconst PANELS: u32 = {panels}u;\nconst SLICES: u32 = {slices}u;\n"
                )
            }
            Self::Tiled { tokens, channels, thread_tokens, thread_channels } => {
                let step = if float { FLOAT_STEP } else { W4A4_STEP };
                format!(
                    "const TILE_TOKENS: u32 = {tokens}u;\nconst TILE_CHANNELS: u32 = {channels}u;\n\
                     const THREAD_TOKENS: u32 = {thread_tokens}u;\nconst THREAD_CHANNELS: u32 = {thread_channels}u;\n\
                     const STEP: u32 = {step}u;\n"
                )
            }
        }
    }

    /// Workgroups for so many tokens and channels: tokens change fastest, so that weights are read from a near cache.
    pub(super) fn workgroups(&self, tokens: usize, n: usize) -> [u32; 3] {
        let (down, across) = self.outputs();
        [tokens.div_ceil(down) as u32, n.div_ceil(across) as u32, 1]
    }

    /// Refuses what the device does not allow for up to `tokens` tokens and `n` channels.
    pub(super) fn check(&self, gpu: &Gpu, kernel: &str, float: bool, tokens: usize, n: usize) -> Result<(), Error> {
        if !self.sound() {
            return Err(super::super::Error::Unsupported {
                what: "tile",
                expected: "whole tiles of 1 to 8 tokens and channels an invocation".into(),
                got: self.to_string(),
            }
            .into());
        }
        let limits = gpu.limits();
        let what = || format!("{kernel} with tile {self}");
        let check = |limit_name, limit: u64, got: u64| {
            if got <= limit { Ok(()) } else { Err(Error::Limit { what: what(), limit_name, limit, got }) }
        };
        let [x, y] = self.workgroup().map(u64::from);
        check("max_compute_workgroup_size_x", limits.max_compute_workgroup_size_x.into(), x)?;
        check("max_compute_workgroup_size_y", limits.max_compute_workgroup_size_y.into(), y)?;
        check("max_compute_invocations_per_workgroup", limits.max_compute_invocations_per_workgroup.into(), x * y)?;
        let storage = limits.max_compute_workgroup_storage_size.into();
        check("max_compute_workgroup_storage_size", storage, self.workgroup_bytes(float))?;
        let (down, across) = self.outputs();
        let groups = tokens.div_ceil(down).max(n.div_ceil(across)) as u64;
        check("max_compute_workgroups_per_dimension", limits.max_compute_workgroups_per_dimension.into(), groups)
    }

    /// Whether the device allows the tile at all.
    pub(super) fn fits(&self, gpu: &Gpu, float: bool) -> bool {
        self.check(gpu, "", float, 0, 0).is_ok()
    }
}

/// `stream:TOKENSxPANELSxSLICES` or `tiled:TOKENSxCHANNELS/THREAD_TOKENSxTHREAD_CHANNELS`.
impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream { tokens, panels, slices } => write!(f, "stream:{tokens}x{panels}x{slices}"),
            Self::Tiled { tokens, channels, thread_tokens, thread_channels } => {
                write!(f, "tiled:{tokens}x{channels}/{thread_tokens}x{thread_channels}")
            }
        }
    }
}

impl FromStr for Tile {
    type Err = super::super::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || super::super::Error::Unsupported {
            what: "tile",
            expected: "stream:TOKENSxPANELSxSLICES or tiled:TOKENSxCHANNELS/THREAD_TOKENSxTHREAD_CHANNELS".into(),
            got: text.to_owned(),
        };
        let numbers = |text: &str| -> Option<Vec<u32>> { text.split(['x', '/']).map(|n| n.parse().ok()).collect() };
        let (kind, sizes) = text.split_once(':').ok_or_else(fail)?;
        let sizes = numbers(sizes).ok_or_else(fail)?;
        let tile = match (kind, &sizes[..]) {
            ("stream", &[tokens, panels, slices]) => Self::Stream { tokens, panels, slices },
            ("tiled", &[tokens, channels, thread_tokens, thread_channels]) => {
                Self::Tiled { tokens, channels, thread_tokens, thread_channels }
            }
            _ => return Err(fail()),
        };
        // The numbers are a file's: what is no kernel is refused here, before anything is divided by them.
        if tile.sound() { Ok(tile) } else { Err(fail()) }
    }
}

/// A tile and the tokens up to which it is taken.
#[derive(Debug, Clone)]
pub(super) struct Rung<T> {
    pub(super) up_to: usize,
    pub(super) tile: Tile,
    pub(super) kernel: T,
}

/// The rungs of a plan: those of `steps` that up to `m_max` tokens can meet.
pub(super) fn ladder<T>(
    steps: &Steps,
    m_max: usize,
    mut compile: impl FnMut(Tile) -> Result<T, Error>,
) -> Result<Vec<Rung<T>>, Error> {
    let mut out = Vec::new();
    for &(up_to, tile) in steps.as_slice() {
        out.push(Rung { up_to, tile, kernel: compile(tile)? });
        if up_to >= m_max {
            break;
        }
    }
    Ok(out)
}

/// The rung for so many tokens; ladders are never empty.
pub(super) fn rung<T>(ladder: &[Rung<T>], tokens: usize) -> Option<&Rung<T>> {
    ladder.iter().find(|rung| tokens <= rung.up_to).or(ladder.last())
}

/// Refuses an operand that is larger than the device can bind.
pub(super) fn check_binding(gpu: &Gpu, what: &str, bytes: Option<u64>) -> Result<(), Error> {
    let limit = gpu.limits().max_storage_buffer_binding_size;
    let got = bytes.unwrap_or(u64::MAX);
    if got <= limit {
        return Ok(());
    }
    Err(Error::Limit { what: what.into(), limit_name: "max_storage_buffer_binding_size", limit, got })
}

/// Refuses more tokens than were planned.
pub(super) fn check_tokens(tokens: usize, m_max: usize) -> Result<(), Error> {
    if tokens <= m_max {
        return Ok(());
    }
    let expected = format!("at most {m_max} as planned");
    Err(super::super::Error::Unsupported { what: "tokens", expected, got: tokens.to_string() }.into())
}

/// Refuses a half-precision operand on a device without it.
pub(super) fn check_dtypes(gpu: &Gpu, dtypes: &[super::Dtype]) -> Result<(), Error> {
    if dtypes.contains(&super::Dtype::F16) && !gpu.has_f16() {
        return Err(Error::MissingFeature { device: gpu.info().name.clone(), feature: "SHADER_F16".into() });
    }
    Ok(())
}
