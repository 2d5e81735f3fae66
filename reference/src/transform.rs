//! The transform of a linear's input channels, `G = S^-1 R_0 P_0 R_1 .. R_P` (eq. 5), and its search.

use crate::{
    GreedyMode, column_abs_max, gather, greedy_rotation, inverse_permutation, rotate_blocks, transpose,
    zigzag_permutation,
};

/// `x -> x S^-1 R_0 P_0 R_1 P_1 .. R_P`, in `f64`.
///
/// Each rotation is one `[B, B]` orthogonal matrix that every block of `B` consecutive channels shares; each permutation
/// is a gather, `y[j] = x[permutation[j]]`. There is one rotation more than permutations, or none of either.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Transform {
    /// Input channels `K`.
    pub channels: usize,
    /// Rotation block `B`, which divides `channels`; 0 when there is no rotation.
    pub block: usize,
    /// `P + 1` rotations, each row-major `[B, B]`, or none.
    pub rotations: Vec<Vec<f64>>,
    /// `P` permutations, each `[K]`.
    pub permutations: Vec<Vec<usize>>,
    /// `1 / s_j`, applied before everything else, where smoothing is not folded into the predecessor: `[K]`.
    pub inverse_smooth: Option<Vec<f64>>,
}

impl Transform {
    /// The transform that changes nothing.
    #[must_use]
    pub fn identity(channels: usize) -> Self {
        Self { channels, ..Self::default() }
    }

    /// The same transform from flat `f32` and `u32` data: `rotations` `[P + 1, B, B]`, `permutations` `[P, K]`.
    ///
    /// # Panics
    /// When lengths or entries do not fit, see [`Transform::check`].
    #[must_use]
    pub fn from_flat(
        channels: usize,
        block: usize,
        rotations: &[f32],
        permutations: &[u32],
        inverse_smooth: Option<&[f32]>,
    ) -> Self {
        let widen = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let size = (block * block).max(1);
        assert_eq!(rotations.len() % size, 0, "rotations are [P + 1, B, B]");
        assert_eq!(permutations.len() % channels.max(1), 0, "permutations are [P, K]");
        let transform = Self {
            channels,
            block,
            rotations: rotations.chunks(size).map(widen).collect(),
            permutations: permutations
                .chunks(channels.max(1))
                .map(|one| one.iter().map(|&from| from as usize).collect())
                .collect(),
            inverse_smooth: inverse_smooth.map(widen),
        };
        transform.check();
        transform
    }

    /// Asserts that shapes fit and permutations are bijections.
    ///
    /// # Panics
    /// When they do not.
    pub fn check(&self) {
        let (k, b) = (self.channels, self.block);
        if self.rotations.is_empty() {
            assert!(self.permutations.is_empty(), "permutations stand between rotations");
        } else {
            assert!(b > 0 && k.is_multiple_of(b), "block {b} must divide {k} channels");
            assert_eq!(self.permutations.len() + 1, self.rotations.len(), "one rotation more than permutations");
        }
        assert!(self.rotations.iter().all(|r| r.len() == b * b), "rotations are [B, B]");
        assert!(self.permutations.iter().all(|p| p.len() == k), "permutations are [K]");
        assert!(self.permutations.iter().all(|p| crate::is_bijection(p)), "permutations are bijections");
        if let Some(inverse) = &self.inverse_smooth {
            assert_eq!(inverse.len(), k, "one smoothing factor a channel");
        }
    }

    /// `x G` for `x` `[T, K]`.
    ///
    /// # Panics
    /// When shapes do not fit.
    #[must_use]
    pub fn apply(&self, x: &[f64]) -> Vec<f64> {
        self.check();
        match &self.inverse_smooth {
            Some(inverse) => self.rotate_and_permute(&scaled(x, inverse, |x, factor| x * factor)),
            None => self.rotate_and_permute(x),
        }
    }

    /// `W G^-T = W S R_0 P_0 R_1 ..` for `W` `[N, K]`: what the weight becomes so that `(x G) (W G^-T)^T = x W^T`.
    ///
    /// # Panics
    /// When shapes do not fit.
    #[must_use]
    pub fn apply_to_weight(&self, weight: &[f64]) -> Vec<f64> {
        self.check();
        match &self.inverse_smooth {
            Some(inverse) => self.rotate_and_permute(&scaled(weight, inverse, |w, factor| w / factor)),
            None => self.rotate_and_permute(weight),
        }
    }

