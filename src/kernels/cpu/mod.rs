//! Kernels for the CPU, with the instruction set chosen at run time.

mod gemm_float;
mod gemm_w4a4;
mod isa;
mod tokens;

pub use gemm_float::{FloatValues, FloatWeights, gemm_float};
pub use gemm_w4a4::{Epilogue, GemmW4A4, GemmW4A4Desc, PackedWeights};
pub use isa::Isa;
pub use tokens::QuantizedTokens;
