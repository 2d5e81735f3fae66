//! The paper's ablations on a model at hand: quantize with one thing changed, evaluate, compare.

mod tables;

pub use tables::{Base, Row, Table, rows};

use super::record::AblationPoint;
use crate::calibrate::{Calibrator, Samples};
use crate::checkpoint::{Checkpoint, Group, Writer};
use crate::eval::{self, PerplexityOptions};
use crate::kernels::Transform;
use crate::kernels::cpu::Isa;
use crate::model::cpu::Layer;
use crate::model::{Backend, CHUNK, KvQuantizer, Model};
use crate::quantize::{self, Options, quantize};
use crate::transform::{self, RotationPools};
use std::path::PathBuf;
use std::sync::Arc;

/// Where calibration tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What reports call it.
    pub name: String,
    /// A tokenized text; `None` for tokens drawn at random.
    pub tokens: Option<Arc<[u32]>>,
}

impl Source {
    /// Tokens drawn at random from the vocabulary (table E18).
    #[must_use]
    pub fn random() -> Self {
        Self { name: "random".into(), tokens: None }
    }

    /// How many samples of `length` tokens it holds; `None` for as many as one likes.
    #[must_use]
    pub fn holds(&self, length: usize) -> Option<usize> {
        self.tokens.as_ref().map(|tokens| tokens.len().checked_div(length).unwrap_or(0))
    }

    /// `samples` of `length` tokens.
    ///
    /// # Errors
    /// As [`Samples::from_tokens`] and [`Samples::random`].
    pub fn samples(
        &self,
        vocabulary: usize,
        samples: usize,
        length: usize,
        seed: u64,
    ) -> Result<Samples, quantize::Error> {
        Ok(match &self.tokens {
            Some(tokens) => Samples::from_tokens(tokens.to_vec(), samples, length)?,
            None => Samples::random(vocabulary, samples, length, seed)?,
        })
    }
}

/// Why a row has no perplexity.
#[derive(Debug, thiserror::Error)]
pub enum AblationError {
    /// The model could not be quantized.
    #[error(transparent)]
    Quantize(#[from] quantize::Error),
    /// It could not be evaluated.
    #[error(transparent)]
    Evaluate(#[from] eval::Error),
    /// Another table has the same row, which failed.
    #[error("{0}")]
    Before(String),
}

/// What an ablation is run on.
#[derive(Clone)]
pub struct AblationOptions {
    /// Folder for quantized checkpoints, one at a time; each is removed when it was evaluated.
    pub work: PathBuf,
    /// What evaluates; calibration and quantization are the processor's.
    pub backend: Backend,
    /// Windows of the text.
    pub windows: PerplexityOptions,
    /// Tokens of a calibration sample.
    pub length: usize,
}

/// The ablations of one model on one text. Each setting is quantized and evaluated once, however many tables have it.
pub struct Ablation<'a> {
    checkpoint: &'a Checkpoint,
    text: &'a [u32],
    options: AblationOptions,
    baseline: f64,
    done: Vec<(Key, Result<Measured, String>)>,
}

/// What decides a row's result.
#[derive(Debug, Clone, PartialEq)]
struct Key {
    options: Options,
    source: Source,
    samples: usize,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    perplexity: f64,
    seconds: f64,
}

impl<'a> Ablation<'a> {
    /// Evaluates the floating-point model.
    ///
    /// # Errors
    /// [`AblationError::Quantize`] of [`quantize::Error::AlreadyQuantized`], [`AblationError::Evaluate`].
    pub fn new(checkpoint: &'a Checkpoint, text: &'a [u32], options: AblationOptions) -> Result<Self, AblationError> {
        if checkpoint.quantization().is_some() {
            return Err(quantize::Error::AlreadyQuantized.into());
        }
        let baseline = perplexity(checkpoint, text, &options)?;
        Ok(Self { checkpoint, text, options, baseline, done: Vec::new() })
    }

    /// Perplexity of the floating-point model.
    #[must_use]
    pub fn baseline(&self) -> f64 {
        self.baseline
    }

