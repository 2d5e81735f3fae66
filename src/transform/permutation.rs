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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [PermutationKind; 4] =
        [PermutationKind::Zigzag, PermutationKind::Random, PermutationKind::Anneal, PermutationKind::None];

    fn is_bijection(permutation: &[u32]) -> bool {
        let mut sorted = permutation.to_vec();
        sorted.sort_unstable();
        sorted.iter().enumerate().all(|(i, &c)| i == c as usize)
    }

    #[test]
    fn the_zigzag_goes_back_and_forth_with_two_at_each_end() {
        // Descending by outlier: channels 3 7 0 4 1 8 5 2 6 10 9 11; three blocks of four.
        let outliers = [9.0, 7.0, 4.0, 12.0, 8.0, 5.0, 3.0, 11.0, 6.0, 1.0, 2.0, 0.0];
        let zigzag = permute(PermutationKind::Zigzag, &outliers, 4, 0).unwrap();
        assert_eq!(zigzag, [3, 8, 5, 11, 7, 1, 2, 9, 0, 4, 6, 10]);
    }

    #[test]
    fn ties_keep_the_lower_channel_first() {
        let zigzag = permute(PermutationKind::Zigzag, &[1.0; 8], 2, 0).unwrap();
        assert_eq!(zigzag, [0, 7, 1, 6, 2, 5, 3, 4]);
    }

    #[test]
    fn annealing_beats_the_zigzag_which_beats_chance() {
        // A long tail, as activations have it.
        let outliers: Vec<f32> = (0..256).map(|i| 20.0 / (2.0 + (i * 37 % 256) as f32).sqrt()).collect();
        let value = |kind| block_variance(&outliers, &permute(kind, &outliers, 16, 5).unwrap(), 16).unwrap();
        let [zigzag, random, anneal, none] = ALL.map(value);
        assert!(anneal < 0.5 * zigzag && zigzag < random && zigzag < none, "{anneal} {zigzag} {random} {none}");
    }

    #[test]
    fn seeds_are_reproducible() {
        let outliers: Vec<f32> = (0..64).map(|i| ((i * 29 % 64) as f32).powf(1.5)).collect();
        for kind in [PermutationKind::Random, PermutationKind::Anneal] {
            let draw = |seed| permute(kind, &outliers, 8, seed).unwrap();
            assert_eq!(draw(1), draw(1));
            assert_ne!(draw(1), draw(2));
        }
    }

    #[test]
    fn what_cannot_be_permuted_is_refused() {
        for kind in ALL {
            assert!(matches!(permute(kind, &[1.0; 6], 4, 0), Err(Error::Unsupported { what: "block", .. })));
            assert!(matches!(permute(kind, &[1.0; 6], 0, 0), Err(Error::Unsupported { .. })));
            assert!(matches!(permute(kind, &[1.0, f32::NAN], 2, 0), Err(Error::NotFinite { row: 1, .. })));
            assert!(permute(kind, &[], 4, 0).unwrap().is_empty());
        }
        assert!(block_variance(&[1.0; 4], &[0, 1, 2], 2).is_err());
        assert!(block_variance(&[1.0; 4], &[0, 1, 2, 4], 2).is_err());
        assert!(block_variance(&[1.0; 4], &[0, 1, 2, 3], 3).is_err());
    }

    proptest! {
        #[test]
        fn every_permutation_is_a_bijection(
            log_block in 0u32..5,
            blocks in 1usize..9,
            seed in any::<u64>(),
            values in prop::collection::vec(0.0f32..100.0, 256),
        ) {
            let block = 1 << log_block;
            let outliers = &values[..block * blocks];
            for kind in ALL {
                let permutation = permute(kind, outliers, block, seed).unwrap();
                prop_assert!(is_bijection(&permutation), "{:?}", kind);
            }
            let value = |kind| block_variance(outliers, &permute(kind, outliers, block, seed).unwrap(), block).unwrap();
            prop_assert!(value(PermutationKind::Anneal) <= value(PermutationKind::Zigzag) * (1.0 + 1e-9));
        }

        /// Theorem 2: after the zigzag, every block's mean is at most
        /// `O(1) + (2^n K - 1) (2^(n-1) - 1) / 2^n delta`, with `delta` the largest step between sorted outliers.
        /// (O(1) alone bounds a mean too.) Beyond the theorem: means differ by `delta (2 K - 1) / 2` at most, since
        /// the two channels that a block gets in two rounds make up for each other but for the gaps' unevenness.
        #[test]
        fn zigzag_means_share_the_bound_of_theorem_2(
            log_block in 1u32..6,
            blocks in 1usize..9,
            values in prop::collection::vec(0.0f32..100.0, 256),
        ) {
            let block = 1 << log_block;
            let outliers = &values[..block * blocks];
            let permutation = permute(PermutationKind::Zigzag, outliers, block, 0).unwrap();
            let means = block_means(outliers, &permutation, block).unwrap();
            let mut sorted: Vec<f64> = outliers.iter().map(|&v| f64::from(v)).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let delta = sorted.windows(2).fold(0.0f64, |m, w| m.max(w[0] - w[1]));
            let (n, k) = (block as f64, blocks as f64);
            let bound = sorted[0] + (n * k - 1.0) * (n / 2.0 - 1.0) / n * delta;
            prop_assert!(means.iter().all(|&m| m <= bound + 1e-9 && m <= sorted[0] + 1e-9));
            // Two rounds of a block span at most 2 K - 1 gaps, so its mean is within that of any other's.
            let spread = means.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v))
                - means.iter().fold(f64::INFINITY, |m, &v| m.min(v));
            prop_assert!(spread <= delta * (2.0 * k - 1.0) / 2.0 + 1e-9, "spread {} delta {}", spread, delta);
        }
    }
}
