//! One group of linears, ready to run: the prologue on their common input and one stacked GEMM.

use super::super::operation::{Operation, Stopwatch};
use super::super::stack::stacked_bias;
use super::scratch::Workspace;
use super::{Float, Settings};
use crate::checkpoint::{Group, LinearGroup, LinearWeights, Weight};
use crate::kernels::cpu::{
    Aligned, Epilogue, FloatValues, FloatWeights, GemmW4A4, GemmW4A4Desc, PackedWeights, Source, TransformQuantize,
    gemm_float,
};
use crate::kernels::{Affine, Error, QuantizedMatrix};
use half::{bf16, f16};

/// The linears of one group as one operation, `y = prologue(x) W^T (+ bias) (+ y)`.
pub(crate) struct GroupRunner {
    group: Group,
    k: usize,
    n: usize,
    prologue: TransformQuantize,
    compute: Compute,
    bias: Option<Vec<f32>>,
}

enum Compute {
    /// Codes times codes.
    Integer { plan: GemmW4A4, weights: PackedWeights },
    /// Floating-point weights, or weights of codes whose input stays in floating point.
    Float { values: Values, input: FloatInput },
}

/// Floating-point weights of all linears, one below the other.
enum Values {
    F32(Aligned<f32>),
    F16(Aligned<f16>),
    Bf16(Aligned<bf16>),
}

#[derive(Clone, Copy, PartialEq)]
enum FloatInput {
    /// The transformed input as it is.
    Exact,
    /// The transformed input through the quantizer and back.
    Dequantized,
}

impl GroupRunner {
    /// Takes the weights over and packs them for chunks of up to `m_max` tokens.
    pub(crate) fn load(group: Group, weights: LinearGroup, m_max: usize, settings: Settings) -> Result<Self, Error> {
        let LinearGroup { transform, activation, linears } = weights;
        let isa = settings.isa;
        let k = transform.channels;
        let n = linears.iter().map(|linear| linear.weight.n()).sum();
        let bias = stacked_bias(&linears);
        let prologue = TransformQuantize::plan_with(&transform, activation, m_max, isa, settings.arithmetic)?;
        let quantized: Vec<&QuantizedMatrix> = linears
            .iter()
            .filter_map(|linear| match &linear.weight {
                Weight::Quantized(matrix) => Some(matrix),
                Weight::Float { .. } => None,
            })
            .collect();
        let integer = activation.filter(|_| quantized.len() == linears.len());
        let compute = match (integer, quantized.first()) {
            (Some(Affine { bits, .. }), Some(first)) => {
                let desc = GemmW4A4Desc { m_max, n, k, weight_bits: first.bits, activation_bits: bits };
                let plan = GemmW4A4::plan(&desc, isa)?;
                let weights = plan.pack_stacked(&quantized)?;
                Compute::Integer { plan, weights }
            }
            _ => {
                let input = if activation.is_some() { FloatInput::Dequantized } else { FloatInput::Exact };
                Compute::Float { values: Values::stack(linears, n * k, settings.float), input }
            }
        };
        Ok(Self { group, k, n, prologue, compute, bias })
    }

    /// Input channels `K`.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// Output channels of all its linears.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Whether it multiplies codes by codes.
    pub(crate) fn is_integer(&self) -> bool {
        matches!(self.compute, Compute::Integer { .. })
    }

    /// Bytes of workspace that one call needs.
    pub(crate) fn workspace_bytes(&self) -> usize {
        match &self.compute {
            Compute::Integer { plan, .. } => plan.workspace_bytes(),
            Compute::Float { .. } => 0,
        }
    }

    /// Floats of workspace that the prologue needs.
    pub(crate) fn prologue_len(&self) -> usize {
        self.prologue.workspace_len()
    }

    /// Bytes of packed or floating weights, biases and transforms.
    pub(crate) fn bytes(&self) -> usize {
        let weights = match &self.compute {
            Compute::Integer { weights, .. } => weights.bytes(),
            Compute::Float { values, .. } => values.bytes(),
        };
        weights + self.bias.as_ref().map_or(0, |bias| size_of_val(bias.as_slice())) + self.prologue.bytes()
    }