    /// Quantizes and evaluates a row, or takes what another table's row with the same settings gave.
    ///
    /// # Errors
    /// [`AblationError`]; the next row may well do.
    pub fn measure(&mut self, row: &Row) -> Result<AblationPoint, AblationError> {
        let key = Key { options: row.options.clone(), source: row.source.clone(), samples: row.samples };
        let known = self.done.iter().find(|(done, _)| *done == key).map(|(_, measured)| measured.clone());
        let measured = match known {
            Some(measured) => measured.map_err(AblationError::Before)?,
            None => {
                let measured = self.run(row);
                self.done.push((key, measured.as_ref().copied().map_err(ToString::to_string)));
                measured?
            }
        };
        let variance = if row.variance { Some(self.variance(row)?) } else { None };
        Ok(AblationPoint {
            table: row.table.name().into(),
            paper: row.table.paper().into(),
            row: row.words.clone(),
            settings: row.settings.clone(),
            perplexity: Some(measured.perplexity).filter(|perplexity| perplexity.is_finite()),
            baseline: self.baseline,
            seconds: measured.seconds,
            variance,
            paper_perplexity: row.paper,
        })
    }

    fn samples(&self, row: &Row) -> Result<Samples, quantize::Error> {
        let vocabulary = self.checkpoint.config().vocabulary;
        row.source.samples(vocabulary, row.samples, self.options.length, row.options.seed)
    }

    fn run(&self, row: &Row) -> Result<Measured, AblationError> {
        let samples = self.samples(row)?;
        let out = self.options.work.join("row");
        let measured = self.quantize_to(&out, row, &samples);
        // What is left is removed with the folder around it.
        let _ = std::fs::remove_dir_all(&out);
        measured
    }

    fn quantize_to(&self, out: &std::path::Path, row: &Row, samples: &Samples) -> Result<Measured, AblationError> {
        let checkpoint = self.checkpoint;
        let record = row.options.quantization(&row.source.name).map_err(quantize::Error::from)?;
        let tokenizer = checkpoint.tokenizer().and_then(|tokenizer| tokenizer.to_json());
        let tokenizer = tokenizer.map_err(quantize::Error::from)?;
        let (config, json) = (checkpoint.config(), checkpoint.config_json());
        let writer = Writer::create(out, config, json, &record, &tokenizer, false).map_err(quantize::Error::from)?;
        let report = quantize(checkpoint, writer, Some(samples), &row.options, |_, _| ())?;
        let quantized = Checkpoint::open(out).map_err(quantize::Error::from)?;
        Ok(Measured { perplexity: perplexity(&quantized, self.text, &self.options)?, seconds: report.seconds })
    }

    /// Variance over the blocks of their mean outlier at the query projection of the first layer (eq. 4), behind the first
    /// rotation and the row's permutation.
    fn variance(&self, row: &Row) -> Result<f64, quantize::Error> {
        let (checkpoint, config) = (self.checkpoint, self.checkpoint.config());
        let weights = checkpoint.layer(0)?;
        let layer = Layer::load(weights.clone(), config, 0, CHUNK, Isa::best().into())?;
        let samples = self.samples(row)?;
        let activations = Calibrator::new(checkpoint, &samples)?.observe(&layer, KvQuantizer::default(), false)?;
        drop(layer);
        let pools = RotationPools::new();
        let traces = quantize::trace(weights, activations, &[Group::Qkv], &row.options, config, &pools)?;
        let Some(trace) = traces.into_iter().next() else {
            return Err(quantize::Error::Internal("one group was asked for"));
        };
        variance(&trace)
    }
}

/// Eq. 4 of a group's input behind its first rotation and its first permutation, or behind the rotation alone.
fn variance(trace: &quantize::GroupTrace) -> Result<f64, quantize::Error> {
    let found = &trace.transform;
    let k = found.channels;
    let tokens = tokens_of(trace);
    let mut x = trace.input.clone();
    let block = if found.rotation_count() == 0 { k } else { found.block };
    if found.rotation_count() > 0 {
        let rotations = found.rotation(0).to_vec();
        let first = Transform { channels: k, block, rotations, hadamard: found.hadamard, ..Transform::default() };
        transform::apply(&first, &mut x, tokens)?;
    }
    let outliers = transform::channel_max(&x, tokens, k)?;
    let permutation: Vec<u32> =
        if found.permutation_count() > 0 { found.permutation(0).to_vec() } else { (0..k as u32).collect() };
    Ok(transform::block_variance(&outliers, &permutation, block)?)
}

fn tokens_of(trace: &quantize::GroupTrace) -> usize {
    trace.input.len().checked_div(trace.transform.channels).unwrap_or(0)
}

fn perplexity(checkpoint: &Checkpoint, text: &[u32], options: &AblationOptions) -> Result<f64, AblationError> {
    let model = Model::load_on(checkpoint, &options.backend).map_err(eval::Error::from)?;
    Ok(eval::perplexity(&model, text, &options.windows, |_, _| ())?.perplexity)
}
