//! The paper's picture: `|x|` of a linear's input before smoothing, and behind each step of the transform (figures 1, 2 and 10).

use super::record::{Magnitudes, OutlierPoint};
use crate::calibrate::{Calibrator, LayerActivations, Samples};
use crate::checkpoint::{Checkpoint, Group};
use crate::kernels::Transform;
use crate::kernels::cpu::Isa;
use crate::model::cpu::Layer;
use crate::model::{CHUNK, KvQuantizer};
use crate::quantize::{self, Error, GroupTrace, Options};
use crate::transform::{self, RotationPools};

/// Rows (groups of neighbouring tokens) and columns (groups of neighbouring channels) of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Most rows.
    pub rows: usize,
    /// Most columns.
    pub columns: usize,
}

impl Default for Grid {
    fn default() -> Self {
        Self { rows: 64, columns: 256 }
    }
}

/// A floating-point model on its way through the layers: calibration samples, which decide the transforms, and the tokens
/// that are shown.
pub struct OutlierProbe<'a> {
    checkpoint: &'a Checkpoint,
    options: Options,
    calibration: Calibrator,
    shown: Calibrator,
    pools: RotationPools,
    /// The layer that both stand in front of.
    next: usize,
}

impl<'a> OutlierProbe<'a> {
    /// Starts in front of layer 0. `shown` are the tokens of the picture, one sample.
    ///
    /// # Errors
    /// [`Error::AlreadyQuantized`], [`Error::Model`] when the embedding cannot be read.
    pub fn new(
        checkpoint: &'a Checkpoint,
        samples: &Samples,
        shown: &Samples,
        options: Options,
    ) -> Result<Self, Error> {
        if checkpoint.quantization().is_some() {
            return Err(Error::AlreadyQuantized);
        }
        let calibration = Calibrator::new(checkpoint, samples)?;
        let shown = Calibrator::new(checkpoint, shown)?;
        Ok(Self { checkpoint, options, calibration, shown, pools: RotationPools::new(), next: 0 })
    }

    /// The inputs of some groups of `layer`, which must not lie before the last one asked for.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when there is no such layer, and what running and searching say.
    pub fn layer(&mut self, layer: usize, groups: &[Group], grid: Grid) -> Result<Vec<OutlierPoint>, Error> {
        if layer < self.next {
            return Err(Error::Internal("layers are asked for in ascending order"));
        }
        let config = self.checkpoint.config();
        let float = KvQuantizer::default();
        while self.next < layer {
            let passed = Layer::load(self.checkpoint.layer(self.next)?, config, self.next, CHUNK, Isa::best().into())?;
            self.calibration.advance(&passed, float)?;
            self.shown.advance(&passed, float)?;
            self.next += 1;
        }
        let weights = self.checkpoint.layer(layer)?;
        let here = Layer::load(weights.clone(), config, layer, CHUNK, Isa::best().into())?;
        let activations = self.calibration.observe(&here, float, false)?;
        let LayerActivations { tokens, inputs } = self.shown.observe(&here, float, false)?;
        drop(here);
        let traces = quantize::trace(weights, activations, groups, &self.options, config, &self.pools)?;
        traces.iter().map(|trace| picture(layer, trace, &inputs[trace.group as usize], tokens, grid)).collect()
    }
}

/// The steps of `trace` on `x` `[tokens, K]`, an input that was not smoothed.
fn picture(layer: usize, trace: &GroupTrace, x: &[f32], tokens: usize, grid: Grid) -> Result<OutlierPoint, Error> {
    let found = &trace.transform;
    let k = found.channels;
    let mut steps = Vec::new();
    let mut x = x.to_vec();
    let mut show = |step: String, x: &[f32]| steps.push(magnitudes(step, x, tokens, k, grid));
    show("before smoothing".into(), &x);
    for token in x.chunks_exact_mut(k) {
        token.iter_mut().zip(&trace.smooth).for_each(|(x, s)| *x /= s);
    }
    show("after smoothing".into(), &x);
    for i in 0..found.rotation_count() {
        if i > 0 {
            let before = x.clone();
            for (to, from) in x.chunks_exact_mut(k).zip(before.chunks_exact(k)) {
                to.iter_mut().zip(found.permutation(i - 1)).for_each(|(x, &channel)| *x = from[channel as usize]);
            }
            show(if i == 1 { "after permutation".into() } else { format!("after permutation {i}") }, &x);
        }
        let rotations = found.rotation(i).to_vec();
        let hadamard = found.hadamard;
        let rotation = Transform { channels: k, block: found.block, rotations, hadamard, ..Transform::default() };
        transform::apply(&rotation, &mut x, tokens)?;
        show(format!("after rotation {}", i + 1), &x);
    }
    Ok(OutlierPoint { layer, group: trace.group.name().into(), channels: k, tokens, steps })
}

fn magnitudes(step: String, x: &[f32], tokens: usize, channels: usize, grid: Grid) -> Magnitudes {
    let mut all: Vec<f32> = x.iter().map(|x| x.abs()).collect();
    let max = all.iter().copied().fold(0.0, f32::max);
    let rows = grid.rows.clamp(1, tokens.max(1));
    let columns = grid.columns.clamp(1, channels.max(1));
    let mut pooled = vec![0.0_f32; rows * columns];
    for (token, values) in all.chunks_exact(channels.max(1)).enumerate() {
        let row = token * rows / tokens;
        for (channel, &value) in values.iter().enumerate() {
            let cell = &mut pooled[row * columns + channel * columns / channels];
            *cell = cell.max(value);
        }
    }
    pooled.iter_mut().for_each(|cell| *cell = short(*cell));
    let median = if all.is_empty() {
        0.0
    } else {
        let middle = all.len() / 2;
        *all.select_nth_unstable_by(middle, f32::total_cmp).1
    };
    Magnitudes { step, max, median, columns, grid: pooled }
}

/// To three significant digits: a picture needs no more, and a record of it is half as long.
fn short(x: f32) -> f32 {
    format!("{x:.2e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_keeps_the_largest_of_its_cells() {
        let (tokens, channels) = (6, 10);
        let mut x = vec![0.5_f32; tokens * channels];
        x[3 * channels + 7] = -9.0;
        let got = magnitudes("s".into(), &x, tokens, channels, Grid { rows: 3, columns: 4 });
        assert_eq!((got.max, got.median, got.columns), (9.0, 0.5, 4));
        let expected: Vec<f32> = (0..12).map(|cell| if cell == 4 + 2 { 9.0 } else { 0.5 }).collect();
        assert_eq!(got.grid, expected);
        let small = magnitudes("s".into(), &x[..2 * channels], 2, channels, Grid::default());
        assert_eq!((small.columns, small.grid.len()), (10, 20), "no more cells than there are values");
        assert_eq!(magnitudes("s".into(), &[], 0, 0, Grid::default()).max, 0.0);
    }

    #[test]
    fn three_digits_remain() {
        assert_eq!([0.0, 1234.5, 0.012_345, 1e-30].map(short), [0.0, 1230.0, 0.0123, 1e-30]);
    }
}
