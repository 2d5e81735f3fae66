//! One group of linears on a device: the prologue on their common input and one stacked GEMM.

use super::super::error::{At, Error};
use super::super::stack::stacked_bias;
use super::prologue::Prologue;
use super::scratch::Scratch;
use crate::checkpoint::{LinearGroup, LinearWeights, Weight};
use crate::kernels::cuda::{
    Address, Buffer, Device, Dtype, Error as DeviceError, GemmW4A4Desc, GemmW4A4Plan, MatrixProduct, PackedWeights,
    Stream, TokenSource, TokensLayout, TransformTarget,
};
use crate::kernels::{Affine, QuantizedMatrix};
use half::{bf16, f16};
use std::sync::Arc;

/// Widest weight codes that the integer GEMM takes; wider ones are multiplied as the numbers that they stand for.
const WEIGHT_BITS: u32 = 4;

/// The linears of one group as one operation, `y = prologue(x) W^T (+ bias) (+ y)`.
pub(super) struct Group {
    prologue: Prologue,
    compute: Compute,
}

enum Compute {
    /// Codes times codes.
    Integer { plan: GemmW4A4Plan, weights: PackedWeights },
    /// Floating-point weights, or codes that the integer kernel does not take.
    Float { product: MatrixProduct, weight: Buffer, bias: Option<Buffer> },
}

/// Memory of one call of a group.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    /// What the prologue reads.
    pub(super) x: Address,
    /// The RMSNorm's weight, where there is one.
    pub(super) norm: Address,
    pub(super) y: Address,
    pub(super) scratch: &'a Scratch,
}

impl Group {
    /// Packs the weights for calls of up to `m_max` tokens. Inputs and outputs, and weights that are not quantized, are in
    /// `float`. With `accumulate`, `y` is added to.
    pub(super) fn load(
        device: &Arc<dyn Device>,
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
            (None, Some(_)) => TransformTarget::Dequantized(float),
            (None, None) => TransformTarget::Float(float),
        };
        let prologue = Prologue::load(device, &transform, activation, source, m_max, float, target).at(at)?;
        let compute = match (codes, activation) {
            (Some(matrices), Some(Affine { bits: activation_bits, .. })) => {
                let weight_bits = matrices.iter().map(|matrix| matrix.bits).max().unwrap_or(WEIGHT_BITS);
                let (out, with_bias) = (float, bias.is_some());
                let desc = GemmW4A4Desc { m_max, n, k, weight_bits, activation_bits, out, bias: with_bias, accumulate };
                let plan = GemmW4A4Plan::plan(device.as_ref(), &desc).at(at)?;
                let weights = plan.pack_stacked(device, &matrices, bias.as_deref()).at(at)?;
                Compute::Integer { plan, weights }
            }
            _ => {
                let mut values = Vec::with_capacity(n * k);
                linears.into_iter().for_each(|linear| values.append(&mut floats(linear.weight)));
                let weight = upload(device, "weights", &values, float).at(at)?;
                let bias = bias.map(|bias| upload(device, "bias", &bias, float)).transpose().at(at)?;
                let (input, output) = (float, float);
                let (x, y, bias_at) = (0, 0, bias.as_ref().map(Buffer::address));
                let product = MatrixProduct {
                    tokens: m_max,
                    n,
                    k,
                    input,
                    output,
                    x,
                    weight: weight.address(),
                    bias: bias_at,
                    y,
                    accumulate,
                };
                Compute::Float { product, weight, bias }
            }
        };
        Ok(Self { prologue, compute })
    }

    /// Input channels `K`.
    pub(super) fn k(&self) -> usize {
        match &self.compute {
            Compute::Integer { plan, .. } => plan.desc().k,
            Compute::Float { product, .. } => product.k,
        }
    }

    /// Output channels of all its linears.
    pub(super) fn n(&self) -> usize {
        match &self.compute {
            Compute::Integer { plan, .. } => plan.desc().n,
            Compute::Float { product, .. } => product.n,
        }
    }

    /// How its prologue's codes lie, where it writes codes.
    pub(super) fn tokens(&self) -> Option<TokensLayout> {
        match &self.compute {
            Compute::Integer { plan, .. } => Some(plan.tokens()),
            Compute::Float { .. } => None,
        }
    }

    /// Whether its prologue writes floating-point numbers of its own.
    pub(super) fn needs_input(&self) -> bool {
        self.tokens().is_none() && !matches!(self.prologue, Prologue::Nothing)
    }

    /// Bytes that the GEMM needs, zero before its first use and left zero.
    pub(super) fn gemm_bytes(&self) -> u64 {
        match &self.compute {
            Compute::Integer { plan, .. } => plan.workspace_bytes(),
            Compute::Float { .. } => 0,
        }
    }

    /// Bytes of weights, biases and transforms on the device.
    pub(super) fn bytes(&self) -> u64 {
        let weights = match &self.compute {
            Compute::Integer { weights, .. } => weights.bytes(),
            Compute::Float { weight, bias, .. } => weight.bytes() + bias.as_ref().map_or(0, Buffer::bytes),
        };
        weights + self.prologue.bytes()
    }

    /// The GEMM kernel that runs for so many tokens.
    pub(super) fn kernel(&self, tokens: usize) -> String {
        match &self.compute {
            Compute::Integer { plan, .. } => plan.kernel(tokens),
            Compute::Float { product, .. } => format!("the vendor's library in {:?}", product.input),
        }
    }

    /// What the prologue runs for so many tokens.
    pub(super) fn prologue_kernel(&self, tokens: usize) -> String {
        self.prologue.kernel(tokens)
    }

    /// Enqueues the group for the first `tokens` tokens. `between` is called behind the prologue.
    ///
    /// # Safety
    /// The operands must have room for them.
    pub(super) unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        tokens: usize,
        operands: &Operands<'_>,
        between: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let Operands { x, norm, y, scratch } = *operands;
        // SAFETY: the caller's; the scratch has room for every group that it was made for.
        unsafe {
            let x = self.prologue.enqueue(device, stream, tokens, x, norm, scratch)?;
            between()?;
            match &self.compute {
                Compute::Integer { plan, weights } => {
                    plan.enqueue(device, stream, tokens, scratch.codes, weights.operand(), y, scratch.gemm)
                }
                Compute::Float { product, .. } => {
                    device.matrix_product(stream, &MatrixProduct { tokens, x, y, ..*product })
                }
            }
        }
    }
}

/// Memory that holds `values`, rounded to `dtype`.
pub(super) fn upload(
    device: &Arc<dyn Device>,
    what: &str,
    values: &[f32],
    dtype: Dtype,
) -> Result<Buffer, DeviceError> {
    match dtype {
        Dtype::F32 => Buffer::upload(device, what, values),
        _ => Buffer::upload(device, what, &rounded(values.iter().copied(), dtype)),
    }
}

/// The bytes of `values`, rounded to `dtype`.
pub(super) fn rounded(values: impl Iterator<Item = f32>, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => bytemuck::cast_slice(&values.collect::<Vec<_>>()).to_vec(),
        Dtype::F16 => bytemuck::cast_slice(&values.map(f16::from_f32).collect::<Vec<_>>()).to_vec(),
        Dtype::Bf16 => bytemuck::cast_slice(&values.map(bf16::from_f32).collect::<Vec<_>>()).to_vec(),
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

fn floats(weight: Weight) -> Vec<f32> {
    match weight {
        Weight::Float { values, .. } => values,
        Weight::Quantized(matrix) => matrix.dequantize(),
    }
}
