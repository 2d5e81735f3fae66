//! Rounding with error compensation (GPTQ, arXiv 2210.17323), against the activations that the kernels will really see.
//!
//! Round-to-nearest minimises the error of each weight; what counts is the error of the output, `|X (W - Q)^T|^2` with `X`
//! the transformed activations behind the quantizer. With `H = X^T X + d I` and `H^-1 = U^T U`, `U` upper triangular:
//! quantize column `j` of `W`, and subtract `(w_j - q_j) U[j, l] / U[j, j]` from every later column `l`.

use super::Error;
use crate::kernels::{Affine, QuantizedMatrix};
use faer::linalg::solvers::DenseSolveCore;
use faer::{Mat, Side};
use rayon::prelude::*;

/// Share of the mean diagonal of `X^T X` that is added to it.
const DAMPING: f64 = 0.01;
/// Rows which go through the triangle together, so that each of its rows is read once for all of them.
const ROWS: usize = 16;

/// What a group's activations say about the rounding of its weights.
pub(super) struct Compensation {
    k: usize,
    /// `U`, row-major `[K, K]`.
    upper: Vec<f32>,
}

impl Compensation {
    /// From the transformed activations as the GEMM sees them, `x` `[tokens, K]`. `None` when the system cannot be
    /// factored, as with activations that are all zero.
    pub(super) fn new(x: &[f32], tokens: usize, k: usize) -> Option<Self> {
        let mut hessian = gram(x, tokens, k);
        let damping = DAMPING * (0..k).map(|j| hessian[(j, j)]).sum::<f64>() / k as f64;
        for j in 0..k {
            hessian[(j, j)] += damping;
        }
        let inverse = hessian.llt(Side::Lower).ok()?.inverse();
        let lower = inverse.llt(Side::Lower).ok()?;
        let lower = lower.L();
        let mut upper = vec![0.0; k * k];
        upper.par_chunks_exact_mut(k.max(1)).enumerate().for_each(|(j, row)| {
            for (l, entry) in row.iter_mut().enumerate().skip(j) {
                *entry = lower[(l, j)] as f32;
            }
        });
        let finite = upper.iter().all(|x| x.is_finite()) && (0..k).all(|j| upper[j * k + j] > 0.0);
        finite.then_some(Self { k, upper })
    }

    /// Quantizes a transformed weight `[N, K]`.
    pub(super) fn quantize(&self, mut rows: Vec<f32>, n: usize, settings: Affine) -> Result<QuantizedMatrix, Error> {
        let k = self.k;
        let batches: Vec<_> = rows
            .par_chunks_mut(ROWS * k.max(1))
            .map(|batch| {
                let params: Vec<_> = batch.chunks_exact(k).map(|row| row_params(row, settings)).collect();
                let mut codes = vec![0_u8; batch.len()];
                let mut errors = [0.0_f32; ROWS];
                for j in 0..k {
                    let triangle = &self.upper[j * k + j..(j + 1) * k];
                    for (r, params) in params.iter().enumerate() {
                        let value = batch[r * k + j];
                        let code = settings.code(value, params);
                        codes[r * k + j] = code;
                        let back = params.scale * (f32::from(code) - f32::from(params.zero_point));
                        errors[r] = (value - back) / triangle[0];
                    }
                    for (row, error) in batch.chunks_exact_mut(k).zip(errors) {
                        row[j..].iter_mut().zip(triangle).for_each(|(w, u)| *w -= error * u);
                    }
                }
                (codes, params)
            })
            .collect();
        let quantized = QuantizedMatrix::from_rows(n, k, settings.bits, |row, out| {
            let (codes, params) = &batches[row / ROWS];
            let row = row % ROWS;
            out.copy_from_slice(&codes[row * k..(row + 1) * k]);
            Ok(params[row])
        })?;
        Ok(quantized)
    }
}

