//! `duquant bench model`

use super::sink::{OutArgs, Sink};
use super::speed::{SpeedArgs, config};
use crate::bench::{self, Machine, ModelShape, Points, Weights, preset};
use crate::checkpoint::Checkpoint;
use crate::cli::backend::{self, BackendArgs};
use crate::cli::console::Console;
use crate::cli::error::Usage;
use crate::cli::source;
use anyhow::Result;
use std::path::Path;

const EXAMPLES: &str = "\
Examples:
  duquant bench model --model llama2-7b --length 512 --batch 1,2,3 --methods fp16,duquant
  duquant bench model --model SmolLM2.gguf --model ./w4a4 --phase decode --length 512

Models with weights are measured as they are, one point each; a preset or a config.json gets random weights, once for each method.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A preset (llama2-7b, ..) or config.json for random weights, or a model; several models are set beside each other
    #[arg(long, value_name = "NAME|PATH", required = true)]
    model: Vec<String>,
    /// Only so many layers of a model with random weights
    #[arg(long, value_name = "N", value_parser = crate::cli::parse::positive)]
    layers: Option<usize>,
    #[command(flatten)]
    speed: SpeedArgs,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    out: OutArgs,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let is_shape = |name: &String| preset(name).is_some() || Path::new(name).extension().is_some_and(|e| e == "json");
    let [first, others @ ..] = args.model.as_slice() else {
        return Err(Usage("--model: expected at least one model".into()).into());
    };
    let shapes = args.model.iter().filter(|name| is_shape(name)).count();
    if shapes > 0 && !others.is_empty() {
        return Err(Usage("--model: expected one preset or config.json, or models with weights".into()).into());
    }
    let mut shape = config(first)?;
    if shapes > 0 {
        shape.layers = args.layers.unwrap_or(shape.layers).min(shape.layers);
    }
    let checkpoints: Vec<Checkpoint> = if shapes > 0 {
        Vec::new()
    } else {
        args.model.iter().map(|path| source::open(Path::new(path))).collect::<Result<_>>()?
    };
    let backend = args.backend.open_fast()?;
    let options = args.speed.options(&backend);
    let settings = SpeedArgs::settings(&options);
    let machine = Machine::of(&backend);
    let shape_record = ModelShape::of(&args.model.join(", "), &shape);
    let mut sink = Sink::new(&args.out, console, machine, Some(shape_record), settings, Points::Model(Vec::new()))?;
    let weights = if shapes > 0 { Weights::Random(&shape) } else { Weights::Checkpoints(&checkpoints) };
    bench::model(&weights, &backend, &options, |event| sink.speed(event))?;
    backend::keep_kernels(&backend, console);
    sink.finish()
}
