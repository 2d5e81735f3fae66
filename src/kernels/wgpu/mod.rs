//! The kernels in WGSL, on any device that wgpu reaches: Vulkan, Metal, DirectX 12.
//!
//! The host owns the memory, the encoder and the queue. A [`Gpu`] wraps its device (or opens one); a plan compiles the
//! kernels of one operation; `bind` joins them with the host's buffers, once; `enqueue` records into a [`Recorder`] over the
//! host's encoder, allocates nothing and submits nothing.

mod argmax;
mod arithmetic;
mod attention;
pub mod ceilings;
mod embedding;
mod error;
mod gemm_float;
mod gemm_w4a4;
mod gpu;
mod kv_cache;
mod pipelines;
mod plan_checks;
mod recorder;
mod rms_norm;
mod rope_hadamard_quantize;
mod tile;
mod tokens;
mod transform_quantize;
mod tune;

pub use crate::kernels::Arithmetic;
pub use argmax::{ArgmaxDesc, ArgmaxPlan, BoundArgmax};
pub use attention::{AttentionDesc, AttentionOperands, AttentionPlan, BoundAttention};
pub use embedding::{BoundEmbedding, EmbeddingDesc, EmbeddingPlan, TableDtype};
pub use error::Error;
pub use gemm_float::{GemmFloatBound, GemmFloatDesc, GemmFloatPlan, PackedFloatWeights, Part, PartBinding};
pub use gemm_w4a4::{GemmW4A4Bound, GemmW4A4Desc, GemmW4A4Plan, HostWeights, PackedWeights, WeightsBinding};
pub use gpu::{Gpu, GpuOptions, required_features, required_limits};
pub use kv_cache::{KvBinding, KvCache, KvLayout, QueryLayout};
pub use pipelines::{Access, Shader, Variant};
pub use recorder::{Recorder, Timer};
pub use rms_norm::{BoundRmsNorm, BoundSiluMul, RmsNormPlan, RowsDesc, SiluMulPlan};
pub use rope_hadamard_quantize::{
    BoundRopeHadamardQuantize, RopeHadamardQuantizeDesc, RopeHadamardQuantizeOperands, RopeHadamardQuantizePlan,
    rope_buffer,
};
pub use tile::Tile;
pub use tokens::{Dtype, QuantizedTokens, TokensBinding, TokensLayout};
pub use transform_quantize::{
    BoundTransformQuantize, SourceBinding, TokenSource, TransformOutput, TransformQuantizeDesc, TransformQuantizePlan,
    TransformShape, TransformTables, TransformTarget, TransformTiling,
};
pub use tune::{Product, Steps, Table, TuneShape, tune};

/// Every shader in every variant that plans compile with the tiles of the built-in table: what the tests validate.
#[must_use]
pub fn variants() -> Vec<(&'static Shader, Variant)> {
    [
        argmax::variants(),
        attention::variants(),
        ceilings::variants(),
        embedding::variants(),
        gemm_float::variants(),
        gemm_w4a4::variants(),
        rms_norm::variants(),
        rope_hadamard_quantize::variants(),
        transform_quantize::variants(),
    ]
    .concat()
}
