//! The tiny model through the whole pipeline in this process.

use super::common::Tiny;
use duquant::calibrate::Samples;
use duquant::checkpoint::{Checkpoint, Writer};
use duquant::quantize::{Method, Options, Report, quantize};
use std::path::Path;

/// Writes the tiny model into `folder` with the outliers of a real one: a few channels that every norm raises.
pub(crate) fn tiny(folder: &Path) -> Checkpoint {
    with_outliers(folder, &Tiny { layers: 2, hidden: 96, intermediate: 160, heads: 6, kv_heads: 2, head_dim: 16 })
}

/// Writes a model of another shape.
pub(crate) fn with_outliers(folder: &Path, tiny: &Tiny) -> Checkpoint {
    let mut tensors = tiny.tensors();
    for (name, (_, values)) in &mut tensors {
        if name.ends_with("layernorm.weight") {
            for (channel, value) in values.iter_mut().enumerate() {
                *value = if channel % 29 == 3 { 9.0 } else { 0.5 + 0.1 * (channel % 7) as f32 };
            }
        }
    }
    tiny.write_with(&folder.join("tiny"), &tensors);
    Checkpoint::open(&folder.join("tiny")).unwrap()
}

/// DuQuant with blocks that leave two sizes (32 of 96 channels and of 160), and few steps.
pub(crate) fn options() -> Options {
    Options { block: 32, steps: 24, ..Options::new(Method::DuQuant) }
}

/// Quantizes `checkpoint` on random tokens into `out` and opens what was written.
pub(crate) fn quantized(checkpoint: &Checkpoint, out: &Path, options: &Options) -> (Checkpoint, Report) {
    let samples = Samples::random(checkpoint.config().vocabulary, 3, 48, 11).unwrap();
    let record = options.quantization("random").unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap().to_json().unwrap();
    let (config, json) = (checkpoint.config(), checkpoint.config_json());
    let writer = Writer::create(out, config, json, &record, &tokenizer, false).unwrap();
    let report = quantize(checkpoint, writer, Some(&samples), options, |_, _| ()).unwrap();
    (Checkpoint::open(out).unwrap(), report)
}
