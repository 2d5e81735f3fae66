//! `duquant bench kernel`

use super::sink::{OutArgs, Sink};
use super::speed::{SpeedArgs, config};
use crate::bench::{self, Machine, ModelShape, Points};
use crate::cli::backend::{self, BackendArgs};
use crate::cli::console::Console;
use anyhow::Result;

const EXAMPLES: &str = "\
Examples:
  duquant bench kernel --model llama2-7b --phase prefill --length 512
  duquant bench kernel --model llama2-7b --phase decode --length 2048 --batch 1,16,64 --methods duquant";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// llama2-7b, .., or a config.json or model: its layer gives the shapes of the kernels
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
    let machine = Machine::of(&backend);
    let mut sink = Sink::new(&args.out, console, machine, Some(shape), settings, Points::Kernel(Vec::new()))?;
    console.note("ceilings ...");
    let ceilings = bench::ceilings_of(&backend)?;
    sink.update(|record| record.ceilings = ceilings)?;
    bench::kernel(&config, &backend, &options, ceilings.as_ref(), |event| {
        sink.event(event, |points, more| {
            if let Points::Kernel(points) = points {
                points.extend(more);
            }
        })
    })?;
    backend::keep_kernels(&backend, console);
    sink.finish()
}
