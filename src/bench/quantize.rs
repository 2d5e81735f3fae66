//! How long quantization takes, stage by stage, and how much memory (table 12, F24).

use super::machine::{forget_peak, peak_resident_bytes};
use super::record::{QuantizePoint, Stage};
use super::times::Watch;
use crate::calibrate::Samples;
use crate::checkpoint::{Checkpoint, Writer};
use crate::quantize::{Error, Method, Options, quantize};
use std::path::Path;
use std::time::{Duration, Instant};

/// A measured quantization.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeRun {
    /// What was measured.
    pub point: QuantizePoint,
    /// Mean time of the layers behind the first, which also makes the random draws; of the first where there is one alone.
    pub layer_seconds: f64,
}

impl QuantizeRun {
    /// What `layers` layers would take, going by the ones that were measured: not a measurement.
    #[must_use]
    pub fn extrapolate(&self, layers: usize) -> f64 {
        self.point.seconds + layers.saturating_sub(self.point.layers) as f64 * self.layer_seconds
    }
}

/// Quantizes `checkpoint`, called `name`, into `work` and removes the result. `on_layer` hears each finished layer.
///
/// # Errors
/// As [`quantize`].
pub fn measure_quantize(
    checkpoint: &Checkpoint,
    name: &str,
    samples: &Samples,
    options: &Options,
    work: &Path,
    mut on_layer: impl FnMut(usize),
) -> Result<QuantizeRun, Error> {
    let out = work.join(options.method.name());
    let config = checkpoint.config();
    // Nobody reads the result, so that a model without a tokenizer will do.
    let writer =
        Writer::create(&out, config, checkpoint.config_json(), &options.quantization("random")?, b"{}", false)?;
    let samples = options.needs_samples().then_some(samples);
    forget_peak();
    let watch = Watch::start();
    let began = Instant::now();
    let mut ends: Vec<Duration> = Vec::with_capacity(config.layers);
    let report = quantize(checkpoint, writer, samples, options, |layer, _| {
        ends.push(began.elapsed());
        on_layer(layer);
    });
    let peak_bytes = peak_resident_bytes();
    let noise = watch.noise();
    let _ = std::fs::remove_dir_all(&out);
    let report = report?;
    let mut stages: Vec<_> =
        report.stages.into_iter().map(|stage| Stage { name: stage.name, seconds: stage.seconds }).collect();
    let rest = report.seconds - stages.iter().map(|stage| stage.seconds).sum::<f64>();
    stages.push(Stage { name: "rest".into(), seconds: rest.max(0.0) });
    let duquant = options.method == Method::DuQuant;
    let point = QuantizePoint {
        model: name.into(),
        method: options.method.name().into(),
        mode: if duquant { options.mode.name() } else { "none" }.into(),
        bits: format!("W{}A{}", options.weight_bits, options.activation_bits),
        tokens: samples.map_or(0, Samples::tokens),
        layers: config.layers,
        seconds: report.seconds,
        stages,
        peak_bytes,
        noise,
    };
    let layer_seconds = match ends.as_slice() {
        [] => 0.0,
        [only] => only.as_secs_f64(),
        [first, .., last] => (*last - *first).as_secs_f64() / (ends.len() - 1) as f64,
    };
    Ok(QuantizeRun { point, layer_seconds })
}
