use rayon::prelude::*;

use super::matmul::{Right, multiply};
use crate::kernels::{Error, Transform, check_length};

/// Tokens or output channels of one unit of parallel work.
const TILE: usize = 64;

/// Transforms activations in place, `x -> x S^-1 R_0 P_0 R_1 ..`: `x` is `[tokens, K]`.
///
/// In `f32`, on all threads, and a token's result does not depend on the others or on the threads.
///
/// # Errors
/// [`Error::Length`] when `x` has another size, and those of [`Transform::validate`].
pub fn apply(transform: &Transform, x: &mut [f32], tokens: usize) -> Result<(), Error> {
    check("x", transform, x, tokens)?;
    for_tiles(transform, x, |tile, scratch| {
        if let Some(inverse) = &transform.inverse_smooth {
            scale(tile, inverse);
        }
        forward(transform, tile, scratch);
    });
    Ok(())
}

/// Transforms a weight in place, `W -> W S R_0 P_0 R_1 .. = W G^-T`: `w` is `[n, K]`.
///
/// Where activations are divided by the smoothing scale, weights are multiplied by it, so that
/// `(X G) (W G^-T)^T = X W^T`.
///
/// # Errors
/// [`Error::Length`] when `w` has another size, [`Error::Unsupported`] when a smoothing factor is 0, and those of
/// [`Transform::validate`].
pub fn transform_weight(transform: &Transform, w: &mut [f32], n: usize) -> Result<(), Error> {
    check("w", transform, w, n)?;
    let smooth = smooth(transform)?;
    for_tiles(transform, w, |tile, scratch| {
        if let Some(smooth) = &smooth {
            scale(tile, smooth);
        }
        forward(transform, tile, scratch);
    });
    Ok(())
}

/// Takes back what [`transform_weight`] did, `W~ -> W`, up to rounding: `w` is `[n, K]`.
///
/// # Errors
/// Those of [`transform_weight`].
pub fn undo_weight(transform: &Transform, w: &mut [f32], n: usize) -> Result<(), Error> {
    check("w", transform, w, n)?;
    smooth(transform)?;
    for_tiles(transform, w, |tile, scratch| {
        backward(transform, tile, scratch);
        if let Some(inverse) = &transform.inverse_smooth {
            scale(tile, inverse);
        }
    });
    Ok(())
}

/// Rotates every block of `block` channels of `x`, a multiple of it long, by `rotation`, `[B, B]`.
pub(super) fn rotate(x: &mut [f32], block: usize, rotation: &[f32]) {
    x.par_chunks_mut(TILE * block).for_each_init(Vec::new, |scratch, tile| {
        rotate_tile(tile, block, rotation, Right::Plain, scratch);
    });
}

/// Gathers the channels of every token of `x`, `[tokens, K]`: `y[i] = x[permutation[i]]`.
pub(super) fn gather(x: &mut [f32], permutation: &[u32]) {
    let k = permutation.len();
    if k == 0 {
        return;
    }
    x.par_chunks_mut(TILE * k).for_each_init(Vec::new, |scratch, tile| gather_tile(tile, permutation, scratch));
}

fn check(operand: &'static str, transform: &Transform, x: &[f32], rows: usize) -> Result<(), Error> {
    check_length(operand, rows.saturating_mul(transform.channels), x.len())?;
    transform.validate()
}

/// The smoothing scale, the reciprocals of what the transform holds.
fn smooth(transform: &Transform) -> Result<Option<Vec<f32>>, Error> {
    let Some(inverse) = &transform.inverse_smooth else { return Ok(None) };
    if let Some(at) = inverse.iter().position(|&v| v == 0.0 || !(1.0 / v).is_finite()) {
        return Err(Error::Unsupported {
            what: "inverse_smooth",
            expected: "factors with a finite reciprocal".into(),
            got: format!("{} for channel {at}", inverse[at]),
        });
    }
    Ok(Some(inverse.iter().map(|&v| 1.0 / v).collect()))
}

fn for_tiles(transform: &Transform, x: &mut [f32], work: impl Fn(&mut [f32], &mut Vec<f32>) + Send + Sync) {
    if transform.channels > 0 {
        x.par_chunks_mut(TILE * transform.channels).for_each_init(Vec::new, |scratch, tile| work(tile, scratch));
    }
}

fn forward(transform: &Transform, tile: &mut [f32], scratch: &mut Vec<f32>) {
    for i in 0..transform.rotation_count() {
        if i > 0 {
            gather_tile(tile, transform.permutation(i - 1), scratch);
        }
        rotate_tile(tile, transform.block, transform.rotation(i), Right::Plain, scratch);
    }
}

fn backward(transform: &Transform, tile: &mut [f32], scratch: &mut Vec<f32>) {
    for i in (0..transform.rotation_count()).rev() {
        rotate_tile(tile, transform.block, transform.rotation(i), Right::Transposed, scratch);
        if i > 0 {
            scatter_tile(tile, transform.permutation(i - 1), scratch);
        }
    }
}

fn scale(tile: &mut [f32], factors: &[f32]) {
    for token in tile.chunks_exact_mut(factors.len()) {
        token.iter_mut().zip(factors).for_each(|(v, &f)| *v *= f);
    }
}

fn rotate_tile(tile: &mut [f32], block: usize, rotation: &[f32], right: Right, scratch: &mut Vec<f32>) {
    scratch.clear();
    scratch.extend_from_slice(tile);
    multiply(scratch, rotation, right, (tile.len() / block, block, block), 1.0, tile);
}

fn gather_tile(tile: &mut [f32], permutation: &[u32], scratch: &mut Vec<f32>) {
    scratch.clear();
    scratch.extend_from_slice(tile);
    let k = permutation.len();
    for (to, from) in tile.chunks_exact_mut(k).zip(scratch.chunks_exact(k)) {
        to.iter_mut().zip(permutation).for_each(|(v, &p)| *v = from[p as usize]);
    }
}

fn scatter_tile(tile: &mut [f32], permutation: &[u32], scratch: &mut Vec<f32>) {
    scratch.clear();
    scratch.extend_from_slice(tile);
    let k = permutation.len();
    for (to, from) in tile.chunks_exact_mut(k).zip(scratch.chunks_exact(k)) {
        from.iter().zip(permutation).for_each(|(&v, &p)| to[p as usize] = v);
    }
}
