//! `duquant bench`, one file a subcommand.

mod ablate;
mod calibration;
mod kernel;
mod layer;
mod model;
mod outliers;
mod quantize;
mod sink;
mod speed;

use super::console::Console;
use anyhow::Result;
use clap::Subcommand;

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One decoder layer: prefill and decode, method beside method
    Layer(layer::Args),
    /// Every kernel of a layer, beside what the machine can do at most
    Kernel(kernel::Args),
    /// All layers, end to end: prefill, decode and memory
    Model(model::Args),
    /// Measure the perplexity of the paper's ablations
    Ablate(Box<ablate::Args>),
    /// Show the outliers of a linear's input along its transform
    Outliers(outliers::Args),
    /// Measure how long quantization takes, and how much memory
    Quantize(quantize::Args),
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    match &args.what {
        What::Layer(args) => layer::run(args, console),
        What::Kernel(args) => kernel::run(args, console),
        What::Model(args) => model::run(args, console),
        What::Ablate(args) => ablate::run(args, console),
        What::Outliers(args) => outliers::run(args, console),
        What::Quantize(args) => quantize::run(args, console),
    }
}
