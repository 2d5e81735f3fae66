//! `duquant bench`, one file a subcommand.

mod kernel;
mod layer;
mod model;
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
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    match &args.what {
        What::Layer(args) => layer::run(args, console),
        What::Kernel(args) => kernel::run(args, console),
        What::Model(args) => model::run(args, console),
    }
}
