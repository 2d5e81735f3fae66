use super::super::checks::{check_range, unsupported};
use super::super::{Dtype, Error};
use crate::kernels::{Affine, Transform};

/// Where the tokens of [`TransformQuantizePlan`](super::TransformQuantizePlan) come from.
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

/// What [`TransformQuantizePlan`](super::TransformQuantizePlan) writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransformTarget {
    /// Codes, scales, zero points and row sums, as [`TokensLayout`](super::TokensLayout) says.
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

    fn check(&self) -> Result<(), Error> {
        let Self { channels, block, rotations, hadamard, .. } = *self;
        check_range("channels", channels, 1, 1 << 24)?;
        if rotations == 0 {
            return if hadamard { unsupported("hadamard", "a rotation", "none") } else { Ok(()) };
        }
        check_range("rotations", rotations, 1, 8)?;
        if block == 0 || !channels.is_multiple_of(block) {
            return unsupported("block", format!("a divisor of {channels} channels"), block);
        }
        if hadamard && !block.is_power_of_two() {
            return unsupported("block", "a power of two for a Hadamard", block);
        }
        check_range("block", block, 1, 256)
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

impl TransformQuantizeDesc {
    pub(super) fn check(&self) -> Result<(), Error> {
        check_range("m_max", self.m_max, 1, 1 << 24)?;
        self.shape.check()?;
        match self.affine {
            Some(affine) => {
                Affine::new(affine.bits, affine.clip)?;
            }
            None if !matches!(self.target, TransformTarget::Float(_)) => {
                return unsupported("affine", "a quantizer (a float target needs none)", "none");
            }
            None => {}
        }
        if let TokenSource::RmsNorm { epsilon } = self.source
            && !(epsilon.is_finite() && epsilon >= 0.0)
        {
            return unsupported("epsilon", "a finite number of at least 0", epsilon);
        }
        Ok(())
    }
}
