//! One group of linears on a device: the prologue on their common input and one stacked GEMM.

use super::super::error::{At, Error};
use super::super::stack::stacked_bias;
use super::scratch::Scratch;
use crate::checkpoint::{LinearGroup, LinearWeights, Weight};
use crate::kernels::cpu::{FloatValues, FloatWeights};
use crate::kernels::wgpu::{
    BoundTransformQuantize, Dtype, Error as DeviceError, GemmFloatBound, GemmFloatDesc, GemmFloatPlan, GemmW4A4Bound,
    GemmW4A4Desc, GemmW4A4Plan, Gpu, PackedFloatWeights, PackedWeights, Recorder, SourceBinding, TokenSource,
    TransformOutput, TransformQuantizeDesc, TransformQuantizePlan, TransformShape, TransformTables, TransformTarget,
};
use crate::kernels::{Affine, QuantizedMatrix};
use ::wgpu::BufferBinding;

/// Widest weight codes that the integer GEMM takes; wider ones are multiplied as the numbers that they stand for.
const WEIGHT_BITS: u32 = 4;

/// The linears of one group as one operation, `y = prologue(x) W^T (+ bias) (+ y)`.
pub(super) struct Group {
    prologue: TransformQuantizePlan,
    tables: TransformTables,
    compute: Compute,
}

enum Compute {
    /// Codes times codes.
    Integer { plan: GemmW4A4Plan, weights: PackedWeights },
    /// Floating-point weights, or codes that the integer kernel does not take.
    Float { plan: GemmFloatPlan, weights: PackedFloatWeights },
}

/// A group with its operands.
pub(super) struct BoundGroup {
    prologue: BoundTransformQuantize,
    compute: BoundCompute,
}

enum BoundCompute {
    Integer(GemmW4A4Bound),
    Float(GemmFloatBound),
}

impl Group {
    /// Packs the weights for calls of up to `m_max` tokens, those that are not quantized as `float`. With `accumulate`, `y` is
    /// added to.
    pub(super) fn load(
        gpu: &Gpu,
        group: LinearGroup,
        source: TokenSource,
        accumulate: bool,
        m_max: usize,
        float: Dtype,
        place: &str,
    ) -> Result<Self, Error> {
        let at = || place.to_owned();
        let LinearGroup { transform, activation, linears } = group;
        let k = transform.channels;
        let n = linears.iter().map(|linear| linear.weight.n()).sum();
        let bias = stacked_bias(&linears);
        let codes = integer_weights(&linears).filter(|_| activation.is_some());
        let target = match (&codes, activation) {
            (Some(_), _) => TransformTarget::Codes,
            (None, Some(_)) => TransformTarget::Dequantized(Dtype::F32),
            (None, None) => TransformTarget::Float(Dtype::F32),
        };
        let shape = TransformShape::of(&transform);
        let desc = TransformQuantizeDesc { m_max, shape, affine: activation, source, input: Dtype::F32, target };
        let prologue = TransformQuantizePlan::plan(gpu, &desc).at(at)?;
        let tables = prologue.pack(gpu, &transform).at(at)?;
        let compute = match (codes, activation) {
            (Some(matrices), Some(Affine { bits: activation_bits, .. })) => {
                let weight_bits = matrices.iter().map(|matrix| matrix.bits).max().unwrap_or(WEIGHT_BITS);
                let bias_planned = bias.is_some();
                let out = Dtype::F32;
                let desc =
                    GemmW4A4Desc { m_max, n, k, weight_bits, activation_bits, out, bias: bias_planned, accumulate };
                let plan = GemmW4A4Plan::plan(gpu, &desc).at(at)?;
                let weights = plan.pack_stacked(gpu, &matrices, bias.as_deref()).at(at)?;
                Compute::Integer { plan, weights }
            }
            _ => {
                let (x, weight, out) = (Dtype::F32, float, Dtype::F32);
                let desc = GemmFloatDesc { m_max, n, k, x, weight, out, bias: bias.is_some(), accumulate };
                let plan = GemmFloatPlan::plan(gpu, &desc).at(at)?;
                let values: Vec<(usize, Vec<f32>)> = linears.into_iter().map(|linear| values(linear.weight)).collect();
                let parts: Vec<FloatWeights<'_>> = values
                    .iter()
                    .map(|(n, values)| FloatWeights { values: FloatValues::F32(values), n: *n, k })
                    .collect();
                let weights = plan.pack(gpu, &parts, bias.as_deref()).at(at)?;
                Compute::Float { plan, weights }
            }
        };
        Ok(Self { prologue, tables, compute })
    }

