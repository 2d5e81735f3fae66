use super::Error;
use super::layer::{Context, choose};
use super::measure::Sample;
use super::options::Options;
use super::smooth::smooth;
use super::stages::Clock;
use crate::calibrate::LayerActivations;
use crate::checkpoint::{Config, Group, LayerWeights};
use crate::kernels::Transform;
use crate::transform::RotationPools;

/// What [`super::quantize`] does to the input of one group of linears.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupTrace {
    /// The group.
    pub group: Group,
    /// What its input is divided by, `[K]`; ones where it is not smoothed.
    pub smooth: Vec<f32>,
    /// The smoothed calibration input, `[tokens, K]`.
    pub input: Vec<f32>,
    /// Rotations and permutations of the smoothed input; smoothing itself is not in it.
    pub transform: Transform,
}

/// The transforms that [`super::quantize`] would find for some groups of a layer, without quantizing it: `weights` and
/// `activations` are the floating-point layer's. Takes its random draws from `pools`.
///
/// # Errors
/// As [`super::quantize`] of a layer.
pub fn trace(
    mut weights: LayerWeights,
    mut activations: LayerActivations,
    groups: &[Group],
    options: &Options,
    config: &Config,
    pools: &RotationPools,
) -> Result<Vec<GroupTrace>, Error> {
    let clock = Clock::default();
    let context = Context::new(options, config, pools, &clock)?;
    let mut smoothed = smooth(&mut weights, &mut activations, &context)?;
    let tokens = activations.tokens;
    let of = |group: Group| {
        let linears = &weights.groups[group as usize];
        let input = std::mem::take(&mut activations.inputs[group as usize]);
        let sample = Sample::of(linears, &input, tokens)?;
        let transform = choose(group, linears, &input, tokens, &sample, &context)?.quantized.transform;
        Ok(GroupTrace { group, smooth: std::mem::take(&mut smoothed.scales[group as usize]), input, transform })
    };
    groups.iter().copied().map(of).collect()
}
