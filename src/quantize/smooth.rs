//! Smoothing: outliers move from the activations into the weights (eq. 5's `Lambda`).

use super::Error;
use super::layer::Context;
use super::options::Smoothing;
use super::stages::Stage;
use crate::calibrate::LayerActivations;
use crate::checkpoint::{Group, LayerWeights, LinearGroup, LinearWeights, Weight};
use crate::transform;
use rayon::prelude::*;

/// What smoothing did to a layer.
pub(super) struct Smoothed {
    /// What the inputs of each group were divided by, `[K]`, in the order of [`Group::ALL`].
    pub(super) scales: [Vec<f32>; 4],
    /// `1 / s` of o where it could not be folded into v, to be applied online.
    pub(super) inverse: Option<Vec<f32>>,
}

/// Divides the inputs of all groups by their smoothing scale and multiplies the weights by it. The division is folded into
/// the norms and, where o and down are smoothed too, into v for o and into up for down; with grouped queries o's comes back,
/// to be applied online.
///
/// All scales are found on the original weights, before any folding.
pub(super) fn smooth(
    layer: &mut LayerWeights,
    activations: &mut LayerActivations,
    context: &Context<'_>,
) -> Result<Smoothed, Error> {
    let _stage = context.clock.enter(Stage::Smooth);
    let Some(alpha) = context.options.alpha else {
        let ones = layer.groups.each_ref().map(|group| vec![1.0; group.transform.channels]);
        return Ok(Smoothed { scales: ones, inverse: None });
    };
    let scales = scales(layer, activations, alpha, context.options.smoothing)?;
    for ((group, x), scale) in layer.groups.iter_mut().zip(&mut activations.inputs).zip(&scales) {
        x.par_chunks_exact_mut(scale.len()).for_each(|token| token.iter_mut().zip(scale).for_each(|(x, s)| *x /= s));
        for linear in &mut group.linears {
            let Weight::Float { values, .. } = &mut linear.weight else { return Err(Error::AlreadyQuantized) };
            values
                .par_chunks_exact_mut(scale.len())
                .for_each(|row| row.iter_mut().zip(scale).for_each(|(w, s)| *w *= s));
        }
    }
    let [qkv, o, gate_up, down] = &scales;
    layer.attention_norm.iter_mut().zip(qkv).for_each(|(norm, s)| *norm /= s);
    layer.mlp_norm.iter_mut().zip(gate_up).for_each(|(norm, s)| *norm /= s);
    let mut inverse = None;
    if context.options.smoothing != Smoothing::Norms {
        let [qkv_group, _, gate_up_group, _] = &mut layer.groups;
        divide_rows(gate_up_group.linears.last_mut(), down);
        if context.grouped_queries {
            inverse = Some(o.iter().map(|s| 1.0 / s).collect());
        } else {
            divide_rows(qkv_group.linears.last_mut(), o);
        }
    }
    Ok(Smoothed { scales, inverse })
}

/// The scale of each group.
fn scales(
    layer: &LayerWeights,
    activations: &LayerActivations,
    alpha: f32,
    smoothing: Smoothing,
) -> Result<[Vec<f32>; 4], Error> {
    let mut scales: [Vec<f32>; 4] = Default::default();
    let groups = Group::ALL.into_iter().zip(&layer.groups).zip(&activations.inputs);
    for (((name, group), x), scale) in groups.zip(&mut scales) {
        let k = group.transform.channels;
        *scale = match smoothing {
            Smoothing::Norms if matches!(name, Group::O | Group::Down) => vec![1.0; k],
            Smoothing::Balanced => balance(group, x)?,
            Smoothing::Norms | Smoothing::All => {
                let activation_max = transform::channel_max(x, activations.tokens, k)?;
                // One of the group's linears speaks for all: q, o, up, down.
                let leader = if name == Group::GateUp { group.linears.last() } else { group.linears.first() };
                let Some(Weight::Float { n, values, .. }) = leader.map(|linear| &linear.weight) else {
                    return Err(Error::AlreadyQuantized);
                };
                let weight_max = transform::channel_max(values, *n, k)?;
                transform::smoothing_scale(&activation_max, &weight_max, alpha)?
            }
        };
    }
    Ok(scales)
}

/// The scale that balances channels for a rotation: `s_j = sqrt(a_j / b_j)`, with `a_j` the root mean square over tokens of
/// `x[t, j] / |x[t]|` and `b_j` that over output channels of `w[n, j] / |w[n]|`.
///
/// Behind a rotation the quantization error of a token is spread evenly over its channels and proportional to its norm,
/// and so is that of an output channel's weight. The error of an output is then proportional to `|x / s| |w s|`, which by
/// Cauchy and Schwarz is least where `|x_j| / s_j` and `|w_j| s_j` are proportional.
fn balance(group: &LinearGroup, x: &[f32]) -> Result<Vec<f32>, Error> {
    let k = group.transform.channels;
    let activations = mean_shares(x, k);
    let mut weights = vec![0.0_f64; k];
    for linear in &group.linears {
        let Weight::Float { values, .. } = &linear.weight else { return Err(Error::AlreadyQuantized) };
        weights.iter_mut().zip(mean_shares(values, k)).for_each(|(all, one)| *all += one);
    }
    let floor = 1e-8 / k as f64;
    Ok(activations.iter().zip(&weights).map(|(a, b)| (a.max(floor) / b.max(floor)).powf(0.25) as f32).collect())
}

/// Mean over rows of each channel's share of the row's squared norm.
fn mean_shares(x: &[f32], k: usize) -> Vec<f64> {
    let mut shares = vec![0.0_f64; k];
    for row in x.chunks_exact(k) {
        let norm: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        if norm > 0.0 {
            shares.iter_mut().zip(row).for_each(|(share, &x)| *share += f64::from(x) * f64::from(x) / norm);
        }
    }
    let rows = (x.len() / k).max(1) as f64;
    shares.iter_mut().for_each(|share| *share /= rows);
    shares
}

/// Divides output channel `n` of a linear by `scale[n]`.
fn divide_rows(linear: Option<&mut LinearWeights>, scale: &[f32]) {
    let Some(LinearWeights { weight: Weight::Float { k, values, .. }, bias, .. }) = linear else { return };
    for (row, s) in values.chunks_exact_mut(*k).zip(scale) {
        row.iter_mut().for_each(|w| *w /= s);
    }
    if let Some(bias) = bias {
        bias.iter_mut().zip(scale).for_each(|(b, s)| *b /= s);
    }
}