    /// The kernel that runs for so many tokens.
    pub(crate) fn kernel(&self, tokens: usize) -> &'static str {
        match &self.compute {
            Compute::Integer { plan, .. } => plan.kernel(tokens),
            Compute::Float { values: Values::F32(_), .. } => "gemm_float f32",
            Compute::Float { values: Values::F16(_), .. } => "gemm_float f16",
            Compute::Float { values: Values::Bf16(_), .. } => "gemm_float bf16",
        }
    }

    /// What the prologue runs.
    pub(crate) fn prologue_kernel(&self) -> String {
        self.prologue.kernel()
    }

    /// Runs on `tokens` tokens of `source`; `y` is `[tokens, n]`, added to when `accumulate` is set.
    pub(in crate::model) fn run(
        &self,
        source: Source<'_>,
        tokens: usize,
        accumulate: bool,
        y: &mut [f32],
        workspace: &mut Workspace,
        mut stopwatch: Option<&mut Stopwatch>,
    ) -> Result<(), Error> {
        let mut lap = |operation| {
            if let Some(stopwatch) = &mut stopwatch {
                stopwatch.lap(&[(operation, 1.0)]);
            }
        };
        let epilogue = Epilogue { bias: self.bias.as_deref(), accumulate };
        let Workspace { input: x, codes, prologue, gemm, .. } = workspace;
        match &self.compute {
            Compute::Integer { plan, weights } => {
                let Some(codes) = codes.iter_mut().find(|codes| codes.k() == self.k) else {
                    return Err(Error::Length { operand: "workspace.codes", expected: self.k, got: 0 });
                };
                self.prologue.run(source, tokens, codes, prologue)?;
                lap(Operation::Prologue(self.group));
                plan.run(weights, codes, epilogue, y, gemm)?;
            }
            Compute::Float { values, input } => {
                let got = x.len();
                let expected = tokens * self.k;
                let x = x.get_mut(..expected).ok_or(Error::Length { operand: "workspace.input", expected, got })?;
                match input {
                    FloatInput::Exact => self.prologue.run_float(source, tokens, x, prologue)?,
                    FloatInput::Dequantized => self.prologue.run_dequantized(source, tokens, x, prologue)?,
                }
                lap(Operation::Prologue(self.group));
                gemm_float(x, tokens, FloatWeights { values: values.get(), n: self.n, k: self.k }, epilogue, y)?;
            }
        }
        lap(Operation::Gemm(self.group));
        Ok(())
    }
}

impl Values {
    /// Takes over `len` weights. Drops each part as soon as it is copied.
    fn stack(linears: Vec<LinearWeights>, len: usize, float: Float) -> Self {
        let parts = linears.into_iter().map(|linear| match linear.weight {
            Weight::Float { values, .. } => values,
            Weight::Quantized(matrix) => matrix.dequantize(),
        });
        match float {
            Float::F32 => Self::F32(stacked(parts, len, |x| x)),
            Float::F16 => Self::F16(stacked(parts, len, f16::from_f32)),
            Float::Bf16 => Self::Bf16(stacked(parts, len, bf16::from_f32)),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => values.bytes(),
            Self::F16(values) => values.bytes(),
            Self::Bf16(values) => values.bytes(),
        }
    }

    fn get(&self) -> FloatValues<'_> {
        match self {
            Self::F32(values) => FloatValues::F32(values),
            Self::F16(values) => FloatValues::F16(values),
            Self::Bf16(values) => FloatValues::Bf16(values),
        }
    }
}

fn stacked<T: bytemuck::Pod>(
    parts: impl Iterator<Item = Vec<f32>>,
    len: usize,
    convert: impl Fn(f32) -> T,
) -> Aligned<T> {
    let mut all = Aligned::new(len);
    let mut rest = all.as_mut_slice();
    for part in parts {
        let (values, behind) = rest.split_at_mut(part.len().min(rest.len()));
        values.iter_mut().zip(part).for_each(|(value, x)| *value = convert(x));
        rest = behind;
    }
    all
}
