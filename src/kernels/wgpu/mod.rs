//! The kernels in WGSL, on any device that wgpu reaches: Vulkan, Metal, DirectX 12.
//!
//! The host owns the memory, the encoder and the queue. A [`Gpu`] wraps its device (or opens one); a plan compiles the
//! kernels of one operation; `bind` joins them with the host's buffers, once; `enqueue` records into a [`Recorder`] over the
//! host's encoder, allocates nothing and submits nothing.

mod error;
mod gemm_float;
mod gemm_w4a4;
mod gpu;
mod pipelines;
mod recorder;
mod tile;
mod tokens;
mod tune;

pub use error::Error;
pub use gemm_float::{GemmFloatBound, GemmFloatDesc, GemmFloatPlan, PackedFloatWeights, Part, PartBinding};
pub use gemm_w4a4::{GemmW4A4Bound, GemmW4A4Desc, GemmW4A4Plan, HostWeights, PackedWeights, WeightsBinding};
pub use gpu::{Gpu, GpuOptions, required_features, required_limits};
pub use pipelines::{Access, Shader, Variant};
pub use recorder::{Recorder, Timer};
pub use tile::Tile;
pub use tokens::{Dtype, QuantizedTokens, TokensBinding, TokensLayout};
pub use tune::{Product, Steps, Table, TuneShape, tune};

/// Every shader in every variant that plans compile with the tiles of the built-in table: what the tests validate.
#[must_use]
pub fn variants() -> Vec<(&'static Shader, Variant)> {
    let mut all = Vec::new();
    all.extend(gemm_w4a4::variants());
    all.extend(gemm_float::variants());
    all
}
