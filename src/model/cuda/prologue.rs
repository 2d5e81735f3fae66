//! What stands before a group's GEMM: norm or SwiGLU, transform, quantizer.

use super::scratch::Scratch;
use crate::kernels::cuda::{
    Address, Device, Dtype, Error, RmsNormPlan, RowsDesc, SiluMulPlan, SourceOperand, Stream, TokenSource,
    TransformOutput, TransformQuantizeDesc, TransformQuantizePlan, TransformShape, TransformTables, TransformTarget,
};
use crate::kernels::{Affine, Transform};
use std::sync::Arc;

/// One of the kernels, by what there is to do: the floating-point baseline pays for no transform that it has not.
pub(super) enum Prologue {
    /// Norm or SwiGLU, transform, and quantizer where there is one.
    Transform {
        plan: Box<TransformQuantizePlan>,
        tables: TransformTables,
    },
    RmsNorm(RmsNormPlan),
    SiluMul(SiluMulPlan),
    /// The tokens are the GEMM's input as they are.
    Nothing,
}

impl Prologue {
    /// Loads the kernel that writes `target` from tokens in `float`.
    pub(super) fn load(
        device: &Arc<dyn Device>,
        transform: &Transform,
        affine: Option<Affine>,
        source: TokenSource,
        m_max: usize,
        float: Dtype,
        target: TransformTarget,
    ) -> Result<Self, Error> {
        let shape = TransformShape::of(transform);
        let plain = shape.rotations == 0 && !shape.smooth && target == TransformTarget::Float(float);
        let rows = RowsDesc { m_max, channels: shape.channels, input: float, output: float };
        match source {
            TokenSource::RmsNorm { epsilon } if plain => {
                RmsNormPlan::plan(device.as_ref(), &rows, epsilon).map(Self::RmsNorm)
            }
            TokenSource::SiluMul if plain => SiluMulPlan::plan(device.as_ref(), &rows).map(Self::SiluMul),
            TokenSource::Tokens if plain => Ok(Self::Nothing),
            _ => {
                let desc = TransformQuantizeDesc { m_max, shape, affine, source, input: float, target };
                let plan = TransformQuantizePlan::plan(device.as_ref(), &desc)?;
                let tables = plan.pack(device, transform)?;
                Ok(Self::Transform { plan: Box::new(plan), tables })
            }
        }
    }

    /// Bytes of rotations, permutations and smoothing factors on the device.
    pub(super) fn bytes(&self) -> u64 {
        if let Self::Transform { tables, .. } = self { tables.bytes() } else { 0 }
    }

    /// Which kernel runs for so many tokens.
    pub(super) fn kernel(&self, tokens: usize) -> String {
        match self {
            Self::Transform { plan, .. } => plan.kernel(tokens),
            Self::RmsNorm(plan) => plan.kernel(tokens),
            Self::SiluMul(plan) => plan.kernel(tokens),
            Self::Nothing => "none".to_owned(),
        }
    }

    /// Enqueues `tokens` tokens `x`, with the RMSNorm's weight where there is one. Codes go to the scratch memory's; floating-point
    /// numbers are at the address that comes back.
    ///
    /// # Safety
    /// The source and the scratch memory must have room for them.
    pub(super) unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        tokens: usize,
        x: Address,
        weight: Address,
        scratch: &Scratch,
    ) -> Result<Address, Error> {
        let out = scratch.input;
        // SAFETY: the caller's.
        unsafe {
            match self {
                Self::Transform { plan, tables } => {
                    let source = match plan.desc().source {
                        TokenSource::Tokens => SourceOperand::Tokens(x),
                        TokenSource::RmsNorm { .. } => SourceOperand::RmsNorm { x, weight },
                        TokenSource::SiluMul => SourceOperand::SiluMul(x),
                    };
                    let sink = match plan.desc().target {
                        TransformTarget::Codes => TransformOutput::Codes(scratch.codes),
                        TransformTarget::Float(_) | TransformTarget::Dequantized(_) => TransformOutput::Values(out),
                    };
                    plan.enqueue(device, stream, tokens, source, tables, sink)?;
                }
                Self::RmsNorm(plan) => plan.enqueue(device, stream, tokens, x, weight, out)?,
                Self::SiluMul(plan) => plan.enqueue(device, stream, tokens, x, out)?,
                Self::Nothing => return Ok(x),
            }
        }
        Ok(out)
    }
}
