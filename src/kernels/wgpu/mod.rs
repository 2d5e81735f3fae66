//! The kernels in WGSL, on any device that wgpu reaches: Vulkan, Metal, DirectX 12.
//!
//! The host owns the memory, the encoder and the queue. A [`Gpu`] wraps its device (or opens one); a plan compiles the
//! kernels of one operation; `bind` joins them with the host's buffers, once; `enqueue` records into a [`Recorder`] over the
//! host's encoder, allocates nothing and submits nothing.

mod argmax;
mod embedding;
mod error;
mod gpu;
mod pipelines;
mod plan_checks;
mod recorder;
mod rms_norm;
mod tokens;
mod transform_quantize;

pub use argmax::{ArgmaxDesc, ArgmaxPlan, BoundArgmax};
pub use embedding::{BoundEmbedding, EmbeddingDesc, EmbeddingPlan, TableDtype};
pub use error::Error;
pub use gpu::{Gpu, GpuOptions, required_features, required_limits};
pub use pipelines::{Access, Shader, Variant};
pub use recorder::{Recorder, Timer};
pub use rms_norm::{BoundRmsNorm, BoundSiluMul, RmsNormPlan, RowsDesc, SiluMulPlan};
pub use tokens::{Dtype, QuantizedTokens, TokensBinding, TokensLayout};
pub use transform_quantize::{
    BoundTransformQuantize, SourceBinding, TokenSource, TransformOutput, TransformQuantizeDesc, TransformQuantizePlan,
    TransformShape, TransformTables, TransformTarget, TransformTiling,
};

/// Every shader in every variant that plans compile with the tiles of the built-in table: what the tests validate.
#[must_use]
pub fn variants() -> Vec<(&'static Shader, Variant)> {
    let mut out = Vec::new();
    out.extend(argmax::variants());
    out.extend(embedding::variants());
    out.extend(rms_norm::variants());
    out.extend(transform_quantize::variants());
    out
}
