use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::kernels::Error;
use crate::transform::check_finite;

/// How channels are dealt out over the blocks between two rotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PermutationKind {
    /// By descending outlier, back and forth over the blocks (Section 3.2).
    #[default]
    Zigzag,
    /// Uniformly at random.
    Random,
    /// Simulated annealing of eq. 4, from the zigzag.
    Anneal,
    /// No permutation, and so a single rotation.
    None,
}

impl PermutationKind {
    /// The name that the command line and the checkpoint use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Zigzag => "zigzag",
            Self::Random => "random",
            Self::Anneal => "anneal",
            Self::None => "none",
        }
    }
}

/// Proposed swaps of the annealing, for each channel.
const SWEEPS: usize = 200;

/// Finds the permutation for `outliers`, `O_j = max_t |x[t, j]|` of each channel, over blocks of `block` channels.
///
/// The result is a gather, `y[i] = x[permutation[i]]`, as in [`crate::kernels::Transform`]. `seed` matters to the random
/// and the annealed one. [`PermutationKind::None`] gives the identity.
///
/// # Errors
/// [`Error::Unsupported`] when `block` is 0 or does not divide the channels or there are 2^32 of them or more,
/// [`Error::NotFinite`] naming the channel as the row.
pub fn permute(kind: PermutationKind, outliers: &[f32], block: usize, seed: u64) -> Result<Vec<u32>, Error> {
    let k = outliers.len();
    check_block(k, block)?;
    check_finite("outliers", outliers, 1)?;
    let Ok(count) = u32::try_from(k) else {
        return Err(Error::Unsupported { what: "channels", expected: "less than 2^32".into(), got: k.to_string() });
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Ok(match kind {
        PermutationKind::Zigzag => zigzag(outliers, block),
        PermutationKind::Random => {
            let mut permutation: Vec<u32> = (0..count).collect();
            shuffle(&mut permutation, &mut rng);
            permutation
        }
        PermutationKind::Anneal => anneal(zigzag(outliers, block), outliers, block, &mut rng),
        PermutationKind::None => (0..count).collect(),
    })
}

/// Mean outlier of each block, `M_b` of eq. 4, with channel `permutation[i]` at place `i`; `[K / B]`.
///
/// # Errors
/// [`Error::Unsupported`] when `block` does not divide the channels or `permutation` names one that is not there,
/// [`Error::Length`] when it has another length than `outliers`.
pub fn block_means(outliers: &[f32], permutation: &[u32], block: usize) -> Result<Vec<f64>, Error> {
    crate::kernels::check_length("permutation", outliers.len(), permutation.len())?;
    check_block(outliers.len(), block)?;
    if let Some(&from) = permutation.iter().find(|&&from| from as usize >= outliers.len()) {
        return Err(Error::Unsupported {
            what: "permutation",
            expected: format!("channels below {}", outliers.len()),
            got: from.to_string(),
        });
    }
    Ok(means(outliers, permutation, block))
}

/// Variance over the blocks of their mean outlier (eq. 4): what the permutation is there to lower.
///
/// # Errors
/// Those of [`block_means`].
pub fn block_variance(outliers: &[f32], permutation: &[u32], block: usize) -> Result<f64, Error> {
    Ok(variance(&block_means(outliers, permutation, block)?))
}

fn means(outliers: &[f32], permutation: &[u32], block: usize) -> Vec<f64> {
    let mean = |block: &[u32]| block.iter().map(|&c| f64::from(outliers[c as usize])).sum::<f64>() / block.len() as f64;
    permutation.chunks_exact(block).map(mean).collect()
}

fn variance(means: &[f64]) -> f64 {
    let count = means.len().max(1) as f64;
    let mean = means.iter().sum::<f64>() / count;
    means.iter().map(|m| (m - mean) * (m - mean)).sum::<f64>() / count
}

fn check_block(k: usize, block: usize) -> Result<(), Error> {
    if block == 0 || !k.is_multiple_of(block) {
        return Err(Error::Unsupported {
            what: "block",
            expected: format!("a divisor of {k} channels"),
            got: block.to_string(),
        });
    }
    Ok(())
}

/// Deals the channels, from the largest outlier down, to blocks 0, 1, .. K/B-1, K/B-1, .. 0, 0, 1, ..
fn zigzag(outliers: &[f32], block: usize) -> Vec<u32> {
    let k = outliers.len();
    let blocks = k / block;
    let mut channels: Vec<u32> = (0..k as u32).collect();
    channels.sort_by(|&a, &b| outliers[b as usize].total_cmp(&outliers[a as usize]));
    let mut permutation = vec![0; k];
    for (at, &channel) in channels.iter().enumerate() {
        let (round, place) = (at / blocks, at % blocks);
        let to = if round.is_multiple_of(2) { place } else { blocks - 1 - place };
        permutation[to * block + round] = channel;
    }
    permutation
}

/// Fisher and Yates.
fn shuffle<R: Rng>(items: &mut [u32], rng: &mut R) {
    for last in (1..items.len()).rev() {
        items.swap(last, rng.random_range(0..=last));
    }
}

/// Swaps channels of different blocks, at random, keeping what lowers eq. 4 and, less and less often, what raises it.
/// Gives the best permutation seen, which is the first one or better.
fn anneal<R: Rng>(mut permutation: Vec<u32>, outliers: &[f32], block: usize, rng: &mut R) -> Vec<u32> {
    let k = permutation.len();
    let blocks = k / block;
    if blocks < 2 {
        return permutation;
    }
    // The mean of all means is fixed, so their sum of squares is all that a swap changes.
    let mut mean = means(outliers, &permutation, block);
    let (mut best, mut energy, mut lowest) = (permutation.clone(), 0.0f64, 0.0f64);
    let iterations = SWEEPS * k;
    let mut temperature = variance(&mean) * blocks as f64;
    let cooling = 1e-6f64.powf(1.0 / iterations as f64);
    for _ in 0..iterations {
        temperature *= cooling;
        let (i, j) = (rng.random_range(0..k), rng.random_range(0..k));
        let (from, to) = (i / block, j / block);
        let chance: f64 = rng.random();
        if from == to {
            continue;
        }
        let (a, b) = (outliers[permutation[i] as usize], outliers[permutation[j] as usize]);
        let shift = (f64::from(b) - f64::from(a)) / block as f64;
        let change = 2.0 * shift * (mean[from] - mean[to] + shift);
        if change <= 0.0 || (temperature > 0.0 && chance < (-change / temperature).exp()) {
            permutation.swap(i, j);
            mean[from] += shift;
            mean[to] -= shift;
            energy += change;
            if energy < lowest {
                lowest = energy;
                best.copy_from_slice(&permutation);
            }
        }
    }
    // Running sums round: trust them for the walk, not for the verdict.
    let value = |p: &[u32]| variance(&means(outliers, p, block));
    let start = zigzag(outliers, block);
    if value(&best) <= value(&start) { best } else { start }
}
