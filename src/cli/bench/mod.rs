//! `duquant bench`, one file a subcommand.

mod sink;

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
enum What {}

pub(super) fn run(args: &Args, _console: &Console) -> Result<()> {
    match args.what {}
}
