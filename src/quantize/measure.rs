//! The output error of a quantized group on some of its calibration tokens.

use super::Error;
use crate::checkpoint::{LinearGroup, Weight};
use crate::kernels::cpu::{Epilogue, FloatValues, FloatWeights, Isa, Source, TransformQuantize, gemm_float};

/// Tokens that an error is measured on.
const TOKENS: usize = 512;

/// Some tokens with the outputs that the floating-point linears give for them.
pub(super) struct Sample {
    tokens: usize,
    x: Vec<f32>,
    /// One output a linear, `[tokens, N]`.
    outputs: Vec<Vec<f32>>,
}

impl Sample {
    /// Takes tokens at an even stride out of `x` `[tokens, K]`; none when there are no tokens.
    pub(super) fn of(group: &LinearGroup, x: &[f32], tokens: usize) -> Result<Self, Error> {
        let k = group.transform.channels;
        let stride = tokens.div_ceil(TOKENS).max(1);
        let x: Vec<f32> = x.chunks_exact(k).step_by(stride).flatten().copied().collect();
        let tokens = x.len() / k;
        let outputs =
            group.linears.iter().map(|linear| output(&x, tokens, &linear.weight)).collect::<Result<_, _>>()?;
        Ok(Self { tokens, x, outputs })
    }

    /// Mean over tokens and linears of `|y - y'|^2 / |y|^2`, with `y'` from quantized activations and weights. Each token
    /// counts alike, so that one massive token does not speak for all. 0 without tokens.
    pub(super) fn error_of(&self, group: &LinearGroup) -> Result<f64, Error> {
        if self.tokens == 0 {
            return Ok(0.0);
        }
        let plan = TransformQuantize::plan(&group.transform, group.activation, self.tokens, Isa::best())?;
        let mut x = vec![0.0; self.x.len()];
        let mut workspace = vec![0.0; plan.workspace_len()];
        if group.activation.is_some() {
            plan.run_dequantized(Source::Tokens(&self.x), self.tokens, &mut x, &mut workspace)?;
        } else {
            plan.run_float(Source::Tokens(&self.x), self.tokens, &mut x, &mut workspace)?;
        }
        let mut sum = 0.0;
        for (linear, exact) in group.linears.iter().zip(&self.outputs) {
            let got = output(&x, self.tokens, &linear.weight)?;
            let n = linear.weight.n();
            for (exact, got) in exact.chunks_exact(n).zip(got.chunks_exact(n)) {
                let square = |x: f32| f64::from(x) * f64::from(x);
                let error: f64 = exact.iter().zip(got).map(|(a, b)| square(a - b)).sum();
                let norm: f64 = exact.iter().map(|&a| square(a)).sum();
                sum += if norm > 0.0 { error / norm } else { 0.0 };
            }
        }
        Ok(sum / (self.tokens * self.outputs.len()) as f64)
    }
}

fn output(x: &[f32], tokens: usize, weight: &Weight) -> Result<Vec<f32>, Error> {
    let (n, k) = (weight.n(), weight.k());
    let dequantized;
    let values = match weight {
        Weight::Float { values, .. } => values,
        Weight::Quantized(matrix) => {
            dequantized = matrix.dequantize();
            &dequantized
        }
    };
    let mut y = vec![0.0; tokens * n];
    gemm_float(x, tokens, FloatWeights { values: FloatValues::F32(values), n, k }, Epilogue::default(), &mut y)?;
    Ok(y)
}
