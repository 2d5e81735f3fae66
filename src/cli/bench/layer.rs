//! `duquant bench layer`

use super::sink::{OutArgs, Sink};
use super::speed::{SpeedArgs, config};
use crate::bench::{self, Machine, ModelShape, Points, SpeedOptions};
use crate::checkpoint::Config;
use crate::cli::backend::{self, BackendArgs};
use crate::cli::console::Console;
use crate::model::Backend;
use anyhow::Result;

const EXAMPLES: &str = "\
Examples:
  duquant bench layer --model llama2-7b --length 512 --batch 1,4,16
  duquant bench layer --model llama2-7b --phase decode --batch 1,16,64 --methods fp32,rtn,quarot,duquant,duquant2
  duquant bench layer --model config.json --bits W4A4,W4A8 --backend cuda --out layer.json";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    layer: LayerArgs,
}

/// Flags of the subcommands that measure one layer of a shape.
#[derive(clap::Args)]
pub(super) struct LayerArgs {
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

/// What is measured, on what, and where it goes.
pub(super) struct Run<'a> {
    pub(super) config: Config,
    pub(super) backend: Backend,
    pub(super) options: SpeedOptions,
    pub(super) sink: Sink<'a>,
}

impl LayerArgs {
    /// Opens the backend and starts the record.
    pub(super) fn start<'a>(&self, console: &'a Console, points: Points) -> Result<Run<'a>> {
        let config = config(&self.model)?;
        let backend = self.backend.open_fast()?;
        let options = self.speed.options(&backend);
        let settings = SpeedArgs::settings(&options);
        let shape = ModelShape::of(&self.model, &config);
        let sink = Sink::new(&self.out, console, Machine::of(&backend), Some(shape), settings, points)?;
        Ok(Run { config, backend, options, sink })
    }
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let Run { config, backend, options, mut sink } = args.layer.start(console, Points::Layer(Vec::new()))?;
    bench::layer(&config, &backend, &options, |event| sink.speed(event))?;
    backend::keep_kernels(&backend, console);
    sink.finish()
}
