use super::apply::{gather, rotate};
use super::rotation::{SearchOptions, draw, hadamard, random_orthogonal, search};
use super::{PermutationKind, RotationKind, RotationPools, channel_max, check_finite, permute};
use crate::kernels::{Error, Transform, check_length};

/// What the transform of a group of linears is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransformOptions {
    /// Where rotations come from.
    pub rotation: RotationKind,
    /// What stands between two rotations. [`PermutationKind::None`] means one rotation whatever `permutations` says.
    pub permutation: PermutationKind,
    /// Permutations `P`: 0, 1 or 2, each with one rotation before it, and one rotation at the end.
    pub permutations: usize,
    /// Rotation block wanted; [`block_for`] lowers it to what divides the channels.
    pub block: usize,
    /// Steps `N` of the greedy search.
    pub steps: usize,
    /// Seed of every random draw.
    pub seed: u64,
}

impl Default for TransformOptions {
    /// The paper's: Algorithm 1 with 256 steps over blocks of 128, one zigzag.
    fn default() -> Self {
        Self {
            rotation: RotationKind::Paper,
            permutation: PermutationKind::Zigzag,
            permutations: 1,
            block: 128,
            steps: 256,
            seed: 0,
        }
    }
}

/// The largest power of two that is at most `wanted` and divides `k` channels.
///
/// # Errors
/// [`Error::Unsupported`] when that is below 4.
pub fn block_for(k: usize, wanted: usize) -> Result<usize, Error> {
    let block = match (k, wanted) {
        (0, _) | (_, 0) => 0,
        _ => 1 << k.trailing_zeros().min(wanted.ilog2()),
    };
    if block < 4 {
        return Err(Error::Unsupported {
            what: "rotation block",
            expected: format!("a power of two of at least 4 which is at most {wanted} and divides {k} channels"),
            got: block.to_string(),
        });
    }
    Ok(block)
}

/// Builds the transform `R_0 P_0 R_1 ..` for activations `x`, `[tokens, k]`, which the caller has smoothed already.
///
/// Each rotation and each permutation is found on `x` as transformed so far; beside `x` there is one copy of it at most
/// and the rows that a search looks at. `inverse_smooth` of the result is empty: the caller sets it where smoothing could
/// not be folded into the predecessor. Equal arguments give equal transforms, whatever the threads.
///
/// # Errors
/// [`Error::Length`] and [`Error::NotFinite`] for `x` (which must hold at least one token when something is searched),
/// [`Error::Unsupported`] for options out of range.
pub fn build(
    x: &[f32],
    tokens: usize,
    k: usize,
    options: &TransformOptions,
    pools: &RotationPools,
) -> Result<Transform, Error> {
    build_watched(x, tokens, k, options, pools, |_| ())
}

/// What [`build_watched`] is about to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildStep {
    /// A rotation, and what it makes of the activations.
    Rotation,
    /// The permutation behind it.
    Permutation,
}

/// As [`build`]; `on_step` hears what comes next, for whoever wants to know where the time goes.
///
/// # Errors
/// Those of [`build`].
pub fn build_watched(
    x: &[f32],
    tokens: usize,
    k: usize,
    options: &TransformOptions,
    pools: &RotationPools,
    mut on_step: impl FnMut(BuildStep),
) -> Result<Transform, Error> {
    check_length("x", tokens.saturating_mul(k), x.len())?;
    check_finite("x", x, k)?;
    if options.permutations > 2 {
        return unsupported("permutations", "0, 1 or 2", options.permutations);
    }
    if options.rotation == RotationKind::None {
        return Ok(Transform::identity(k));
    }
    let permutations = if options.permutation == PermutationKind::None { 0 } else { options.permutations };
    if tokens == 0 && (options.rotation.is_greedy() || permutations > 0) {
        return unsupported("tokens", "at least 1", 0);
    }
    if options.rotation.is_greedy() && options.steps == 0 {
        return unsupported("steps", "at least 1", 0);
    }
    let block = block_for(k, options.block)?;
    if block > MAX_BLOCK {
        return unsupported("rotation block", "at most 4096", block);
    }
    let mut transform =
        Transform { channels: k, block, hadamard: options.rotation == RotationKind::Hadamard, ..Transform::default() };
    let mut so_far: Vec<f32> = Vec::new();
    for i in 0..=permutations {
        on_step(BuildStep::Rotation);
        let current = if i == 0 { x } else { &so_far };
        let rotation = rotation(current, block, i, options, pools)?;
        if i < permutations {
            if i == 0 {
                so_far = x.to_vec();
            }
            rotate(&mut so_far, block, &rotation);
            on_step(BuildStep::Permutation);
            let outliers = channel_max(&so_far, tokens, k)?;
            let seed = options.seed.wrapping_add(i as u64);
            let permutation = permute(options.permutation, &outliers, block, seed)?;
            gather(&mut so_far, &permutation);
            transform.permutations.extend(permutation);
        }
        transform.rotations.extend(rotation);
    }
    Ok(transform)
}

/// Largest block: 64 MiB a rotation.
const MAX_BLOCK: usize = 4096;

/// Rotation `i` of the chain, for activations transformed so far.
fn rotation(
    x: &[f32],
    block: usize,
    i: usize,
    options: &TransformOptions,
    pools: &RotationPools,
) -> Result<Vec<f32>, Error> {
    let rotation = match options.rotation {
        RotationKind::Hadamard => hadamard(block)?,
        RotationKind::Random => random_orthogonal(block, &mut draw(options.seed, i as u64)),
        kind => {
            let pool = pools.get(kind, block, options.steps, options.seed)?;
            let wanted = SearchOptions { kind, steps: options.steps, rotation: i, max_rows: usize::MAX };
            search(x, &pool, &wanted)?.rotation
        }
    };
    Ok(rotation.into_iter().map(|v| v as f32).collect())
}

fn unsupported<T>(what: &'static str, expected: &str, got: usize) -> Result<T, Error> {
    Err(Error::Unsupported { what, expected: expected.into(), got: got.to_string() })
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
