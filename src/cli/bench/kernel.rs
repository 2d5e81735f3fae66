//! `duquant bench kernel`

use super::layer::{LayerArgs, Run};
use crate::bench::{self, Points};
use crate::cli::backend;
use crate::cli::console::Console;
use anyhow::Result;

const EXAMPLES: &str = "\
Examples:
  duquant bench kernel --model llama2-7b --phase prefill --length 512
  duquant bench kernel --model llama2-7b --phase decode --length 2048 --batch 1,16,64 --methods duquant";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    layer: LayerArgs,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let Run { config, backend, options, mut sink } = args.layer.start(console, Points::Kernel(Vec::new()))?;
    console.note("ceilings ...");
    let ceilings = bench::ceilings_of(&backend)?;
    sink.update(|record| record.ceilings = Some(ceilings))?;
    bench::kernel(&config, &backend, &options, Some(&ceilings), |event| {
        sink.event(event, |points, more| {
            if let Points::Kernel(points) = points {
                points.extend(more);
            }
        })
    })?;
    backend::keep_kernels(&backend, console);
    sink.finish()
}
