//! Plain data: what a checkpoint holds, the same for every file format and for float and quantized models.

use crate::kernels::{Affine, QuantizedMatrix, Transform};
use half::{bf16, f16};

/// A linear of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Projection {
    /// `q_proj`
    Q,
    /// `k_proj`
    K,
    /// `v_proj`
    V,
    /// `o_proj`
    O,
    /// `gate_proj`
    Gate,
    /// `up_proj`
    Up,
    /// `down_proj`
    Down,
}

/// The linears that read the same activations and therefore share one transform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// q, k and v, behind the attention norm.
    Qkv,
    /// o, behind the attention.
    O,
    /// gate and up, behind the MLP norm.
    GateUp,
    /// down, behind `SiLU(gate) * up`.
    Down,
}

impl Group {
    /// All groups, in the order in which a layer runs them.
    pub const ALL: [Group; 4] = [Group::Qkv, Group::O, Group::GateUp, Group::Down];

    /// The group's linears, in the order in which [`LinearGroup::linears`] holds them.
    #[must_use]
    pub fn projections(self) -> &'static [Projection] {
        match self {
            Group::Qkv => &[Projection::Q, Projection::K, Projection::V],
            Group::O => &[Projection::O],
            Group::GateUp => &[Projection::Gate, Projection::Up],
            Group::Down => &[Projection::Down],
        }
    }

    /// Short name for reports and tensor names: `qkv`, `o`, `gate_up`, `down`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Group::Qkv => "qkv",
            Group::O => "o",
            Group::GateUp => "gate_up",
            Group::Down => "down",
        }
    }
}

/// A weight `[N, K]`, floating or quantized. Where its group has a transform, the weight is already transformed.
#[derive(Debug, Clone, PartialEq)]
pub enum Weight {
    /// Floating point, row-major.
    Float {
        /// Output channels.
        n: usize,
        /// Input channels.
        k: usize,
        /// Row-major values, `n * k` long.
        values: Vec<f32>,
    },
    /// Quantized per output channel.
    Quantized(QuantizedMatrix),
}

impl Weight {
    /// Output channels `N`.
    #[must_use]
    pub fn n(&self) -> usize {
        match self {
            Weight::Float { n, .. } => *n,
            Weight::Quantized(matrix) => matrix.n,
        }
    }

    /// Input channels `K`.
    #[must_use]
    pub fn k(&self) -> usize {
        match self {
            Weight::Float { k, .. } => *k,
            Weight::Quantized(matrix) => matrix.k,
        }
    }
}

/// One linear: `y = x W^T + bias`.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearWeights {
    /// Which linear it is.
    pub projection: Projection,
    /// Its weight.
    pub weight: Weight,
    /// Its bias `[N]`, where the architecture has one.
    pub bias: Option<Vec<f32>>,
}

/// The linears of a [`Group`] with what happens to their common input.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearGroup {
    /// Applied to the input before it is quantized.
    pub transform: Transform,
    /// How the input is quantized per token; `None` keeps it in floating point.
    pub activation: Option<Affine>,
    /// The linears, in the order of [`Group::projections`].
    pub linears: Vec<LinearWeights>,
}

/// One decoder layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerWeights {
    /// Weight of `input_layernorm`, `[hidden]`, with any folded smoothing.
    pub attention_norm: Vec<f32>,
    /// Weight of `post_attention_layernorm`, `[hidden]`, with any folded smoothing.
    pub mlp_norm: Vec<f32>,
    /// The four groups, in the order of [`Group::ALL`].
    pub groups: [LinearGroup; 4],
}

/// A `[rows, columns]` table kept in the precision of its source: the token embedding and the output head.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Rows: vocabulary.
    pub rows: usize,
    /// Columns: hidden channels.
    pub columns: usize,
    /// Row-major values.
    pub values: TableValues,
}

/// The values of a [`Table`].
#[derive(Debug, Clone, PartialEq)]
pub enum TableValues {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// IEEE half floats.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

impl TableValues {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that they occupy.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(values.as_slice()),
            Self::F16(values) => size_of_val(values.as_slice()),
            Self::Bf16(values) => size_of_val(values.as_slice()),
        }
    }
}
