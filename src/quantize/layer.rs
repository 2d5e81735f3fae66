//! One layer: smoothing folded in, a transform for each group, weights quantized.

use super::measure::Sample;
use super::options::{Method, Mode, Options, Rounding};
use super::rounding::Compensation;
use super::smooth::{Smoothed, smooth};
use super::stages::{Clock, Stage};
use super::{Error, GroupReport};
use crate::calibrate::LayerActivations;
use crate::checkpoint::{Config, Group, LayerWeights, LinearGroup, LinearWeights, Weight};
use crate::kernels::{Affine, QuantizedMatrix, Transform};
use crate::transform::{self, BuildStep, RotationKind, RotationPools, TransformOptions};
use rayon::prelude::*;

/// Settings that hold for every layer.
pub(super) struct Context<'a> {
    pub(super) options: &'a Options,
    pub(super) pools: &'a RotationPools,
    pub(super) weight: Option<Affine>,
    pub(super) activation: Option<Affine>,
    /// Query heads share key and value heads, so that o's smoothing cannot be folded into v.
    pub(super) grouped_queries: bool,
    pub(super) clock: &'a Clock,
}

impl<'a> Context<'a> {
    pub(super) fn new(
        options: &'a Options,
        config: &Config,
        pools: &'a RotationPools,
        clock: &'a Clock,
    ) -> Result<Self, Error> {
        Ok(Self {
            options,
            pools,
            weight: options.weight()?,
            activation: options.activation()?,
            grouped_queries: config.heads != config.kv_heads,
            clock,
        })
    }
}

/// Turns a floating-point layer into a quantized one.
pub(super) fn quantize_layer(
    mut layer: LayerWeights,
    mut activations: LayerActivations,
    context: &Context<'_>,
) -> Result<(LayerWeights, Vec<GroupReport>), Error> {
    let Smoothed { inverse, .. } = smooth(&mut layer, &mut activations, context)?;
    let LayerActivations { tokens, inputs } = activations;
    let LayerWeights { attention_norm, mlp_norm, groups } = layer;
    let _side_by_side = context.clock.side_by_side();
    let work: Vec<_> = Group::ALL.into_iter().zip(groups).zip(inputs).collect();
    let done: Vec<(LinearGroup, GroupReport)> = work
        .into_par_iter()
        .map(|((group, linears), x)| {
            let (mut quantized, report) = quantize_group(group, linears, x, tokens, context)?;
            if group == Group::O {
                quantized.transform.inverse_smooth.clone_from(&inverse);
            }
            Ok((quantized, report))
        })
        .collect::<Result<_, Error>>()?;
    let (groups, reports): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    let groups = <[LinearGroup; 4]>::try_from(groups).map_err(|_| Error::Internal("a layer has four groups"))?;
    Ok((LayerWeights { attention_norm, mlp_norm, groups }, reports))
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
    let sample = context.clock.time(Stage::Measure, || Sample::of(&linears, &x, tokens))?;
    let Choice { mut error, rotation, mut quantized } = choose(group, &linears, &x, tokens, &sample, context)?;
    let (maxima, transformed) = context.clock.time(Stage::Transform, || {
        let input_max = largest(&x);
        let mut transformed = x;
        transform::apply(&quantized.transform, &mut transformed, tokens)?;
        Ok::<_, Error>(((input_max, largest(&transformed)), transformed))
    })?;
    if let (Rounding::Compensated, Some(weight)) = (context.options.rounding, context.weight) {
        let rounding = context.clock.enter(Stage::Round);
        let compensated = compensate(&linears, &mut quantized, transformed, tokens, weight)?;
        drop(rounding);
        if compensated {
            error = context.clock.time(Stage::Measure, || sample.error_of(&quantized))?;
        }
    }
    let report = GroupReport::new(group, rotation, error, maxima, started.elapsed());
    Ok((quantized, report))
}

/// The rotation with the smallest error on the sample, and the group as it quantizes it.
pub(super) struct Choice {
    pub(super) error: f64,
    pub(super) rotation: RotationKind,
    pub(super) quantized: LinearGroup,
}

/// Tries every rotation that the options leave for `group`; `x` is its smoothed input.
pub(super) fn choose(
    group: Group,
    linears: &LinearGroup,
    x: &[f32],
    tokens: usize,
    sample: &Sample,
    context: &Context<'_>,
) -> Result<Choice, Error> {
    let mut best: Option<Choice> = None;
    for &rotation in rotations(context.options, group) {
        let options = TransformOptions {
            rotation,
            permutation: context.options.permutation,
            permutations: context.options.permutations,
            block: context.options.block,
            steps: context.options.steps,
            seed: context.options.seed,
        };
        let mut watched = context.clock.enter(Stage::Rotation);
        let transform =
            transform::build_watched(x, tokens, linears.transform.channels, &options, context.pools, |step| {
                watched.switch(match step {
                    BuildStep::Rotation => Stage::Rotation,
                    BuildStep::Permutation => Stage::Permutation,
                });
            })?;
        drop(watched);
        let quantized = quantize_linears(linears, transform, context)?;
        let error = context.clock.time(Stage::Measure, || sample.error_of(&quantized))?;
        if best.as_ref().is_none_or(|best| error < best.error) {
            best = Some(Choice { error, rotation, quantized });
        }
    }
    best.ok_or(Error::Internal("a method has a rotation"))
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
fn rotations(options: &Options, group: Group) -> &'static [RotationKind] {
    if !options.transformed[group as usize] {
        return &[RotationKind::None];
    }
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
            context.clock.time(Stage::Transform, || transform::transform_weight(&transform, &mut values, *n))?;
            let weight = match context.weight {
                Some(settings) => {
                    let quantize = || QuantizedMatrix::quantize(&values, *n, *k, &[settings]);
                    Weight::Quantized(context.clock.time(Stage::Round, quantize)?)
                }
                None => Weight::Float { n: *n, k: *k, values },
            };
            Ok(LinearWeights { projection: linear.projection, weight, bias: linear.bias.clone() })
        })
        .collect::<Result<_, Error>>()?;
    Ok(LinearGroup { transform, activation: context.activation, linears })
}