/// Scale and zero point of the clip ratio, among ten below the asked one, which leaves the least squared error.
fn row_params(row: &[f32], settings: Affine) -> crate::kernels::RowParams {
    let (min, max) = row.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)));
    let error_of = |params: &crate::kernels::RowParams| -> f64 {
        let zero_point = f32::from(params.zero_point);
        row.iter()
            .map(|&x| f64::from(x - params.scale * (f32::from(settings.code(x, params)) - zero_point)).powi(2))
            .sum()
    };
    let mut best = settings.params(min, max);
    let mut least = error_of(&best);
    for step in 0..10 {
        let clip = 1.0 - 0.05 * step as f32;
        let params = Affine { clip, ..settings }.params(min, max);
        let error = error_of(&params);
        if error < least {
            (best, least) = (params, error);
        }
    }
    best
}

/// `X^T X` of a `[tokens, K]` matrix, in single precision over tokens.
fn gram(x: &[f32], tokens: usize, k: usize) -> Mat<f64> {
    /// Rows of the product that are computed together; fixed, so that threads do not change the result.
    const TILE: usize = 64;
    let mut product = vec![0.0_f32; k * k];
    product.par_chunks_mut(TILE * k.max(1)).enumerate().for_each(|(tile, out)| {
        let rows = out.len() / k;
        // SAFETY: `out` is [rows, K] row-major; `x` is [tokens, K], of which the transposed left operand reads columns
        // tile * TILE .. tile * TILE + rows <= K and the right operand all K.
        unsafe {
            gemm::gemm(
                rows,
                k,
                tokens,
                out.as_mut_ptr(),
                1,
                k as isize,
                false,
                x.as_ptr().add(tile * TILE),
                k as isize,
                1,
                x.as_ptr(),
                1,
                k as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    });
    Mat::from_fn(k, k, |i, j| f64::from(product[i * k + j]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    /// Tokens whose channels are correlated, and a weight.
    fn data(tokens: usize, n: usize, k: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let (noise, common, weight) = (draw(tokens * k), draw(tokens), draw(n * k));
        let x = noise.iter().enumerate().map(|(i, noise)| noise + 2.0 * common[i / k]).collect();
        (x, weight)
    }

    /// `|X (W - Q)^T|^2`.
    fn output_error(x: &[f32], w: &[f32], q: &[f32], k: usize) -> f64 {
        let mut error = 0.0;
        for x in x.chunks(k) {
            for (w, q) in w.chunks(k).zip(q.chunks(k)) {
                let dot = x.iter().zip(w.iter().zip(q)).map(|(&x, (&w, &q))| f64::from(x) * f64::from(w - q));
                error += dot.sum::<f64>().powi(2);
            }
        }
        error
    }

    #[test]
    fn compensation_lowers_the_output_error() {
        let (tokens, n, k) = (300, 19, 48);
        let (x, w) = data(tokens, n, k, 5);
        for bits in [2, 4, 8] {
            let settings = Affine::new(bits, 1.0).unwrap();
            let nearest = QuantizedMatrix::quantize(&w, n, k, &[settings]).unwrap();
            let compensated = Compensation::new(&x, tokens, k).unwrap().quantize(w.clone(), n, settings).unwrap();
            compensated.validate().unwrap();
            let error = |q: &QuantizedMatrix| output_error(&x, &w, &q.dequantize(), k);
            let (nearest, compensated) = (error(&nearest), error(&compensated));
            assert!(compensated < 0.6 * nearest, "{bits} bits: compensated {compensated}, nearest {nearest}");
        }
    }

    #[test]
    fn activations_of_zero_say_nothing() {
        assert!(Compensation::new(&[0.0; 64], 4, 16).is_none());
    }

    #[test]
    fn threads_do_not_change_the_codes() {
        let (tokens, n, k) = (150, 37, 96);
        let (x, w) = data(tokens, n, k, 7);
        let settings = Affine::new(4, 1.0).unwrap();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Compensation::new(&x, tokens, k).unwrap().quantize(w.clone(), n, settings).unwrap())
        };
        let one = run(1);
        assert!(run(2) == one && run(3) == one, "another number of threads gave other codes");
    }
}
