//! The kernels in CUDA C++, compiled for the device at hand when they are first planned.
//!
//! A plan needs no GPU: it asks a [`Device`] for its [`Chip`] and for compiled kernels, and what it enqueues is plain data, a
//! [`Launch`]. [`Driver`] is the device behind NVIDIA's driver; the tests bring another, which runs the same sources on the
//! host.
//!
//! Memory is the host runtime's: operands are [`Address`]es in its context, work goes to its [`Stream`], and what is enqueued
//! neither allocates nor waits, so that it may be captured in a CUDA graph.

mod attention;
mod checks;
mod chip;
mod device;
mod dtype;
mod error;
mod kernel;
mod kv_cache;
mod launch;
mod memory;
mod rms_norm;
mod rope_hadamard_quantize;
mod tokens;

pub use attention::{AttentionDesc, AttentionOperands, AttentionPlan};
pub use chip::{Arch, Chip};
pub use device::{Device, Function, MatrixProduct};
pub use dtype::Dtype;
pub use error::Error;
pub use kernel::{Define, Kernel, SOURCES, Source};
pub use kv_cache::{HEAD_DIMS, KvCache, KvLayout, KvOperand, PAGE, QueryLayout, QueryOperand, Sequence};
pub use launch::{Launch, MAX_ARGUMENTS};
pub use memory::{Address, Buffer, Stream};
pub use rms_norm::{RmsNormPlan, RowsDesc, SiluMulPlan};
pub use rope_hadamard_quantize::{
    RopeHadamardQuantizeDesc, RopeHadamardQuantizeOperands, RopeHadamardQuantizePlan, rope_buffer,
};
pub use tokens::{QuantizedTokens, TokenForm, TokensLayout, TokensOperand};

/// Every kernel that a plan may ask for, for checks of what the compiler makes of them.
#[must_use]
pub fn kernels() -> Vec<Kernel> {
    [attention::kernels(), rms_norm::kernels(), rope_hadamard_quantize::kernels()].concat()
}
