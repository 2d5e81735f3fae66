//! One layer: smoothing folded in, a transform for each group, weights quantized.

use super::options::{Method, Mode, Options, Rounding, Smoothing};
use super::rounding::Compensation;
use super::{Error, GroupReport};
use crate::calibrate::LayerActivations;
use crate::checkpoint::{Group, LayerWeights, LinearGroup, LinearWeights, Weight};
use crate::kernels::{Affine, QuantizedMatrix, Transform};
use crate::transform::{self, RotationKind, RotationPools, TransformOptions};
use rayon::prelude::*;

/// Settings that hold for every layer.
pub(super) struct Context<'a> {
    pub(super) options: &'a Options,
    pub(super) pools: &'a RotationPools,
    pub(super) weight: Option<Affine>,
    pub(super) activation: Option<Affine>,
    /// Query heads share key and value heads, so that o's smoothing cannot be folded into v.
    pub(super) grouped_queries: bool,
}

/// Turns a floating-point layer into a quantized one.
pub(super) fn quantize_layer(
    mut layer: LayerWeights,
    mut activations: LayerActivations,
    context: &Context<'_>,
) -> Result<(LayerWeights, Vec<GroupReport>), Error> {
    let inverse_smooth = match context.options.alpha {
        Some(alpha) => smooth(&mut layer, &mut activations, alpha, context)?,
        None => None,
    };
    let LayerActivations { tokens, inputs } = activations;
    let LayerWeights { attention_norm, mlp_norm, groups } = layer;
    let work: Vec<_> = Group::ALL.into_iter().zip(groups).zip(inputs).collect();
    let done: Vec<(LinearGroup, GroupReport)> = work
        .into_par_iter()
        .map(|((group, linears), x)| {
            let (mut quantized, report) = quantize_group(group, linears, x, tokens, context)?;
            if group == Group::O {
                quantized.transform.inverse_smooth.clone_from(&inverse_smooth);
            }
            Ok((quantized, report))
        })
        .collect::<Result<_, Error>>()?;
    let (groups, reports): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    let groups = <[LinearGroup; 4]>::try_from(groups).map_err(|_| Error::Internal("a layer has four groups"))?;
    Ok((LayerWeights { attention_norm, mlp_norm, groups }, reports))
}

