//! The oracle of duquant: every kernel and every step of the quantizer as scalar loops in `f64` and `i64`.
//!
//! A function has the name of the kernel that it checks (`gemm_w4a4` here, in `kernels::cpu`, in `shaders/`, in `cuda/`)
//! and takes plain row-major slices. Nothing here is fast, nothing is shared with the library that it checks, and nothing
//! runs on threads. One part deliberately is not `f64`: [`Affine`] works in `f32`, in the order of operations that the
//! numerics of the library fix, so that codes, scales and zero points can be compared bit for bit.
//!
//! Shapes that do not fit are a mistake of the test which calls, so functions assert them and say so under *Panics*.
//!
//! | Step | Here |
//! |---|---|
//! | affine quantizer (eq. 1) | [`Affine`], [`QuantizedRows`], [`QuantizedMatrix`] |
//! | storage of codes | [`pack_row`], [`unpack_row`] |
//! | smoothing | [`smoothing_scale`], [`fold_into_norm`], [`fold_into_rows`], [`fold_into_columns`] |
//! | rotation (eq. 2, 3, Algorithm 1) | [`base_matrix`], [`hadamard_matrix`], [`greedy_rotation`] |
//! | permutation (eq. 4) | [`zigzag_permutation`], [`block_mean_variance`], [`gather`], [`is_bijection`] |
//! | their chain (eq. 5) | [`Transform`], [`search_transform`] |
//! | prologue of a linear | [`transform_quantize`] |
//! | linear | [`gemm_w4a4`], [`gemm_float`] |
//! | queries, keys, values | [`rope`], [`hadamard_heads`], [`rope_hadamard_quantize`], [`attention`] |
//! | the rest of a decoder layer | [`rms_norm`], [`swiglu`], [`Model`] |

mod affine;
mod attention;
mod gemm_float;
mod gemm_w4a4;
mod hadamard_heads;
mod matrix;
mod model;
mod packing;
mod permutation;
mod quantized;
mod rms_norm;
mod rope;
mod rope_hadamard_quantize;
mod rotation;
mod smoothing;
mod swiglu;
mod transform;
mod transform_quantize;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod testing;

pub use affine::{Affine, RowParams};
pub use attention::{AttentionShape, attention, softmax};
pub use gemm_float::gemm_float;
pub use gemm_w4a4::{GemmOutput, gemm_w4a4};
pub use hadamard_heads::{hadamard_heads, head_hadamard_size};
pub use matrix::{identity, matmul, orthogonality_error, transpose};
pub use model::{Layer, Linear, LinearGroup, Model, Weight};
pub use packing::{pack_row, row_words, unpack_row};
pub use permutation::{
    block_mean_variance, block_means, column_abs_max, gather, inverse_permutation, is_bijection, zigzag_permutation,
};
pub use quantized::{QuantizedMatrix, QuantizedRows};
pub use rms_norm::rms_norm;
pub use rope::{RopeScaling, inverse_frequencies, rope};
pub use rope_hadamard_quantize::{HeadSettings, Heads, QkvHeads, rope_hadamard_quantize};
pub use rotation::{GreedyMode, GreedyRotation, base_matrix, greedy_rotation, hadamard_matrix, rotate_blocks};
pub use smoothing::{fold_into_columns, fold_into_norm, fold_into_rows, smoothing_scale};
pub use swiglu::swiglu;
pub use transform::{SearchSettings, Transform, search_transform};
pub use transform_quantize::transform_quantize;
