//! The kernels in WGSL, on any device that wgpu reaches: Vulkan, Metal, DirectX 12.
//!
//! The host owns the memory, the encoder and the queue. A [`Gpu`] wraps its device (or opens one); a plan compiles the
//! kernels of one operation; `bind` joins them with the host's buffers, once; `enqueue` records into a [`Recorder`] over the
//! host's encoder, allocates nothing and submits nothing.

mod attention;
mod error;
mod gpu;
mod kv_cache;
mod pipelines;
mod recorder;
mod rope_hadamard_quantize;
mod tokens;

pub use attention::{AttentionDesc, AttentionOperands, AttentionPlan, BoundAttention};
pub use error::Error;
pub use gpu::{Gpu, GpuOptions, required_features, required_limits};
pub use kv_cache::{KvBinding, KvCache, KvLayout, QueryLayout};
pub use pipelines::{Access, Shader, Variant};
pub use recorder::{Recorder, Timer};
pub use rope_hadamard_quantize::{
    BoundRopeHadamardQuantize, RopeHadamardQuantizeDesc, RopeHadamardQuantizeOperands, RopeHadamardQuantizePlan,
    rope_buffer,
};
pub use tokens::{Dtype, QuantizedTokens, TokensBinding, TokensLayout};

/// Every shader in every variant that plans compile with the tiles of the built-in table: what the tests validate.
#[must_use]
pub fn variants() -> Vec<(&'static Shader, Variant)> {
    [rope_hadamard_quantize::variants(), attention::variants()].concat()
}
