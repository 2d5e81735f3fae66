//! `duquant bench layer`

use super::sink::{OutArgs, Sink};
use super::speed::{SpeedArgs, config};
use crate::bench::{self, Machine, ModelShape, Points};
use crate::cli::backend::{self, BackendArgs};
use crate::cli::console::Console;
use anyhow::Result;

const EXAMPLES: &str = "\
Examples:
  duquant bench layer --model llama2-7b --length 512 --batch 1,4,16
  duquant bench layer --model llama2-7b --phase decode --batch 1,16,64 --methods fp32,rtn,quarot,duquant,duquant2
  duquant bench layer --model config.json --bits W4A4,W4A8 --backend cuda --out layer.json";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// llama2-7b, llama2-13b, llama2-70b, llama3-8b, llama3-70b, mistral-7b, or a config.json or model to take the shape of
    #[arg(long, value_name = "NAME|PATH")]
    model: String,
    #[command(flatten)]
    speed: SpeedArgs,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    out: OutArgs,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let config = config(&args.model)?;
    let backend = args.backend.open_fast()?;
    let options = args.speed.options(&backend);
    let settings = SpeedArgs::settings(&options);
    let shape = ModelShape::of(&args.model, &config);
    let mut sink =
        Sink::new(&args.out, console, Machine::of(&backend), Some(shape), settings, Points::Layer(Vec::new()))?;
    bench::layer(&config, &backend, &options, |event| sink.speed(event))?;
    backend::keep_kernels(&backend, console);
    sink.finish()
}
