//! Flags that `layer` and `model` share.

use crate::bench::{Bits, Method, Phase, SpeedOptions, preset};
use crate::checkpoint::{Config, parse_config};
use crate::cli::{parse, source};
use crate::model::Backend;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::collections::BTreeMap;
use std::path::Path;

/// Phases to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PhaseName {
    Prefill,
    Decode,
    Both,
}

#[derive(clap::Args)]
pub(super) struct SpeedArgs {
    /// All tokens of the prompts at once, or one token a sequence behind a context
    #[arg(long, value_enum, default_value_t = PhaseName::Both)]
    phase: PhaseName,
    /// Tokens of each sequence: of its prompt in prefill, of its context in decode
    #[arg(long, value_name = "TOKENS", default_value = "2048", value_parser = parse::tokens)]
    length: usize,
    /// Sequences; a list measures one point each
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1", value_parser = parse::batch)]
    batch: Vec<usize>,
    /// Steps of decoding, each a sample
    #[arg(long, value_name = "N", default_value = "128", value_parser = parse::tokens)]
    steps: usize,
    /// Samples of a prefill, each with a fresh load in a layer on the CPU
    #[arg(long, value_name = "N", default_value = "7", value_parser = parse::positive)]
    samples: usize,
    /// fp32, fp16, bf16, rtn, quarot, duquant0, duquant, duquant2; the floating-point one is the baseline
    /// [default: fp32 (fp16 on GPUs that have it), rtn, duquant]
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = method)]
    methods: Vec<Method>,
    /// Bits of weights and activations: W4A4, W4A8, W8A8; keys and values have those of activations
    #[arg(long, value_name = "BITS,..", value_delimiter = ',', default_value = "W4A4", value_parser = Bits::parse)]
    bits: Vec<Bits>,
    /// Seed of weights and activations
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl SpeedArgs {
    pub(super) fn options(&self, backend: &Backend) -> SpeedOptions {
        let phases = match self.phase {
            PhaseName::Prefill => vec![Phase::Prefill],
            PhaseName::Decode => vec![Phase::Decode],
            PhaseName::Both => vec![Phase::Prefill, Phase::Decode],
        };
        let methods = if self.methods.is_empty() {
            vec![Method::Float(Method::baseline(backend)), Method::Rtn, Method::DuQuant(1)]
        } else {
            self.methods.clone()
        };
        SpeedOptions {
            phases,
            batches: self.batch.clone(),
            length: self.length,
            steps: self.steps,
            samples: self.samples,
            methods,
            bits: self.bits.clone(),
            seed: self.seed,
        }
    }

    pub(super) fn settings(options: &SpeedOptions) -> BTreeMap<String, serde_json::Value> {
        let names: Vec<_> = options.methods.iter().map(|method| method.name()).collect();
        let bits: Vec<_> = options.bits.iter().map(|bits| bits.name()).collect();
        BTreeMap::from([
            ("length".to_owned(), options.length.into()),
            ("steps".to_owned(), options.steps.into()),
            ("samples".to_owned(), options.samples.into()),
            ("batches".to_owned(), options.batches.clone().into()),
            ("methods".to_owned(), names.into()),
            ("bits".to_owned(), bits.into()),
            ("seed".to_owned(), options.seed.into()),
        ])
    }
}

fn method(name: &str) -> Result<Method, String> {
    Method::parse(name).ok_or_else(|| format!("expected one of {}", Method::NAMES.join(", ")))
}

/// The shape that a name or a path stands for.
pub(super) fn config(name: &str) -> Result<Config> {
    if let Some(config) = preset(name) {
        return Ok(config);
    }
    let path = Path::new(name);
    if !path.exists() {
        bail!(
            "unknown model {name}: expected {}, or the path of a config.json or of a model",
            crate::bench::PRESETS.join(", ")
        );
    }
    if path.extension().is_some_and(|extension| extension == "json") {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
        return Ok(parse_config(path, &bytes)?);
    }
    Ok(source::open(path)?.config().clone())
}
