use super::Isa;
use super::lanes::{self, Kernel, Lanes, Level};
use super::tiles::SharedMut;
use crate::kernels::Error;
use crate::kernels::error::check_length;
use rayon::prelude::*;

/// Values below which a row-wise operation stays on the calling thread.
const INLINE: usize = 1 << 15;

/// RMSNorm of each token: `out = x / sqrt(mean(x^2) + epsilon) * weight`.
///
/// `x` and `out` are `[T, K]`, `weight` is `[K]`. In `f32`; the mean is summed in 16 interleaved chains. A token with NaN
/// or infinity gives NaN somewhere in its own row and nowhere else.
///
/// # Errors
/// [`Error::Length`] when `x` is no whole number of tokens or `out` differs in length.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) -> Result<(), Error> {
    rms_norm_on(Level::new(Isa::best())?, x, weight, epsilon, out)
}

fn rms_norm_on(level: Level, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) -> Result<(), Error> {
    let k = weight.len();
    if k == 0 || !x.len().is_multiple_of(k) {
        let expected = x.len().checked_div(k).unwrap_or(0) * k;
        return Err(Error::Length { operand: "x", expected, got: x.len() });
    }
    check_length("out", x.len(), out.len())?;
    if out.len() < INLINE {
        level.run(NormRows { x, weight, epsilon, out });
        return Ok(());
    }
    let step = k * (INLINE / 2).div_ceil(k);
    x.par_chunks(step).zip(out.par_chunks_mut(step)).for_each(|(x, out)| {
        level.run(NormRows { x, weight, epsilon, out });
    });
    Ok(())
}

struct NormRows<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let k = self.weight.len();
        for (x, out) in self.x.chunks_exact(k).zip(self.out.chunks_exact_mut(k)) {
            lanes::rms_norm(l, x, self.weight, self.epsilon, out);
        }
    }
}

/// SwiGLU's product: `out = silu(gate) * up` with `silu(x) = x / (1 + e^-x)`.
///
/// `gate_up` is `[T, 2K]`, gate in the first `K` columns, as the stacked GEMM writes it; `out` is `[T, K]`. The exponential
/// is good to about 1e-7.
///
/// # Errors
/// [`Error::Length`] when `gate_up` is not `[tokens, 2K]` or `out` not `[tokens, K]`.
pub fn silu_mul(gate_up: &[f32], tokens: usize, k: usize, out: &mut [f32]) -> Result<(), Error> {
    silu_mul_on(Level::new(Isa::best())?, gate_up, [tokens, k], out)
}

fn silu_mul_on(level: Level, gate_up: &[f32], [tokens, k]: [usize; 2], out: &mut [f32]) -> Result<(), Error> {
    check_length("out", tokens.saturating_mul(k), out.len())?;
    check_length("gate_up", 2 * out.len(), gate_up.len())?;
    if out.is_empty() {
        return Ok(());
    }
    if out.len() < INLINE {
        level.run(SiluRows { gate_up, k, out });
        return Ok(());
    }
    let tile = (INLINE / 2).div_ceil(k);
    let shared = SharedMut::new(out);
    (0..tokens.div_ceil(tile)).into_par_iter().for_each(|i| {
        let (first, last) = (i * tile, ((i + 1) * tile).min(tokens));
        // SAFETY: each tile is its own range of tokens.
        let out = unsafe { shared.part(first * k, (last - first) * k) };
        level.run(SiluRows { gate_up: &gate_up[2 * k * first..2 * k * last], k, out });
    });
    Ok(())
}

struct SiluRows<'a> {
    gate_up: &'a [f32],
    k: usize,
    out: &'a mut [f32],
}

impl Kernel for SiluRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for (gate_up, out) in self.gate_up.chunks_exact(2 * self.k).zip(self.out.chunks_exact_mut(self.k)) {
            let (gate, up) = gate_up.split_at(self.k);
            lanes::silu_mul(l, gate, up, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rms_norm_matches_f64_on_every_isa() {
        for (tokens, k) in [(1, 1), (3, 15), (2, 64), (7, 100), (65, 576), (9, 11008)] {
            let x: Vec<f32> = (0..tokens * k).map(|i| ((i * 7919 % 1009) as f32 - 500.0) * 0.01).collect();
            let weight: Vec<f32> = (0..k).map(|i| 0.5 + (i % 13) as f32 * 0.1).collect();
            let mut first: Option<Vec<f32>> = None;
            for &isa in Isa::available() {
                let mut out = vec![0.0; x.len()];
                rms_norm_on(Level::new(isa).unwrap(), &x, &weight, 1e-5, &mut out).unwrap();
                for t in 0..tokens {
                    let row = &x[t * k..(t + 1) * k];
                    let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / k as f64;
                    for i in 0..k {
                        let want = f64::from(row[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                        assert!((f64::from(out[t * k + i]) - want).abs() <= 1e-6 * want.abs().max(1e-3));
                    }
                }
                assert!(first.get_or_insert_with(|| out.clone()) == &out, "{isa:?} differs in bits");
            }
        }
    }

    #[test]
    fn silu_mul_matches_f64_on_every_isa() {
        for (tokens, k) in [(1, 1), (3, 15), (5, 64), (33, 1536)] {
            let gate_up: Vec<f32> = (0..2 * tokens * k).map(|i| ((i * 7919 % 2003) as f32 - 1000.0) * 0.03).collect();
            let mut first: Option<Vec<f32>> = None;
            for &isa in Isa::available() {
                let mut out = vec![0.0; tokens * k];
                silu_mul_on(Level::new(isa).unwrap(), &gate_up, [tokens, k], &mut out).unwrap();
                for t in 0..tokens {
                    for i in 0..k {
                        let gate = f64::from(gate_up[2 * k * t + i]);
                        let up = f64::from(gate_up[2 * k * t + k + i]);
                        let want = gate / (1.0 + (-gate).exp()) * up;
                        let got = f64::from(out[t * k + i]);
                        assert!((got - want).abs() <= 1e-6 * want.abs() + 1e-30, "{gate} {up}: {got} for {want}");
                    }
                }
                assert!(first.get_or_insert_with(|| out.clone()) == &out, "{isa:?} differs in bits");
            }
        }
    }

    #[test]
    fn wrong_lengths_are_errors() {
        assert!(rms_norm(&[1.0; 10], &[1.0; 4], 1e-5, &mut [0.0; 10]).is_err());
        assert!(rms_norm(&[1.0; 8], &[1.0; 4], 1e-5, &mut [0.0; 4]).is_err());
        assert!(rms_norm(&[1.0; 8], &[], 1e-5, &mut [0.0; 8]).is_err());
        assert!(silu_mul(&[1.0; 8], 1, 4, &mut [0.0; 3]).is_err());
        assert!(silu_mul(&[1.0; 8], 3, 1, &mut [0.0; 4]).is_err());
        assert!(silu_mul(&[], 0, 4, &mut []).is_ok());
    }
}
