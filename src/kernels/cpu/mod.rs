//! Kernels for the CPU, with the instruction set chosen at run time.

mod aligned;
mod attention;
pub mod ceilings;
mod gemm_float;
mod gemm_w4a4;
mod isa;
mod kv_cache;
mod lanes;
mod prefetch;
mod rms_norm;
mod rope;
mod rope_hadamard_quantize;
#[cfg(target_arch = "x86_64")]
mod tile_registers;
mod tiles;
mod tokens;
mod transform_quantize;

pub use aligned::Aligned;
pub use attention::attention;
pub use gemm_float::{FloatValues, FloatWeights, gemm_float};
pub use gemm_w4a4::{Epilogue, GemmW4A4, GemmW4A4Desc, PackedWeights};
pub use isa::Isa;
pub use kv_cache::{KvCache, KvCacheDesc};
pub use rms_norm::{rms_norm, silu_mul};
pub use rope::{RopeStretch, RopeTable, rope_inverse_frequencies};
pub use rope_hadamard_quantize::{QueryHeads, QueryHeadsDesc, rope_hadamard_quantize};
pub use tokens::QuantizedTokens;
pub use transform_quantize::{Source, TransformQuantize};
