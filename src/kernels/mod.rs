//! The linkable surface: descriptors, plans, packed operands and the kernels of each backend.
//!
//! Every backend follows one shape, because a host runtime owns its memory, its threads and its graph:
//!
//! 1. **describe** the operation with a plain-data descriptor,
//! 2. **plan** it for a device: choose the kernel, say which one, and how large its workspace is,
//! 3. **pack** canonical operands into the layout which that kernel reads, once,
//! 4. **enqueue** it on caller-owned memory: no allocation, no hidden global.
//!
//! Nothing in this module depends on checkpoints or models.

mod affine;
mod arithmetic;
mod error;
mod quantized;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod rate;
mod transform;

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use affine::{Affine, RowParams};
pub use arithmetic::Arithmetic;
pub use error::Error;
#[cfg(feature = "runner")]
pub(crate) use error::check_length;
pub use quantized::QuantizedMatrix;
pub use transform::Transform;
