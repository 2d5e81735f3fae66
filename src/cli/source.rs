//! Checkpoints as the command line sees them: opened, described, loaded, written.

use super::backend;
use super::error::Usage;
use crate::checkpoint::{Checkpoint, FLOAT_BITS, Format, Quantization, Tokenizer, Writer};
use crate::model::{Backend, Model};
use crate::quantize::Report;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// Opens a checkpoint of any format.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    Checkpoint::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// The checkpoint's tokenizer.
pub(super) fn tokenizer(checkpoint: &Checkpoint, path: &Path) -> Result<Tokenizer> {
    checkpoint.tokenizer().with_context(|| format!("cannot read the tokenizer of {}", path.display()))
}

/// What every measurement says about the model it measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Facts {
    pub(super) model: String,
    pub(super) format: &'static str,
    pub(super) method: Option<String>,
    pub(super) weight_bits: u32,
    pub(super) activation_bits: u32,
    pub(super) kv_bits: u32,
    pub(super) file_bytes: u64,
    pub(super) layer_bytes: u64,
    pub(super) table_bytes: u64,
    pub(super) backend: &'static str,
    /// Instruction set of the processor, or name and driver of the device.
    pub(super) device: String,
    pub(super) kernels: Vec<String>,
    pub(super) threads: usize,
}

impl Facts {
    /// The model on half a line.
    pub(super) fn summary(&self) -> String {
        let precision = if self.method.is_none() {
            "floating point".to_owned()
        } else {
            format!("W{}A{}KV{}", self.weight_bits, self.activation_bits, self.kv_bits)
        };
        let method = self.method.as_deref().map_or_else(String::new, |method| format!(" by {method}"));
        format!("{precision}{method}, {} on {} threads", self.device, self.threads)
    }
}

/// The checkpoint's format in a word.
pub(super) fn format_name(checkpoint: &Checkpoint) -> &'static str {
    match checkpoint.format() {
        Format::HuggingFace => "huggingface",
        Format::Gguf => "gguf",
        Format::DuQuant => "duquant",
        Format::Random => "random",
    }
}

/// A model in memory.
pub(super) struct Loaded {
    pub(super) model: Model,
    pub(super) facts: Facts,
    pub(super) load_seconds: f64,
}

/// Loads a model onto a backend to run it.
pub(super) fn load(checkpoint: &Checkpoint, path: &Path, on: &Backend) -> Result<Loaded> {
    let clock = Instant::now();
    let (name, device) = backend::names(on);
    let model = Model::load_on(checkpoint, on).with_context(|| format!("cannot load {}", path.display()))?;
    let load_seconds = clock.elapsed().as_secs_f64();
    let quantization = checkpoint.quantization();
    let bits = |of: fn(&Quantization) -> u32| quantization.map_or(FLOAT_BITS, of);
    let facts = Facts {
        model: path.display().to_string(),
        format: format_name(checkpoint),
        method: quantization.map(|quantization| quantization.method.clone()),
        weight_bits: bits(|quantization| quantization.weight_bits),
        activation_bits: bits(|quantization| quantization.activation_bits),
        kv_bits: bits(|quantization| quantization.kv_bits),
        file_bytes: size_on_disk(path)?,
        layer_bytes: model.layer_bytes() as u64,
        table_bytes: model.table_bytes() as u64,
        backend: name,
        device,
        kernels: model.kernels(512),
        threads: rayon::current_num_threads(),
    };
    Ok(Loaded { model, facts, load_seconds })
}

/// Bytes of a file, or of the files of a folder.
pub(super) fn size_on_disk(path: &Path) -> Result<u64> {
    let read = || -> std::io::Result<u64> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_dir() {
            return Ok(metadata.len());
        }
        let mut sum = 0;
        for entry in std::fs::read_dir(path)? {
            let metadata = entry?.metadata()?;
            sum += if metadata.is_file() { metadata.len() } else { 0 };
        }
        Ok(sum)
    };
    read().with_context(|| format!("cannot measure {}", path.display()))
}

/// Refuses an output folder that could never be one, before anything is read.
pub(super) fn check_out(out: &Path) -> Result<()> {
    match out.file_name() {
        Some(_) => Ok(()),
        None => Err(Usage(format!("--out {}: expected the name of a new folder", out.display())).into()),
    }
}

/// Starts the folder of a quantized checkpoint.
pub(super) fn writer(
    out: &Path,
    overwrite: bool,
    checkpoint: &Checkpoint,
    quantization: &Quantization,
) -> Result<Writer> {
    let tokenizer = tokenizer(checkpoint, checkpoint.path())?.to_json()?;
    let (config, json) = (checkpoint.config(), checkpoint.config_json());
    let writer = Writer::create(out, config, json, quantization, &tokenizer, overwrite);
    writer.context(if overwrite {
        "--overwrite replaces quantized models only"
    } else {
        "cannot write the model (--overwrite replaces a quantized one)"
    })
}

/// What was measured while a checkpoint was quantized; nothing where it holds no report.
pub(super) fn report(checkpoint: &Checkpoint) -> Result<Option<Report>> {
    if checkpoint.quantization().is_none() {
        return Ok(None);
    }
    let path = checkpoint.path().join(Report::FILE);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let report = serde_json::from_slice(&bytes);
            Ok(Some(report.with_context(|| format!("{} is no report", path.display()))?))
        }
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(fault) => Err(fault).with_context(|| format!("cannot read {}", path.display())),
    }
}
