//! The floating-point GEMM `y = x W^T (+ bias) (+ y)`: the baseline that W4A4 is measured against, and the output head.
//!
//! Many tokens go through the `gemm` crate, cut into tiles of a fixed size that rayon spreads over threads; few tokens
//! through dot products of our own that read each weight once in the type that it is stored in. Every sum has one order
//! for given shapes and a given machine, whatever the number of threads.

mod dot;

use super::super::Error;
use super::super::error::check_length;
use super::{Epilogue, Isa};
use dot::Element;
use half::{bf16, f16};
use rayon::prelude::*;

/// Values of a floating-point weight, row-major `[N, K]`.
#[derive(Debug, Clone, Copy)]
pub enum FloatValues<'a> {
    /// IEEE single precision.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

/// A floating-point weight `[N, K]`.
#[derive(Debug, Clone, Copy)]
pub struct FloatWeights<'a> {
    /// `n * k` values, row-major.
    pub values: FloatValues<'a>,
    /// Output channels `N`.
    pub n: usize,
    /// Input channels `K`.
    pub k: usize,
}

/// Up to so many tokens dot products beat the blocked GEMM, which has to repack the weights.
const DOT_TOKENS: usize = 16;
/// Tokens and output channels of a tile of the blocked GEMM.
const TILE_TOKENS: usize = 512;
const TILE_CHANNELS: usize = 128;