    /// The weight `[N, K]` that [`Transform::apply_to_weight`] came from.
    ///
    /// # Panics
    /// When shapes do not fit.
    #[must_use]
    pub fn undo_on_weight(&self, weight: &[f64]) -> Vec<f64> {
        self.check();
        let b = self.block;
        let mut w = weight.to_vec();
        for i in (0..self.rotations.len()).rev() {
            w = rotate_blocks(&w, &transpose(&self.rotations[i], b, b), b);
            if i > 0 {
                w = gather(&w, &inverse_permutation(&self.permutations[i - 1]));
            }
        }
        match &self.inverse_smooth {
            Some(inverse) => scaled(&w, inverse, |w, factor| w * factor),
            None => w,
        }
    }

    /// `G` as a dense matrix `[K, K]`.
    #[must_use]
    pub fn matrix(&self) -> Vec<f64> {
        self.apply(&crate::identity(self.channels))
    }

    fn rotate_and_permute(&self, x: &[f64]) -> Vec<f64> {
        assert_eq!(x.len() % self.channels.max(1), 0, "rows of {} channels", self.channels);
        let mut y = x.to_vec();
        for (i, rotation) in self.rotations.iter().enumerate() {
            y = rotate_blocks(&y, rotation, self.block);
            if let Some(permutation) = self.permutations.get(i) {
                y = gather(&y, permutation);
            }
        }
        y
    }
}

fn scaled(x: &[f64], factors: &[f64], combine: fn(f64, f64) -> f64) -> Vec<f64> {
    assert_eq!(x.len() % factors.len().max(1), 0, "rows of {} channels", factors.len());
    x.iter().enumerate().map(|(at, &x)| combine(x, factors[at % factors.len()])).collect()
}

/// Settings of [`search_transform`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SearchSettings {
    /// Rotation block `B`, which divides the channels.
    pub block: usize,
    /// Greedy steps of each rotation.
    pub steps: usize,
    /// Permutations `P`, with a rotation before each and one after the last.
    pub permutations: usize,
    /// Variant of the greedy search.
    pub mode: GreedyMode,
}

