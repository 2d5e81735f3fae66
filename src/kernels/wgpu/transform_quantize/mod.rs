//! The prologue of a W4A4 linear on a wgpu device: (RMSNorm or SwiGLU), smoothing, rotations and permutations, per-token
//! quantization, in one dispatch.

mod bind;
mod tile;

pub use bind::{BoundTransformQuantize, SourceBinding, TransformOutput, TransformTables};
pub use tile::TransformTiling;
pub(super) use tile::variants;

use super::pipelines::Kernel;
use super::plan_checks::{check_bindings, check_dtype, check_range, unsupported};
use super::{Dtype, Error, Gpu, TokensLayout};
use crate::kernels::{Affine, Transform};
use std::sync::Arc;
use tile::Tile;

/// Where the tokens of [`TransformQuantizePlan`] come from.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum TokenSource {
    /// They are there: `[T, K]`.
    #[default]
    Tokens,
    /// The RMSNorm of each row of `x` `[T, K]`: `x / sqrt(mean(x^2) + epsilon) * weight`, with `weight` `[K]` in `f32`.
    RmsNorm {
        /// Added to the mean square.
        epsilon: f32,
    },
    /// `silu(gate) * up` of `[T, 2K]`, gate in the first `K` columns of each row.
    SiluMul,
}

/// What [`TransformQuantizePlan`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransformTarget {
    /// Codes, scales, zero points and row sums, as [`TokensLayout`] says.
    #[default]
    Codes,
    /// The transformed tokens `[T, K]`, unquantized: for linears whose weights stay in floating point.
    Float(Dtype),
    /// The real numbers `[T, K]` that the codes stand for, `scale (code - zero_point)`.
    Dequantized(Dtype),
}

/// The shape of a [`Transform`], without its numbers: transforms of one shape share a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransformShape {
    /// Input channels `K`.
    pub channels: usize,
    /// Rotation block `B`; 0 without rotations.
    pub block: usize,
    /// Rotations, `P + 1` or 0.
    pub rotations: usize,
    /// Whether the rotations are normalised Sylvester Hadamard matrices.
    pub hadamard: bool,
    /// Whether a smoothing factor a channel comes first.
    pub smooth: bool,
}

impl TransformShape {
    /// The shape of `transform`.
    #[must_use]
    pub fn of(transform: &Transform) -> Self {
        let rotations = transform.rotation_count();
        Self {
            channels: transform.channels,
            block: if rotations == 0 { 0 } else { transform.block },
            rotations,
            hadamard: transform.hadamard && rotations > 0,
            smooth: transform.inverse_smooth.is_some(),
        }
    }
}

/// What to plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TransformQuantizeDesc {
    /// Most tokens.
    pub m_max: usize,
    /// The shape of the transforms.
    pub shape: TransformShape,
    /// The activation quantizer; may be `None` when `target` is [`TransformTarget::Float`].
    pub affine: Option<Affine>,
    /// What stands before the transform.
    pub source: TokenSource,
    /// Type of `x` or `gate_up`.
    pub input: Dtype,
    /// What is written.
    pub target: TransformTarget,
}

/// `x -> x S^-1 R_0 P_0 R_1 ..` (eq. 5), then the per-token quantizer (eq. 1), in one dispatch.
///
/// A token belongs to one workgroup, from its first value to its codes, so that they depend on the token alone. All
/// arithmetic is in `f32` in the order that [`Affine`] gives; half precision is widened when read and rounded to nearest when
/// written. The device's division is good to 2.5 ULP, its `exp` and `inverseSqrt` to a few: a code may differ by one from the
/// CPU's where the scaled value lies next to a tie, and nowhere else. Without rotation, norm and SwiGLU the scales are the
/// CPU's bit for bit. On a device that is asked for [`Arithmetic::Reproducible`](super::Arithmetic) everything is.
///
/// A token whose transformed values hold NaN or infinity, or span more than `f32` can, gets scale NaN, zero point 0, codes 0
/// and row sum 0, and NaN throughout as [`TransformTarget::Dequantized`].
#[derive(Debug, Clone)]
pub struct TransformQuantizePlan {
    desc: TransformQuantizeDesc,
    tile: Tile,
    kernel: Arc<Kernel>,
    name: String,
}

