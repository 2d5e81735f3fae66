//! `duquant inspect`

use super::console::Console;
use super::outliers::{self, GroupOutliers};
use super::{memory, source, text};
use crate::calibrate::Samples;
use crate::checkpoint::{Checkpoint, Config, TensorInfo};
use crate::quantize::Report;
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  duquant inspect model.gguf                 configuration, tensors, and the outliers of its activations
  duquant inspect ./w4a4                     how it was quantized, and the error of each group of linears
  duquant inspect ./w4a4 --verify --tensors  hash checked, every tensor listed";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Hugging Face folder, GGUF file or quantized folder
    model: PathBuf,
    /// Tokens of text to measure the outliers of a floating-point model on; 0 for none
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u32).range(0..=8192))]
    tokens: u32,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Read everything and check it against the recorded hash
    #[arg(long)]
    verify: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Output {
    model: String,
    format: &'static str,
    file_bytes: u64,
    config: ConfigFacts,
    quantization: Option<serde_json::Value>,
    tensors: Tensors,
    verified: Option<bool>,
    /// What was measured while it was quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outliers: Option<Vec<GroupOutliers>>,
    peak_bytes: Option<u64>,
}

#[derive(Serialize)]
struct ConfigFacts {
    model_type: String,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    max_positions: usize,
    rope_theta: f64,
    tied_embeddings: bool,
}

#[derive(Serialize)]
struct Tensors {
    count: usize,
    bytes: u64,
    bytes_by_dtype: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    list: Option<Vec<TensorFacts>>,
}

#[derive(Serialize)]
struct TensorFacts {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: u64,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let checkpoint = source::open(&args.model)?;
    let verified = if args.verify {
        checkpoint.verify().with_context(|| format!("{} is damaged", args.model.display()))?;
        Some(true)
    } else {
        None
    };
    let report = source::report(&checkpoint)?;
    let quantized = checkpoint.quantization().is_some();
    let outliers = if quantized || args.tokens == 0 { None } else { Some(outliers(args, &checkpoint, console)?) };
    let output = Output {
        model: args.model.display().to_string(),
        format: source::format_name(&checkpoint),
        file_bytes: source::size_on_disk(&args.model)?,
        config: config(checkpoint.config()),
        quantization: checkpoint.quantization().map(serde_json::to_value).transpose()?,
        tensors: tensors(&checkpoint.tensors().collect::<Vec<_>>(), args.tensors),
        verified,
        mean_error: report.as_ref().map(Report::mean_error),
        report,
        outliers,
        peak_bytes: memory::peak_bytes(),
    };
    console.result(&output, || describe(&output))
}

fn outliers(args: &Args, checkpoint: &Checkpoint, console: &Console) -> Result<Vec<GroupOutliers>> {
    let length = args.tokens as usize;
    let samples = match source::tokenizer(checkpoint, &args.model) {
        Ok(tokenizer) => {
            let tokens = text::tokenize(&tokenizer, text::EVALUATION, text::BUNDLED)?;
            Samples::from_tokens(tokens, 1, length)?
        }
        Err(fault) => {
            console.note(format!("{}; measuring on random tokens", super::error::line(&fault)));
            Samples::random(checkpoint.config().vocabulary, 1, length, 0)?
        }
    };
    let mut progress = console.progress("layer", checkpoint.config().layers);
    outliers::measure(checkpoint, &samples, |_| progress.step(""))
        .with_context(|| format!("cannot run {}", args.model.display()))
}

fn config(config: &Config) -> ConfigFacts {
    ConfigFacts {
        model_type: config.model_type.clone(),
        hidden: config.hidden,
        intermediate: config.intermediate,
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        vocabulary: config.vocabulary,
        max_positions: config.max_positions,
        rope_theta: config.rope_theta,
        tied_embeddings: config.tied_embeddings,
    }
}

fn tensors(infos: &[TensorInfo], listed: bool) -> Tensors {
    let mut bytes_by_dtype = BTreeMap::new();
    for info in infos {
        *bytes_by_dtype.entry(info.dtype.clone()).or_insert(0) += info.bytes as u64;
    }
    let facts = |info: &TensorInfo| TensorFacts {
        name: info.name.clone(),
        dtype: info.dtype.clone(),
        shape: info.shape.clone(),
        bytes: info.bytes as u64,
    };
    Tensors {
        count: infos.len(),
        bytes: infos.iter().map(|info| info.bytes as u64).sum(),
        bytes_by_dtype,
        list: listed.then(|| infos.iter().map(facts).collect()),
    }
}

fn describe(output: &Output) -> String {
    let config = &output.config;
    let mut lines = vec![
        format!("{}: {}, {}", output.model, output.format, text::bytes(output.file_bytes)),
        format!(
            "{}: {} layers, hidden {}, intermediate {}, {} heads over {} key-value heads of {}, vocabulary {}{}",
            config.model_type,
            config.layers,
            config.hidden,
            config.intermediate,
            config.heads,
            config.kv_heads,
            config.head_dim,
            config.vocabulary,
            if config.tied_embeddings { ", tied embeddings" } else { "" }
        ),
    ];
    let dtypes = output.tensors.bytes_by_dtype.iter().map(|(dtype, bytes)| format!("{dtype} {}", text::bytes(*bytes)));
    lines.push(format!("{} tensors: {}", output.tensors.count, dtypes.collect::<Vec<_>>().join(", ")));
    if output.verified == Some(true) {
        lines.push("the hash is right".into());
    }
    if let Some(serde_json::Value::Object(quantization)) = &output.quantization {
        let parts = quantization.iter().map(|(key, value)| format!("{key} {value}"));
        lines.push(format!("quantized: {}", parts.collect::<Vec<_>>().join(", ")));
    }
    for tensor in output.tensors.list.iter().flatten() {
        lines.push(format!("  {} {} {:?} {}", tensor.name, tensor.dtype, tensor.shape, text::bytes(tensor.bytes)));
    }
    if let Some(report) = &output.report {
        lines.push("layer  group    rotation   output error   max |x|   behind the transform".into());
        for (layer, group) in
            report.layers.iter().enumerate().flat_map(|(i, groups)| groups.iter().map(move |g| (i, g)))
        {
            lines.push(format!(
                "{layer:>5}  {:<8} {:<9} {:>13.5} {:>9.2} {:>22.2}",
                group.group, group.rotation, group.output_error, group.input_max, group.transformed_max
            ));
        }
        lines.push(format!("mean output error {:.5}", report.mean_error()));
    }
    if let Some(outliers) = &output.outliers {
        lines
            .push("layer  group      max |x|   median   tokens above max/2   channels above 6 x the median one".into());
        for group in outliers {
            lines.push(format!(
                "{:>5}  {:<8} {:>9.2} {:>8.4} {:>20} {:>35}",
                group.layer, group.group, group.max, group.median, group.tokens_above_half_max, group.outlier_channels
            ));
        }
    }
    lines.join("\n")
}
