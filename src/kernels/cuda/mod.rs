//! The kernels in CUDA C++, compiled for the device at hand when they are first planned.
//!
//! A plan needs no GPU: it asks a [`Device`] for its [`Chip`] and for compiled kernels, and what it enqueues is plain data, a
//! [`Launch`]. [`Driver`] is the device behind NVIDIA's driver; the tests bring another, which runs the same sources on the
//! host.
//!
//! Memory is the host runtime's: operands are [`Address`]es in its context, work goes to its [`Stream`], and what is enqueued
//! neither allocates nor waits, so that it may be captured in a CUDA graph.
//!
//! # What a host needs
//!
//! Nothing to build, and at run time NVIDIA's driver (525 or newer) and `libnvrtc`: `pip install nvidia-cuda-nvrtc`
//! (`nvidia-cuda-nvrtc-cu12` for a driver of CUDA 12) or the toolkit, of which nothing else is used. [`Device::matrix_product`] also
//! wants `libcublasLt`. Each is opened when it is first needed, and one that is missing is an [`Error::Library`] that says what to
//! install and where it was looked for.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `DUQUANT_NVRTC` | `libnvrtc`, or its folder; otherwise the loader's path, the toolkit's folders and Python's packages |
//! | `DUQUANT_CUBIN_CACHE` | where machine code is kept; otherwise `duquant/cubins` in `$XDG_CACHE_HOME` or `~/.cache`; empty: nowhere |
//! | `CUDA_VISIBLE_DEVICES` | the driver's: which devices there are |
//!
//! # In a host that has a context and a stream
//!
//! [`Driver::open`] retains the primary context, which the CUDA runtime and the frameworks above it use: their device addresses and
//! streams are good as they are. A host with a context of its own lends it with [`Driver::borrow`].
//!
//! ```no_run
//! use duquant::kernels::cuda::{Device, Driver, Dtype, Error, RmsNormPlan, RowsDesc, Stream};
//! use std::ffi::c_void;
//!
//! /// RMSNorm of two tokens of 4096 channels in the host's memory, on its stream.
//! ///
//! /// # Safety
//! /// A `CUcontext`, a `CUstream` in it, and addresses in it of `[2, 4096]` numbers in half precision and of `[4096]` weights in
//! /// single precision.
//! unsafe fn normalize(context: *mut c_void, stream: *mut c_void, x: u64, weight: u64) -> Result<(), Error> {
//!     // SAFETY: the caller's context outlives the driver, which ends with this function.
//!     let device = unsafe { Driver::borrow(context) }?;
//!     let desc = RowsDesc { m_max: 2, channels: 4096, input: Dtype::F16, output: Dtype::F16 };
//!     // Once, before any graph is captured: this compiles, or finds the machine code on disk, and loads it.
//!     let plan = RmsNormPlan::plan(&device, &desc, 1e-5)?;
//!     let stream = Stream::from_raw(stream);
//!     // SAFETY: the caller's operands; they live until the stream has been waited for.
//!     unsafe { plan.enqueue(&device, stream, 2, x, weight, x) }?;
//!     // The kernel must not be unloaded before it has run.
//!     device.synchronize(stream)
//! }
//! ```

mod argmax;
mod attention;
pub mod ceilings;
mod checks;
mod chip;
mod cubins;
mod device;
mod driver;
mod dtype;
mod embedding;
mod error;
mod gemm_w4a4;
mod kernel;
mod kv_cache;
mod launch;
mod library;
mod memory;
mod nvrtc;
mod rms_norm;
mod rope_hadamard_quantize;
mod tokens;
mod transform_quantize;

pub use argmax::{ArgmaxDesc, ArgmaxPlan, NextStep};
pub use attention::{AttentionDesc, AttentionOperands, AttentionPlan};
pub use chip::{Arch, Chip};
pub use cubins::{Cubin, CubinCache};
pub use device::{Device, Function, Mark, MatrixProduct, Replay};
pub use driver::{Driver, Event, Graph, IntegerProduct, MemoryUse, OwnedStream};
pub use dtype::Dtype;
pub use embedding::{EmbeddingDesc, EmbeddingPlan};
pub use error::Error;
pub use gemm_w4a4::{GemmTile, GemmW4A4Desc, GemmW4A4Plan, HostWeights, PackedWeights, WeightsOperand};
pub use kernel::{Define, Kernel, SOURCES, Source};
pub use kv_cache::{HEAD_DIMS, KvCache, KvLayout, KvOperand, PAGE, QueryLayout, QueryOperand, Sequence};
pub use launch::{Launch, MAX_ARGUMENTS};
pub use memory::{Address, Buffer, Stream};
pub use nvrtc::Compiler;
pub use rms_norm::{RmsNormPlan, RowsDesc, SiluMulPlan};
pub use rope_hadamard_quantize::{
    RopeHadamardQuantizeDesc, RopeHadamardQuantizeOperands, RopeHadamardQuantizePlan, rope_buffer,
};
pub use tokens::{QuantizedTokens, TokenForm, TokensLayout, TokensOperand};
pub use transform_quantize::{
    SourceOperand, TokenSource, TransformOutput, TransformQuantizeDesc, TransformQuantizePlan, TransformShape,
    TransformTables, TransformTarget,
};

/// Every kernel that a plan may ask for, for checks of what the compiler makes of them.
#[must_use]
pub fn kernels() -> Vec<Kernel> {
    [
        argmax::kernels(),
        attention::kernels(),
        ceilings::kernels(),
        embedding::kernels(),
        gemm_w4a4::kernels(),
        rms_norm::kernels(),
        rope_hadamard_quantize::kernels(),
        transform_quantize::kernels(),
    ]
    .concat()
}
