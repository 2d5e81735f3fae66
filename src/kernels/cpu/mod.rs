//! Kernels for the CPU, with the instruction set chosen at run time.

mod isa;
mod tokens;

pub use isa::Isa;
pub use tokens::QuantizedTokens;