/// Divides the inputs of all groups by their smoothing scale and multiplies the weights by it. The division is folded into
/// the norms and, where o and down are smoothed too, into v for o and into up for down; with grouped queries o's comes back,
/// to be applied online.
///
/// All scales are found on the original weights, before any folding.
fn smooth(
    layer: &mut LayerWeights,
    activations: &mut LayerActivations,
    alpha: f32,
    context: &Context<'_>,
) -> Result<Option<Vec<f32>>, Error> {
    let tokens = activations.tokens;
    let norms_alone = context.options.smoothing == Smoothing::Norms;
    let mut scales = Vec::with_capacity(4);
    for ((name, group), x) in Group::ALL.into_iter().zip(&layer.groups).zip(&activations.inputs) {
        let k = group.transform.channels;
        if norms_alone && matches!(name, Group::O | Group::Down) {
            scales.push(vec![1.0; k]);
            continue;
        }
        if context.options.smoothing == Smoothing::Balanced {
            scales.push(balance(group, x)?);
            continue;
        }
        let activation_max = transform::channel_max(x, tokens, k)?;
        // One of the group's linears speaks for all: q, o, up, down.
        let leader = if name == Group::GateUp { group.linears.last() } else { group.linears.first() };
        let Some(Weight::Float { n, values, .. }) = leader.map(|linear| &linear.weight) else {
            return Err(Error::AlreadyQuantized);
        };
        let weight_max = transform::channel_max(values, *n, k)?;
        scales.push(transform::smoothing_scale(&activation_max, &weight_max, alpha)?);
    }
    for ((group, x), scale) in layer.groups.iter_mut().zip(&mut activations.inputs).zip(&scales) {
        x.par_chunks_exact_mut(scale.len()).for_each(|token| token.iter_mut().zip(scale).for_each(|(x, s)| *x /= s));
        for linear in &mut group.linears {
            let Weight::Float { values, .. } = &mut linear.weight else { return Err(Error::AlreadyQuantized) };
            values
                .par_chunks_exact_mut(scale.len())
                .for_each(|row| row.iter_mut().zip(scale).for_each(|(w, s)| *w *= s));
        }
    }
    let [qkv, o, gate_up, down] = &scales[..] else { return Err(Error::Internal("a layer has four groups")) };
    layer.attention_norm.iter_mut().zip(qkv).for_each(|(norm, s)| *norm /= s);
    layer.mlp_norm.iter_mut().zip(gate_up).for_each(|(norm, s)| *norm /= s);
    if norms_alone {
        return Ok(None);
    }
    let [qkv_group, _, gate_up_group, _] = &mut layer.groups;
    divide_rows(gate_up_group.linears.last_mut(), down);
    if context.grouped_queries {
        return Ok(Some(o.iter().map(|s| 1.0 / s).collect()));
    }
    divide_rows(qkv_group.linears.last_mut(), o);
    Ok(None)
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

/// Chooses the group's transform and quantizes its linears. `x` is the smoothed input, empty without samples.
fn quantize_group(
    group: Group,
    linears: LinearGroup,
    x: Vec<f32>,
    tokens: usize,
    context: &Context<'_>,
) -> Result<(LinearGroup, GroupReport), Error> {
    let started = std::time::Instant::now();
    let k = linears.transform.channels;
    let sample = super::measure::Sample::of(&linears, &x, tokens)?;
    let mut best: Option<(f64, RotationKind, LinearGroup)> = None;
    for &rotation in rotations(context.options) {
        let options = TransformOptions {
            rotation,
            permutation: context.options.permutation,
            permutations: context.options.permutations,
            block: context.options.block,
            steps: context.options.steps,
            seed: context.options.seed,
        };
        let transform = transform::build(&x, tokens, k, &options, context.pools)?;
        let candidate = quantize_linears(&linears, transform, context)?;
        let error = sample.error_of(&candidate)?;
        if best.as_ref().is_none_or(|(least, ..)| error < *least) {
            best = Some((error, rotation, candidate));
        }
    }
    let Some((mut error, rotation, mut quantized)) = best else {
        return Err(Error::Internal("a method has a rotation"));
    };
    let input_max = largest(&x);
    let mut transformed = x;
    transform::apply(&quantized.transform, &mut transformed, tokens)?;
    let maxima = (input_max, largest(&transformed));
    if let (Rounding::Compensated, Some(weight)) = (context.options.rounding, context.weight)
        && compensate(&linears, &mut quantized, transformed, tokens, weight)?
    {
        error = sample.error_of(&quantized)?;
    }
    let report = GroupReport::new(group, rotation, error, maxima, started.elapsed());
    Ok((quantized, report))
}

fn largest(x: &[f32]) -> f32 {
    x.par_iter().map(|x| x.abs()).reduce(|| 0.0, f32::max)
}

/// Rounds the weights of `quantized` again, with error compensation on its transformed input. Leaves them as they are, and
/// says so, when the input cannot tell anything.
fn compensate(
    group: &LinearGroup,
    quantized: &mut LinearGroup,
    mut transformed: Vec<f32>,
    tokens: usize,
    settings: Affine,
) -> Result<bool, Error> {
    let k = group.transform.channels;
    if let Some(activation) = quantized.activation {
        dequantize_tokens(&mut transformed, k, activation)?;
    }
    let Some(compensation) = Compensation::new(&transformed, tokens, k) else { return Ok(false) };
    drop(transformed);
    for (original, linear) in group.linears.iter().zip(&mut quantized.linears) {
        let Weight::Float { n, values, .. } = &original.weight else { return Err(Error::AlreadyQuantized) };
        let mut values = values.clone();
        transform::transform_weight(&quantized.transform, &mut values, *n)?;
        linear.weight = Weight::Quantized(compensation.quantize(values, *n, settings)?);
    }
    Ok(true)
}

/// Sends each token through the quantizer and back.
fn dequantize_tokens(x: &mut [f32], k: usize, settings: Affine) -> Result<(), Error> {
    x.par_chunks_exact_mut(k).try_for_each_init(
        || vec![0_u8; k],
        |codes, token| {
            let params = settings.quantize_row(token, codes)?;
            let zero_point = f32::from(params.zero_point);
            token.iter_mut().zip(codes.iter()).for_each(|(x, &q)| *x = params.scale * (f32::from(q) - zero_point));
            Ok(())
        },
    )
}

/// The rotations to choose from.
fn rotations(options: &Options) -> &'static [RotationKind] {
    match (options.method, options.mode) {
        (Method::Rtn | Method::SmoothQuant, _) => &[RotationKind::None],
        (Method::QuaRot, _) => &[RotationKind::Hadamard],
        (Method::DuQuant, Mode::Paper) => &[RotationKind::Paper],
        (Method::DuQuant, Mode::Official) => &[RotationKind::Official],
        (Method::DuQuant, Mode::Left) => &[RotationKind::Left],
        (Method::DuQuant, Mode::Hadamard) => &[RotationKind::Hadamard],
        (Method::DuQuant, Mode::Best) => &[RotationKind::Paper, RotationKind::Left, RotationKind::Hadamard],
    }
}

fn quantize_linears(group: &LinearGroup, transform: Transform, context: &Context<'_>) -> Result<LinearGroup, Error> {
    let linears = group
        .linears
        .iter()
        .map(|linear| {
            let Weight::Float { n, k, values } = &linear.weight else { return Err(Error::AlreadyQuantized) };
            let mut values = values.clone();
            transform::transform_weight(&transform, &mut values, *n)?;
            let weight = match context.weight {
                Some(settings) => Weight::Quantized(QuantizedMatrix::quantize(&values, *n, *k, &[settings])?),
                None => Weight::Float { n: *n, k: *k, values },
            };
            Ok(LinearWeights { projection: linear.projection, weight, bias: linear.bias.clone() })
        })
        .collect::<Result<_, Error>>()?;
    Ok(LinearGroup { transform, activation: context.activation, linears })
}
