//! The kernels in WGSL, on any device that wgpu reaches: Vulkan, Metal, DirectX 12.
//!
//! The host owns the memory, the encoder and the queue. A [`Gpu`] wraps its device (or opens one); a plan compiles the
//! kernels of one operation; `bind` joins them with the host's buffers, once; `enqueue` records into a [`Recorder`] over the
//! host's encoder, allocates nothing and submits nothing.

mod attention;
mod error;
mod gemm_float;
mod gemm_w4a4;
mod gpu;
mod kv_cache;
mod pipelines;
mod plan_checks;
mod recorder;
<<<<<<< HEAD
pub use rope_hadamard_quantize::{
    BoundRopeHadamardQuantize, RopeHadamardQuantizeDesc, RopeHadamardQuantizeOperands, RopeHadamardQuantizePlan,
    rope_buffer,
};
/// Every shader in every variant that plans compile with the tiles of the built-in table: what the tests validate.
#[must_use]
pub fn variants() -> Vec<(&'static Shader, Variant)> {
    [
        attention::variants(),
        gemm_float::variants(),
        gemm_w4a4::variants(),
        rope_hadamard_quantize::variants(),
        transform_quantize::variants(),
    ]
    .concat()
}
