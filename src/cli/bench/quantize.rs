//! `duquant bench quantize`

use super::sink::{OutArgs, Sink};
use crate::bench::{Machine, ModelShape, Points, QuantizeRun, Source, measure_quantize, preset};
use crate::checkpoint::{Checkpoint, Format};
use crate::cli::console::Console;
use crate::cli::quantize::ModeName;
use crate::cli::{parse, source};
use crate::model::Backend;
use crate::quantize::{self, Method, Mode, Options};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  duquant bench quantize model.gguf --methods rtn,quarot,duquant --mode paper --out quantize.json
  duquant bench quantize ./SmolLM2 --layers 4 --json
  duquant bench quantize llama2-7b --layers 2 --methods duquant --mode paper

Calibrates with random tokens, which take as long as any. With --layers the first ones alone are quantized; what all would
take is a setting of the record, extrapolated_seconds, and no measurement.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Hugging Face folder or GGUF file of a floating-point model, or the name of a well-known one for random weights:
    /// llama2-7b, llama2-13b, llama2-70b, llama3-8b, llama3-70b, mistral-7b
    #[arg(value_name = "MODEL|NAME")]
    model: PathBuf,
    /// Methods: rtn, smoothquant, quarot, duquant
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "rtn,quarot,duquant", value_parser = method)]
    methods: Vec<Method>,
    /// How DuQuant finds its rotations
    #[arg(long, value_enum, default_value_t = ModeName::Paper)]
    mode: ModeName,
    /// Quantize only so many layers from the front
    #[arg(long, value_name = "N", value_parser = parse::positive)]
    layers: Option<usize>,
    /// Calibration samples
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = parse::positive)]
    samples: usize,
    /// Tokens of a sample
    #[arg(long, value_name = "TOKENS", default_value = "2048", value_parser = parse::tokens)]
    length: usize,
    /// Seed of every random draw
    #[arg(long, default_value_t = 2)]
    seed: u64,
    #[command(flatten)]
    out: OutArgs,
}

fn method(name: &str) -> Result<Method, String> {
    let all = [Method::Rtn, Method::SmoothQuant, Method::QuaRot, Method::DuQuant];
    all.into_iter()
        .find(|method| method.name() == name)
        .ok_or_else(|| format!("expected some of {}", all.map(Method::name).join(", ")))
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let name = args.model.display().to_string();
    let checkpoint = match preset(&name) {
        Some(config) => Checkpoint::random(config, None, args.seed)?,
        None => source::open(&args.model)?,
    };
    if checkpoint.quantization().is_some() {
        return Err(quantize::Error::AlreadyQuantized).with_context(|| name);
    }
    let shape = ModelShape::of(&name, checkpoint.config());
    let all = shape.layers;
    let checkpoint = match args.layers {
        Some(layers) => checkpoint.first_layers(layers),
        None => checkpoint,
    };
    let samples = Source::random().samples(shape.vocabulary, args.samples, args.length, args.seed)?;
    let settings = BTreeMap::from([
        ("calibration".to_owned(), json!("random")),
        ("weights".to_owned(), json!(if checkpoint.format() == Format::Random { "random" } else { "of the model" })),
        ("samples".to_owned(), json!(args.samples)),
        ("length".to_owned(), json!(args.length)),
        ("mode".to_owned(), json!(Mode::from(args.mode).name())),
        ("seed".to_owned(), json!(args.seed)),
    ]);
    let machine = Machine::of(&Backend::default());
    let mut sink = Sink::new(&args.out, console, machine, Some(shape), settings, Points::Quantize(Vec::new()))?;
    let work = tempfile::Builder::new().prefix("duquant-bench-").tempdir().context("cannot make a temporary folder")?;
    for &method in &args.methods {
        let options = match method {
            Method::DuQuant => Options::duquant(args.mode.into()),
            other => Options::new(other),
        };
        let options = Options { seed: args.seed, ..options };
        console.note(format!("quantizing with {} ...", method.name()));
        let mut progress = console.progress("layer", checkpoint.config().layers);
        let run = measure_quantize(&checkpoint, &name, &samples, &options, work.path(), |_| progress.step(""));
        drop(progress);
        match run {
            Ok(run) => {
                console.note(format!("{}: {:.1} s", method.name(), run.point.seconds));
                keep(&mut sink, run, all)?;
            }
            Err(error) => sink.fail(method.name(), &error.into())?,
        }
    }
    sink.finish()
}

/// Keeps a point, and as a setting what all layers would take where some alone were quantized.
fn keep(sink: &mut Sink<'_>, run: QuantizeRun, all: usize) -> Result<()> {
    sink.update(|record| {
        if run.point.layers < all {
            let entry = record.settings.entry("extrapolated_seconds".to_owned()).or_insert_with(|| json!({}));
            if let Value::Object(seconds) = entry {
                seconds.insert(run.point.method.clone(), json!({"layers": all, "seconds": run.extrapolate(all)}));
            }
        }
        if let Points::Quantize(points) = &mut record.points {
            points.push(run.point);
        }
    })
}
