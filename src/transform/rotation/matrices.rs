use faer::Mat;
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::kernels::Error;

/// The base matrix of the greedy search, row-major `[n, n]`: orthogonal with a uniform first row, `1 / sqrt(n)`.
///
/// A product of `n - 1` Givens rotations which fold one channel after the other into a running mean, with rows 0 and
/// `n - 1` and columns 0 and `n - 1` swapped at the end, as in the official code.
#[must_use]
pub fn base_matrix(n: usize) -> Vec<f64> {
    let mut r = identity(n);
    for i in 0..n.saturating_sub(1) {
        let cosine = (1.0 / (i + 2) as f64).sqrt();
        let sine = ((i + 1) as f64 / (i + 2) as f64).sqrt();
        for column in 0..n {
            let (upper, lower) = (r[i * n + column], r[(i + 1) * n + column]);
            r[i * n + column] = cosine * upper - sine * lower;
            r[(i + 1) * n + column] = sine * upper + cosine * lower;
        }
    }
    if n > 1 {
        for column in 0..n {
            r.swap(column, (n - 1) * n + column);
        }
        swap_columns(&mut r, n, 0, n - 1);
    }
    r
}

/// The normalised Sylvester Hadamard, row-major `[n, n]`: entries `(-1)^popcount(i & j) / sqrt(n)`.
///
/// # Errors
/// [`Error::Unsupported`] unless `n` is a power of two.
pub fn hadamard(n: usize) -> Result<Vec<f64>, Error> {
    if !n.is_power_of_two() {
        return Err(Error::Unsupported {
            what: "hadamard size",
            expected: "a power of two".into(),
            got: n.to_string(),
        });
    }
    let entry = 1.0 / (n as f64).sqrt();
    let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { entry } else { -entry };
    Ok((0..n * n).map(|at| sign(at / n, at % n)).collect())
}

/// A Haar-random orthogonal matrix, row-major `[n, n]`: the Q factor of a Gaussian matrix, its columns signed so that R
/// has a positive diagonal (without which Q would not be uniform).
#[must_use]
pub fn random_orthogonal<R: Rng + ?Sized>(n: usize, rng: &mut R) -> Vec<f64> {
    // Drawn in row-major order before it is handed to the QR, so that the draw does not depend on how faer fills.
    let normal: Vec<f64> = (0..n * n).map(|_| StandardNormal.sample(rng)).collect();
    let qr = Mat::from_fn(n, n, |i, j| normal[i * n + j]).qr();
    let (q, r) = (qr.compute_Q(), qr.R());
    let sign = |j: usize| if r[(j, j)] < 0.0 { -1.0 } else { 1.0 };
    (0..n * n).map(|at| q[(at / n, at % n)] * sign(at % n)).collect()
}

/// The identity, row-major `[n, n]`.
pub(super) fn identity(n: usize) -> Vec<f64> {
    let mut r = vec![0.0; n * n];
    r.iter_mut().step_by(n + 1).for_each(|d| *d = 1.0);
    r
}

/// Swaps two columns of a row-major matrix of `n` columns.
pub(super) fn swap_columns(r: &mut [f64], n: usize, a: usize, b: usize) {
    if a != b {
        r.chunks_exact_mut(n).for_each(|row| row.swap(a, b));
    }
}

/// `max |R R^T - I|` of a row-major `[n, n]` matrix.
#[cfg(test)]
pub(crate) fn orthogonality_error(r: &[f64], n: usize) -> f64 {
    let mut worst = 0.0f64;
    for i in 0..n {
        for j in 0..n {
            let dot: f64 = (0..n).map(|k| r[i * n + k] * r[j * n + k]).sum();
            worst = worst.max((dot - f64::from(u8::from(i == j))).abs());
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn the_base_matrix_of_four_is_the_official_one() {
        let half = std::f64::consts::FRAC_1_SQRT_2;
        let golden = [
            [0.5, 0.5, 0.5, 0.5],
            [0.0, 0.4082, -0.8165, 0.4082],
            [-0.866, 0.2887, 0.2887, 0.2887],
            [0.0, -half, 0.0, half],
        ];
        for (i, (got, want)) in base_matrix(4).iter().zip(golden.as_flattened()).enumerate() {
            assert!((got - want).abs() < 1e-4, "entry {i}: {got} for {want}");
        }
    }

    #[test]
    fn base_matrices_are_orthogonal_with_a_uniform_first_row() {
        for n in [1, 2, 3, 7, 16, 64, 128] {
            let r = base_matrix(n);
            assert!(orthogonality_error(&r, n) < 1e-13, "{n}");
            assert!(r[..n].iter().all(|v| (v - 1.0 / (n as f64).sqrt()).abs() < 1e-13), "{n}");
        }
        assert!(base_matrix(0).is_empty());
    }

    #[test]
    fn hadamards_are_orthogonal_and_symmetric_and_refuse_other_sizes() {
        for n in [1, 2, 4, 64] {
            let h = hadamard(n).unwrap();
            assert!(orthogonality_error(&h, n) < 1e-13);
            assert!((0..n * n).all(|at| h[at] == h[at % n * n + at / n]));
        }
        assert!(hadamard(12).is_err() && hadamard(0).is_err());
    }

    #[test]
    fn random_matrices_are_orthogonal_reproducible_and_uniform() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for n in [1, 2, 5, 63] {
            assert!(orthogonality_error(&random_orthogonal(n, &mut rng), n) < 1e-12);
        }
        let draw = |seed| random_orthogonal(8, &mut ChaCha8Rng::seed_from_u64(seed));
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        // Haar: entries have mean 0; without the sign correction Householder QR gives a biased first column.
        let mean: f64 = (0..2000).map(|s| draw(s)[0]).sum::<f64>() / 2000.0;
        assert!(mean.abs() < 0.04, "mean of the first entry {mean}, its deviation is 0.008");
    }
}
