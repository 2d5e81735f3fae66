//! The transform of a linear's input channels, `G = S^-1 R_0 P_0 R_1 ..` (eq. 5): how smoothing, rotations and
//! permutations are found from activations, and how they are applied to activations and to weights.
//!
//! - [`smoothing_scale`] gives `S` from the largest magnitudes of activations and weights.
//! - [`search`] finds a rotation greedily (Algorithm 1, or what the official code does); [`base_matrix`], [`hadamard`] and
//!   [`random_orthogonal`] give the fixed ones.
//! - [`permute`] balances the channels' outliers over the blocks.
//! - [`build`] chains them into a [`crate::kernels::Transform`], [`apply`] and [`transform_weight`] use it.

mod apply;
mod chain;
mod matmul;
mod permutation;
mod rotation;
mod smoothing;

pub use apply::{apply, transform_weight, undo_weight};
pub use chain::{BuildStep, TransformOptions, block_for, build, build_watched};
pub use permutation::{PermutationKind, block_means, block_variance, permute};
pub use rotation::{
    RotationKind, RotationPool, RotationPools, Search, SearchOptions, base_matrix, hadamard, random_orthogonal, search,
};
pub use smoothing::{channel_max, share_across_groups, smoothing_scale};

use crate::kernels::Error;

/// Magnitudes above this are refused: sums of a few thousand of them would leave `f32`.
const LARGEST: f32 = 1e30;

/// `Ok` when every one of `x`, rows of `width`, is finite and at most [`LARGEST`] in magnitude.
fn check_finite(operand: &'static str, x: &[f32], width: usize) -> Result<(), Error> {
    match x.iter().position(|v| v.is_nan() || v.abs() > LARGEST) {
        Some(at) => Err(Error::NotFinite { operand, row: at / width.max(1) }),
        None => Ok(()),
    }
}