/// Computes `y [tokens, n]` from `x [tokens, k]`. With `accumulate` the product adds to what `y` holds; the bias is
/// added last.
///
/// # Errors
/// [`Error::Length`] when an operand does not have the length that `tokens`, `n` and `k` ask for.
pub fn gemm_float(
    x: &[f32],
    tokens: usize,
    weights: FloatWeights<'_>,
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) -> Result<(), Error> {
    let (n, k) = (weights.n, weights.k);
    let values = match weights.values {
        FloatValues::F32(values) => values.len(),
        FloatValues::F16(values) => values.len(),
        FloatValues::Bf16(values) => values.len(),
    };
    check_length("weights.values", n.saturating_mul(k), values)?;
    check_length("x", tokens.saturating_mul(k), x.len())?;
    check_length("y", tokens.saturating_mul(n), y.len())?;
    if let Some(bias) = epilogue.bias {
        check_length("bias", n, bias.len())?;
    }
    if tokens == 0 || n == 0 {
        return Ok(());
    }
    let shape = Shape { tokens, n, k };
    match weights.values {
        FloatValues::F32(values) => run(x, shape, values, epilogue, y),
        FloatValues::F16(values) => run(x, shape, values, epilogue, y),
        FloatValues::Bf16(values) => run(x, shape, values, epilogue, y),
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Shape {
    tokens: usize,
    n: usize,
    k: usize,
}

/// The output, which jobs write disjoint parts of.
#[derive(Clone, Copy)]
struct Out(*mut f32);

// SAFETY: every job writes elements of its own.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

fn run<W: Element>(x: &[f32], shape: Shape, w: &[W], epilogue: Epilogue<'_>, y: &mut [f32]) {
    let Shape { tokens, n, k } = shape;
    let out = Out(y.as_mut_ptr());
    if tokens <= DOT_TOKENS && k > 0 {
        // Some 128 KB of weights a job.
        let rows = (131_072 / (k * size_of::<W>()).max(1)).max(1).next_multiple_of(dot::ROWS);
        let isa = Isa::best();
        let job = |job: usize| {
            let rows = job * rows..((job + 1) * rows).min(n);
            dot::run(isa, x, w, shape.k, rows, |t, row, sum| {
                let bias = epilogue.bias.map_or(0.0, |bias| bias[row]);
                // SAFETY: t < tokens and row < n, and this job alone has these rows.
                unsafe {
                    let y = out.at(t * n + row);
                    *y = if epilogue.accumulate { sum + *y } else { sum } + bias;
                }
            });
        };
        let jobs = n.div_ceil(rows);
        if jobs == 1 {
            job(0)
        } else {
            (0..jobs).into_par_iter().for_each(job)
        }
        return;
    }
    let across = n.div_ceil(TILE_CHANNELS);
    let job = |wide: &mut Vec<f32>, job: usize| {
        let (t, first) = (job / across * TILE_TOKENS, job % across * TILE_CHANNELS);
        let (height, width) = (TILE_TOKENS.min(tokens - t), TILE_CHANNELS.min(n - first));
        let w = W::widen_all(&w[first * k..(first + width) * k], wide);
        // SAFETY: the slices hold `height` rows of x and `width` rows of w of `k` each, and the tile of y is this job's.
        unsafe {
            gemm::gemm(
                height,
                width,
                k,
                out.at(t * n + first),
                1,
                n as isize,
                epilogue.accumulate,
                x[t * k..(t + height) * k].as_ptr(),
                1,
                k as isize,
                w.as_ptr(),
                k as isize,
                1,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        if let Some(bias) = epilogue.bias {
            for t in t..t + height {
                // SAFETY: a row of this job's tile.
                let y = unsafe { std::slice::from_raw_parts_mut(out.at(t * n + first), width) };
                for (y, bias) in y.iter_mut().zip(&bias[first..first + width]) {
                    *y += bias;
                }
            }
        }
    };
    (0..tokens.div_ceil(TILE_TOKENS) * across).into_par_iter().for_each_init(Vec::new, job);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn equals_a_sum_in_f64() {
        for (tokens, n, k) in [
            (0, 3, 4),
            (1, 1, 1),
            (1, 33, 576),
            (2, 7, 31),
            (3, 130, 65),
            (5, 9, 1000),
            (16, 100, 64),
            (17, 129, 96),
            (33, 5, 7),
            (530, 260, 70),
            (4, 3, 0),
            (40, 3, 0),
            (4, 0, 3),
        ] {
            let x = numbers(tokens * k, 1);
            let w32 = numbers(n * k, 2);
            let w16: Vec<f16> = w32.iter().map(|&w| f16::from_f32(w)).collect();
            let wb16: Vec<bf16> = w32.iter().map(|&w| bf16::from_f32(w)).collect();
            let (bias, before) = (numbers(n, 3), numbers(tokens * n, 4));
            for values in [FloatValues::F32(&w32), FloatValues::F16(&w16), FloatValues::Bf16(&wb16)] {
                let at = |i: usize| match values {
                    FloatValues::F32(w) => f64::from(w[i]),
                    FloatValues::F16(w) => w[i].to_f64(),
                    FloatValues::Bf16(w) => w[i].to_f64(),
                };
                for (with_bias, accumulate) in [(false, false), (true, true)] {
                    let mut y = if accumulate { before.clone() } else { vec![f32::NAN; tokens * n] };
                    let epilogue = Epilogue { bias: with_bias.then_some(&bias[..]), accumulate };
                    gemm_float(&x, tokens, FloatWeights { values, n, k }, epilogue, &mut y).unwrap();
                    for (i, &y) in y.iter().enumerate() {
                        let (t, row) = (i / n, i % n);
                        let mut want: f64 = (0..k).map(|k_| f64::from(x[t * k + k_]) * at(row * k + k_)).sum();
                        want += if with_bias { f64::from(bias[row]) } else { 0.0 };
                        want += if accumulate { f64::from(before[i]) } else { 0.0 };
                        let tolerance = 1e-6 * (k as f64 + 4.0);
                        assert!((f64::from(y) - want).abs() <= tolerance, "{tokens} {n} {k}: {y} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_sums_rightly() {
        for k in [1, 7, 8, 15, 16, 17, 64, 100] {
            let (x, w) = (numbers(6 * k, 5), numbers(11 * k, 6));
            let w16: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
            for &isa in Isa::available() {
                let mut seen = [[0; 11]; 6];
                dot::run(isa, &x, &w16, k, 0..11, |t, row, sum| {
                    seen[t][row] += 1;
                    let want: f64 = (0..k).map(|i| f64::from(x[t * k + i]) * w16[row * k + i].to_f64()).sum();
                    assert!((f64::from(sum) - want).abs() < 1e-6 * k as f64, "{isa:?} K {k}: {sum} for {want}");
                });
                assert_eq!(seen, [[1; 11]; 6]);
            }
        }
    }

    #[test]
    fn threads_do_not_change_results() {
        for (tokens, n, k) in [(1, 3000, 300), (600, 300, 300)] {
            let (x, w) = (numbers(tokens * k, 1), numbers(n * k, 2));
            let weights = FloatWeights { values: FloatValues::F32(&w), n, k };
            let runs: Vec<Vec<f32>> = [1, 2, 3]
                .iter()
                .map(|&threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut y = vec![0.0; tokens * n];
                    pool.install(|| gemm_float(&x, tokens, weights, Epilogue::default(), &mut y)).unwrap();
                    y
                })
                .collect();
            assert!(runs[0] == runs[1] && runs[0] == runs[2]);
        }
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let w = [0.0; 6];
        let weights = FloatWeights { values: FloatValues::F32(&w), n: 2, k: 3 };
        let none = Epilogue::default();
        assert!(gemm_float(&[0.0; 3], 1, weights, none, &mut [0.0; 2]).is_ok());
        assert!(gemm_float(&[0.0; 4], 1, weights, none, &mut [0.0; 2]).is_err());
        assert!(gemm_float(&[0.0; 3], 1, weights, none, &mut [0.0; 3]).is_err());
        assert!(gemm_float(&[0.0; 3], 1, FloatWeights { n: 3, ..weights }, none, &mut [0.0; 3]).is_err());
        assert!(gemm_float(&[], usize::MAX, weights, none, &mut []).is_err());
        let bias = [0.0; 3];
        assert!(
            gemm_float(&[0.0; 3], 1, weights, Epilogue { bias: Some(&bias), accumulate: false }, &mut [0.0; 2])
                .is_err()
        );
    }
}
