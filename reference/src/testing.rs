//! What the tests share: numbers that look random, and comparison of slices.

use crate::{identity, transpose};

/// A small generator (splitmix64), so that tests are the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// A standard normal number (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub(crate) fn normals(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.normal()).collect()
    }

    /// An orthogonal matrix of size `n`: normal rows, each made orthogonal to those before, twice.
    pub(crate) fn orthogonal(&mut self, n: usize) -> Vec<f64> {
        let mut q = self.normals(n * n);
        for row in 0..n {
            for _ in 0..2 {
                for before in 0..row {
                    let dot: f64 = (0..n).map(|j| q[row * n + j] * q[before * n + j]).sum();
                    for j in 0..n {
                        q[row * n + j] -= dot * q[before * n + j];
                    }
                }
            }
            let norm = (0..n).map(|j| q[row * n + j] * q[row * n + j]).sum::<f64>().sqrt();
            for j in 0..n {
                q[row * n + j] /= norm;
            }
        }
        q
    }

    /// A permutation of `n` (Fisher and Yates).
    pub(crate) fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut permutation: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            permutation.swap(i, self.below(i + 1));
        }
        permutation
    }

    /// Activations `[tokens, channels]` with a channel that stands out everywhere and one massive value.
    pub(crate) fn activations(&mut self, tokens: usize, channels: usize) -> Vec<f64> {
        let mut x = self.normals(tokens * channels);
        let (normal, massive) = (self.below(channels), self.below(tokens * channels));
        for t in 0..tokens {
            x[t * channels + normal] *= 20.0;
        }
        x[massive] = 500.0;
        x
    }
}

/// Asserts that both slices agree to `tolerance`, relative to the largest number in them (or 1).
pub(crate) fn close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(1.0_f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * largest, "element {i}: got {a}, expected {b}");
    }
}

/// `max |x|`.
pub(crate) fn abs_max(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, x| m.max(x.abs()))
}

#[test]
fn orthogonal_is_orthogonal() {
    let q = Random::new(1).orthogonal(9);
    close(&crate::matmul(&transpose(&q, 9, 9), &q, 9, 9, 9), &identity(9), 1e-13);
}