/// Searches `R_0 P_0 R_1 .. R_P` for activations `x` `[tokens, K]` that are already smoothed: a greedy rotation, the
/// zigzag permutation of what it gives, and so on, each on the outcome of those before. `draw(i, step)` supplies the `Q'`
/// of rotation `i` as in [`greedy_rotation`].
///
/// # Panics
/// When `x` is no whole number of rows, the block does not divide `channels` or a draw has another shape.
#[must_use]
pub fn search_transform(
    x: &[f64],
    channels: usize,
    settings: &SearchSettings,
    draw: &mut dyn FnMut(usize, usize) -> Vec<f64>,
) -> Transform {
    let b = settings.block;
    assert!(b > 0 && channels.is_multiple_of(b), "block {b} must divide {channels} channels");
    let mut y = x.to_vec();
    let mut transform = Transform { channels, block: b, ..Transform::default() };
    for i in 0..=settings.permutations {
        let rows = y.len() / b;
        let found = greedy_rotation(&y, rows, b, settings.steps, settings.mode, &mut |step| draw(i, step));
        y = rotate_blocks(&y, &found.rotation, b);
        transform.rotations.push(found.rotation);
        if i < settings.permutations {
            let permutation = zigzag_permutation(&column_abs_max(&y, channels), b);
            y = gather(&y, &permutation);
            transform.permutations.push(permutation);
        }
    }
    transform
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, abs_max, close};
    use crate::{gemm_float, identity, matmul, orthogonality_error};

    fn sample(random: &mut Random, channels: usize, block: usize, permutations: usize) -> Transform {
        Transform {
            channels,
            block,
            rotations: (0..=permutations).map(|_| random.orthogonal(block)).collect(),
            permutations: (0..permutations).map(|_| random.permutation(channels)).collect(),
            inverse_smooth: Some((0..channels).map(|_| 0.05 + random.uniform()).collect()),
        }
    }

    #[test]
    fn a_chain_by_hand() {
        // Block 2, a quarter turn, a swap of the middle channels, another quarter turn: (a, b) -> (b, -a).
        let turn = vec![0.0, -1.0, 1.0, 0.0];
        let transform = Transform {
            channels: 4,
            block: 2,
            rotations: vec![turn.clone(), turn],
            permutations: vec![vec![0, 2, 1, 3]],
            inverse_smooth: Some(vec![1.0, 2.0, 1.0, 0.5]),
        };
        // (1, 2, 3, 4) / S = (1, 4, 3, 2) -> (4, -1, 2, -3) -> (4, 2, -1, -3) -> (2, -4, -3, 1)
        close(&transform.apply(&[1.0, 2.0, 3.0, 4.0]), &[2.0, -4.0, -3.0, 1.0], 1e-15);
        // Weight: (1, 2, 3, 4) S = (1, 1, 3, 8) -> (1, -1, 8, -3) -> (1, 8, -1, -3) -> (8, -1, -3, 1)
        let weight = transform.apply_to_weight(&[1.0, 2.0, 3.0, 4.0]);
        close(&weight, &[8.0, -1.0, -3.0, 1.0], 1e-15);
        close(&transform.undo_on_weight(&weight), &[1.0, 2.0, 3.0, 4.0], 1e-15);
    }

    #[test]
    fn the_weight_gets_the_inverse_transpose() {
        let mut random = Random::new(21);
        for permutations in 0..3 {
            let transform = sample(&mut random, 24, 8, permutations);
            let inverse_transpose = transform.apply_to_weight(&identity(24));
            let product = matmul(&transform.matrix(), &transpose(&inverse_transpose, 24, 24), 24, 24, 24);
            close(&product, &identity(24), 1e-13);
        }
    }

    #[test]
    fn identity_changes_nothing() {
        let x = [1.0, -2.0, 3.0, 4.0, 5.0, -6.0];
        let transform = Transform::identity(3);
        assert_eq!(transform.apply(&x), x);
        assert_eq!(transform.apply_to_weight(&x), x);
        assert_eq!(transform.matrix(), identity(3));
    }

    #[test]
    fn flat_data_is_the_same_transform() {
        let mut random = Random::new(22);
        let narrow = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        let transform = sample(&mut random, 12, 4, 2);
        let permutations: Vec<u32> = transform.permutations.concat().iter().map(|&from| from as u32).collect();
        let smooth = transform.inverse_smooth.as_deref().map(narrow);
        let flat =
            Transform::from_flat(12, 4, &narrow(&transform.rotations.concat()), &permutations, smooth.as_deref());
        let x = random.normals(36);
        close(&flat.apply(&x), &transform.apply(&x), 1e-5);
        assert_eq!(Transform::from_flat(5, 0, &[], &[], None), Transform::identity(5));
    }

    #[test]
    #[should_panic(expected = "bijections")]
    fn a_broken_permutation_is_refused() {
        let _ = Transform::from_flat(2, 1, &[1.0, 1.0], &[1, 1], None);
    }

    #[test]
    fn search_flattens_planted_outliers_and_keeps_the_output() {
        let (tokens, channels, n) = (24, 64, 10);
        for mode in [GreedyMode::Paper, GreedyMode::Official, GreedyMode::Left] {
            for permutations in 0..3 {
                let mut random = Random::new(30 + permutations as u64);
                let x = random.activations(tokens, channels);
                let weight = random.normals(n * channels);
                let settings = SearchSettings { block: 16, steps: 16, permutations, mode };
                let mut asked = vec![0; permutations + 1];
                let transform = search_transform(&x, channels, &settings, &mut |i, _| {
                    asked[i] += 1;
                    random.orthogonal(15)
                });
                assert_eq!(asked, vec![if mode == GreedyMode::Official { 1 } else { 16 }; permutations + 1]);
                assert!(transform.rotations.iter().all(|r| orthogonality_error(r, 16) < 1e-10));
                let y = transform.apply(&x);
                assert!(abs_max(&y) < 0.7 * abs_max(&x), "{mode:?}: {} of {}", abs_max(&y), abs_max(&x));
                let transformed = gemm_float(&y, &transform.apply_to_weight(&weight), None, tokens, n, channels);
                close(&transformed, &gemm_float(&x, &weight, None, tokens, n, channels), 1e-12);
            }
        }
    }
}
