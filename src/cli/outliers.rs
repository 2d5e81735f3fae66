//! How far the inputs of a floating-point model's linears stand out: what makes 4-bit activations hard.

use crate::calibrate::{Calibrator, LayerActivations, Samples};
use crate::checkpoint::{Checkpoint, Group};
use crate::kernels::cpu::Isa;
use crate::model::cpu::Layer;
use crate::model::{CHUNK, KvQuantizer};
use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;

/// How many times the median channel's maximum a channel must reach to count as a normal outlier.
const OUTLIER: f32 = 6.0;

/// The input of one group of one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct GroupOutliers {
    pub(super) layer: usize,
    pub(super) group: &'static str,
    pub(super) channels: usize,
    /// Largest `|x|`.
    pub(super) max: f32,
    /// Median `|x|` over all tokens and channels.
    pub(super) median: f32,
    /// Tokens with some `|x|` above half of the maximum: one or two where the outlier is massive.
    pub(super) tokens_above_half_max: usize,
    /// Channels whose largest `|x|` is over 6 times that of the median channel: the normal outliers.
    pub(super) outlier_channels: usize,
}

/// Runs `samples` through the layers one at a time, in floating point; `on_layer` sees each one's groups.
pub(super) fn measure(
    checkpoint: &Checkpoint,
    samples: &Samples,
    mut on_layer: impl FnMut(&[GroupOutliers]),
) -> Result<Vec<GroupOutliers>> {
    let config = checkpoint.config();
    let mut calibrator = Calibrator::new(checkpoint, samples)?;
    let mut all = Vec::with_capacity(4 * config.layers);
    for index in 0..config.layers {
        let layer = Layer::load(checkpoint.layer(index)?, config, index, CHUNK, Isa::best().into())?;
        let LayerActivations { tokens, inputs } = calibrator.observe(&layer, KvQuantizer::default(), true)?;
        let groups: Vec<_> = Group::ALL.into_iter().zip(inputs).map(|(group, x)| of(index, group, x, tokens)).collect();
        on_layer(&groups);
        all.extend(groups);
    }
    Ok(all)
}

fn of(layer: usize, group: Group, mut x: Vec<f32>, tokens: usize) -> GroupOutliers {
    let channels = x.len().checked_div(tokens).unwrap_or(0);
    x.par_iter_mut().for_each(|x| *x = x.abs());
    let mut channel_max = vec![0.0_f32; channels];
    let mut token_max = Vec::with_capacity(tokens);
    for token in x.chunks_exact(channels.max(1)) {
        channel_max.iter_mut().zip(token).for_each(|(max, &x)| *max = max.max(x));
        token_max.push(token.iter().copied().fold(0.0, f32::max));
    }
    let max = token_max.iter().copied().fold(0.0, f32::max);
    let threshold = OUTLIER * median(&mut channel_max.clone());
    GroupOutliers {
        layer,
        group: group.name(),
        channels,
        max,
        median: median(&mut x),
        tokens_above_half_max: token_max.iter().filter(|&&token| token > 0.5 * max).count(),
        outlier_channels: channel_max.iter().filter(|&&channel| channel > threshold).count(),
    }
}

/// The upper median; 0 of nothing.
fn median(values: &mut [f32]) -> f32 {
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_outliers_are_counted() {
        let (tokens, channels) = (32, 16);
        let mut x: Vec<f32> = (0..tokens * channels).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        for token in 0..tokens {
            x[token * channels + 5] = -7.0;
        }
        x[9 * channels + 11] = 100.0;
        let found = of(3, Group::Down, x, tokens);
        let expected = GroupOutliers {
            layer: 3,
            group: "down",
            channels,
            max: 100.0,
            median: 1.0,
            tokens_above_half_max: 1,
            outlier_channels: 2,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn nothing_has_no_outliers() {
        assert_eq!(of(0, Group::Qkv, Vec::new(), 0).outlier_channels, 0);
        assert_eq!(of(0, Group::Qkv, vec![0.0; 8], 2).outlier_channels, 0);
    }
}