impl TransformQuantizePlan {
    /// Chooses and compiles the kernel for `desc` on this device.
    ///
    /// # Errors
    /// [`Error::Kernel`] for shapes that no [`Transform`] has, a rotation whose block is no multiple of 4, a dense one above 256,
    /// a missing quantizer or settings outside [`Affine::new`]'s; [`Error::MissingFeature`] for half precision without
    /// `SHADER_F16`; [`Error::Limit`] for operands or a block too large for the device.
    pub fn plan(gpu: &Gpu, desc: &TransformQuantizeDesc) -> Result<Self, Error> {
        let on_cpu = gpu.info().device_type == ::wgpu::DeviceType::Cpu;
        Self::plan_tiled(gpu, desc, if on_cpu { TransformTiling::Narrow } else { TransformTiling::Wide })
    }

    /// As [`Self::plan`], with the tile of another kind of device: for measuring and testing.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn plan_tiled(gpu: &Gpu, desc: &TransformQuantizeDesc, tiling: TransformTiling) -> Result<Self, Error> {
        let TransformQuantizeDesc { m_max, shape, affine, source, input, target } = *desc;
        check_range("channels", shape.channels, 1, 1 << 24)?;
        check_range("m_max", m_max, 1, 1 << 24)?;
        check_shape(&shape)?;
        match affine {
            Some(affine) => {
                Affine::new(affine.bits, affine.clip)?;
            }
            None if !matches!(target, TransformTarget::Float(_)) => {
                return unsupported("affine", "a quantizer (a float target needs none)", "none");
            }
            None => {}
        }
        check_dtype(gpu, input)?;
        if let TransformTarget::Float(dtype) | TransformTarget::Dequantized(dtype) = target {
            check_dtype(gpu, dtype)?;
        }
        if let TokenSource::RmsNorm { epsilon } = source
            && !(epsilon.is_finite() && epsilon >= 0.0)
        {
            return unsupported("epsilon", "a finite number of at least 0", epsilon);
        }
        let tile = Tile::choose(gpu, desc, tiling)?;
        let (shader, variant) = tile.variant(desc, gpu.reproducible());
        let bytes = tile.workspace_bytes(desc);
        check_bindings(gpu, &[("source", desc.source_bytes()), ("out", desc.out_bytes()), ("workspace", bytes)])?;
        let order = if gpu.reproducible().is_some() { ", reproducible" } else { "" };
        let name = tile.name(desc) + order;
        Ok(Self { desc: *desc, tile, kernel: gpu.kernel(shader, &variant)?, name })
    }

    /// What was planned.
    #[must_use]
    pub fn desc(&self) -> &TransformQuantizeDesc {
        &self.desc
    }

    /// The same plan for at most `m_max` tokens, where those are fewer: its operands are smaller, and its tables the same.
    #[must_use]
    pub fn limited(&self, m_max: usize) -> Self {
        let mut plan = self.clone();
        plan.desc.m_max = m_max.clamp(1, plan.desc.m_max);
        plan
    }

    /// Which kernel runs for `tokens` tokens: how it rotates, its workgroup and where a token lies meanwhile.
    #[must_use]
    pub fn kernel(&self, _tokens: usize) -> &str {
        &self.name
    }

    /// Bytes of device memory for what of the tokens at work does not fit into workgroup memory; 0 where all does.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.tile.workspace_bytes(&self.desc)
    }
}

impl TransformQuantizeDesc {
    /// How the codes lie.
    #[must_use]
    pub fn layout(&self) -> TokensLayout {
        TokensLayout { m_max: self.m_max, k: self.shape.channels }
    }

    fn values(&self) -> u64 {
        self.m_max as u64 * self.shape.channels as u64
    }

    fn source_bytes(&self) -> u64 {
        let rows = if self.source == TokenSource::SiluMul { 2 } else { 1 };
        rows * self.values() * self.input.bytes()
    }

    fn out_bytes(&self) -> u64 {
        match self.target {
            TransformTarget::Codes => self.layout().code_bytes(),
            TransformTarget::Float(dtype) | TransformTarget::Dequantized(dtype) => self.values() * dtype.bytes(),
        }
    }
}

fn check_shape(shape: &TransformShape) -> Result<(), Error> {
    let TransformShape { channels, block, rotations, hadamard, .. } = *shape;
    if rotations == 0 {
        return if hadamard { unsupported("hadamard", "a rotation", "none") } else { Ok(()) };
    }
    check_range("rotations", rotations, 1, 8)?;
    if block == 0 || !channels.is_multiple_of(block) {
        return unsupported("block", format!("a divisor of {channels} channels"), block);
    }
    if hadamard && !(block.is_power_of_two() && block >= 4) {
        return unsupported("block", "a power of two from 4 on for a Hadamard", block);
    }
    if !hadamard && (block > tile::DENSE_BLOCK_MAX || !block.is_multiple_of(4)) {
        return unsupported("block", format!("a multiple of 4 up to {}", tile::DENSE_BLOCK_MAX), block);
    }
    Ok(())
}
