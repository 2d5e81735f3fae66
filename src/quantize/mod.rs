//! The layer-by-layer pipeline from a floating-point model to a W4A4 one.
//!
//! For each layer: run it on the calibration streams, smooth, find a transform for each group of linears, quantize the
//! transformed weights, write the layer, and move the streams behind it. One layer is in memory at a time.

mod error;
mod layer;
mod measure;
mod options;
mod report;
mod rounding;
mod smooth;
mod stages;
mod trace;

pub use error::Error;
pub use options::{Method, Mode, Options, Propagation, Rounding, Smoothing};
pub use report::{GroupReport, Report, StageTime};
pub use trace::{GroupTrace, trace};

use crate::calibrate::{Calibrator, LayerActivations, Samples};
use crate::checkpoint::{Checkpoint, Table, TableValues, Writer};
use crate::kernels::cpu::Isa;
use crate::model::cpu::Layer;
use crate::model::{CHUNK, KvQuantizer};
use crate::transform::RotationPools;
use layer::{Context, quantize_layer};
use stages::{Clock, Stage};
use std::time::Instant;

/// Quantizes `checkpoint` layer by layer into `writer` and finishes it. `samples` may be `None` for methods that measure
/// nothing ([`Options::needs_samples`]). `on_layer` sees each finished layer's reports.
///
/// # Errors
/// [`Error::AlreadyQuantized`], [`Error::NoSamples`], and whatever reading, searching or writing say. The writer is
/// dropped then and leaves nothing behind.
pub fn quantize(
    checkpoint: &Checkpoint,
    mut writer: Writer,
    samples: Option<&Samples>,
    options: &Options,
    mut on_layer: impl FnMut(usize, &[GroupReport]),
) -> Result<Report, Error> {
    if checkpoint.quantization().is_some() {
        return Err(Error::AlreadyQuantized);
    }
    if samples.is_none() && options.needs_samples() {
        return Err(Error::NoSamples { method: options.method.name() });
    }
    let started = Instant::now();
    let config = checkpoint.config();
    let pools = RotationPools::new();
    let clock = Clock::default();
    let context = Context::new(options, config, &pools, &clock)?;
    let quantized_kv = KvQuantizer { key: options.key()?, value: options.value()? };
    let start = || samples.map(|samples| Calibrator::new(checkpoint, samples)).transpose();
    let mut calibrator = clock.time(Stage::Read, start)?;
    let mut report = Report::default();
    let quantized_streams = options.propagation == Propagation::Quantized;
    for index in 0..config.layers {
        let at = |source: Error| Error::Layer { layer: index, source: Box::new(source) };
        let weights = clock.time(Stage::Read, || checkpoint.layer(index))?;
        let calibrating = clock.enter(Stage::Calibrate);
        let activations = match &mut calibrator {
            Some(calibrator) => {
                let float = Layer::load(weights.clone(), config, index, CHUNK, Isa::best().into())?;
                calibrator.observe(&float, KvQuantizer::default(), !quantized_streams)?
            }
            None => LayerActivations::default(),
        };
        drop(calibrating);
        let (quantized, reports) = quantize_layer(weights, activations, &context).map_err(at)?;
        clock.time(Stage::Write, || writer.layer(index, &quantized))?;
        if let Some(calibrator) = calibrator.as_mut().filter(|_| quantized_streams) {
            let _stage = clock.enter(Stage::Calibrate);
            let layer = Layer::load(quantized, config, index, CHUNK, Isa::best().into())?;
            calibrator.advance(&layer, quantized_kv)?;
        }
        on_layer(index, &reports);
        report.layers.push(reports);
    }
    let writing = clock.enter(Stage::Write);
    writer.attach(Report::FILE, &report.record())?;
    let head = checkpoint.head()?.map(halve);
    writer.finish(&halve(checkpoint.embedding()?), head.as_ref(), &checkpoint.final_norm()?)?;
    drop(writing);
    report.calibration_seconds = clock.seconds(Stage::Read) + clock.seconds(Stage::Calibrate);
    report.search_seconds = clock.seconds(Stage::Smooth) + clock.section_seconds();
    report.writing_seconds = clock.seconds(Stage::Write);
    report.stages = clock.stages();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// A table of `f32` as `f16`, so that the embedding does not outweigh the 4-bit layers: 11 bits of precision are far above
/// what the layers keep. Stays as it is where a value would leave `f16`'s normal range.
fn halve(table: Table) -> Table {
    let TableValues::F32(values) = &table.values else { return table };
    if !values.iter().all(|&x| x == 0.0 || (6.103_515_6e-5..=65504.0).contains(&x.abs())) {
        return table;
    }
    let values = TableValues::F16(values.iter().map(|&x| half::f16::from_f32(x)).collect());
    Table { values, ..table }
}