    /// Input channels `K`.
    pub(super) fn k(&self) -> usize {
        self.tables.shape().channels
    }

    /// Output channels of all its linears.
    pub(super) fn n(&self) -> usize {
        match &self.compute {
            Compute::Integer { plan, .. } => plan.desc().n,
            Compute::Float { plan, .. } => plan.desc().n,
        }
    }

    /// Whether its prologue writes codes.
    pub(super) fn is_integer(&self) -> bool {
        matches!(self.compute, Compute::Integer { .. })
    }

    /// Bytes of device memory that the prologue needs beside its operands, for calls of up to `rows` tokens.
    pub(super) fn workspace_bytes(&self, rows: usize) -> u64 {
        self.prologue.limited(rows).workspace_bytes()
    }

    /// Bytes of weights, biases and transforms on the device.
    pub(super) fn bytes(&self) -> u64 {
        let weights = match &self.compute {
            Compute::Integer { plan, .. } => plan.desc().weight_bytes() + plan.desc().channel_bytes(),
            Compute::Float { plan, .. } => plan.parts().iter().map(|part| plan.desc().part_bytes(part)).sum(),
        };
        weights + self.tables.bytes()
    }

    /// The GEMM kernel that runs for so many tokens.
    pub(super) fn kernel(&self, tokens: usize) -> String {
        match &self.compute {
            Compute::Integer { plan, .. } => plan.kernel(tokens),
            Compute::Float { plan, .. } => plan.kernel(tokens),
        }
    }

    /// What the prologue runs for so many tokens.
    pub(super) fn prologue_kernel(&self, tokens: usize) -> String {
        self.prologue.kernel(tokens).to_owned()
    }

    /// Joins it with the tokens that it reads, the scratch of a sequence and the `y` that it writes.
    pub(super) fn bind(
        &self,
        gpu: &Gpu,
        source: SourceBinding<'_>,
        scratch: &Scratch,
        y: BufferBinding<'_>,
        place: &str,
    ) -> Result<BoundGroup, Error> {
        let at = || place.to_owned();
        let workspace = Some(scratch.prologue.as_entire_buffer_binding());
        let (out, compute) = match &self.compute {
            Compute::Integer { plan, weights } => {
                let Some(codes) = scratch.codes(self.k()) else { return Err(scratch.missing(place, self.k())) };
                let gemm = plan.limited(scratch.rows).bind(gpu, &codes, &weights.binding(), y).at(at)?;
                (TransformOutput::Codes(codes), BoundCompute::Integer(gemm))
            }
            Compute::Float { plan, weights } => {
                let x = scratch.input.as_entire_buffer_binding();
                let gemm = plan.limited(scratch.rows).bind(gpu, x.clone(), &weights.bindings(), y).at(at)?;
                (TransformOutput::Values(x), BoundCompute::Float(gemm))
            }
        };
        let prologue = self.prologue.limited(scratch.rows).bind(gpu, source, &self.tables, out, workspace).at(at)?;
        Ok(BoundGroup { prologue, compute })
    }
}

impl BoundGroup {
    /// Records the prologue of the first `tokens` tokens.
    pub(super) fn enqueue_prologue(&self, recorder: &mut Recorder<'_>, tokens: usize) -> Result<(), DeviceError> {
        self.prologue.enqueue(recorder, tokens)
    }

    /// Records the product of the first `tokens` tokens.
    pub(super) fn enqueue_gemm(&self, recorder: &mut Recorder<'_>, tokens: usize) -> Result<(), DeviceError> {
        match &self.compute {
            BoundCompute::Integer(gemm) => gemm.enqueue(recorder, tokens),
            BoundCompute::Float(gemm) => gemm.enqueue(recorder, tokens),
        }
    }
}

/// The quantized weights when the integer kernel takes all of them.
fn integer_weights(linears: &[LinearWeights]) -> Option<Vec<&QuantizedMatrix>> {
    linears
        .iter()
        .map(|linear| match &linear.weight {
            Weight::Quantized(matrix) if matrix.bits <= WEIGHT_BITS => Some(matrix),
            _ => None,
        })
        .collect()
}

fn values(weight: Weight) -> (usize, Vec<f32>) {
    match weight {
        Weight::Float { n, values, .. } => (n, values),
        Weight::Quantized(matrix) => (matrix.n, matrix.dequantize()),
    }
}
