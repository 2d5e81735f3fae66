//! Linears with a common input, stacked one below the other.

use crate::checkpoint::LinearWeights;

/// Their biases, zeros where one has none; `None` when none has any.
pub(super) fn stacked_bias(linears: &[LinearWeights]) -> Option<Vec<f32>> {
    linears.iter().any(|linear| linear.bias.is_some()).then(|| {
        let part = |linear: &LinearWeights| linear.bias.clone().unwrap_or_else(|| vec![0.0; linear.weight.n()]);
        linears.iter().flat_map(part).collect()
    })
}
