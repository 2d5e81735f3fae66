//! The command line, one file a subcommand.
//!
//! Standard output carries the result alone, one JSON object with `--json`; progress, notes and errors go to standard
//! error. Exit status: 0 done, 1 failed, 2 wrong usage.

mod backend;
mod bench;
mod cache;
mod console;
mod demo;
mod error;
mod eval;
mod export;
mod generate;
mod inspect;
mod memory;
mod outliers;
mod parse;
mod quantize;
mod report;
mod source;
mod text;

use clap::{Parser, Subcommand};
use console::Console;
use std::ffi::OsString;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  duquant demo                                            the whole story on a small real model
  duquant quantize ./SmolLM2-135M --out ./SmolLM2-w4a4    a DuQuant W4A4 checkpoint
  duquant eval ./SmolLM2-w4a4 --text wiki.test.raw        its perplexity
  duquant generate ./SmolLM2-w4a4 --prompt 'Once upon'    some text

MODEL is a Hugging Face folder, a GGUF file or a folder that `duquant quantize` wrote.
Exit status: 0 done, 1 failed, 2 wrong usage.";

/// Quantize LLaMA models to 4-bit weights and activations after DuQuant, and run them.
#[derive(Parser)]
#[command(name = "duquant", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object on standard output and nothing else
    #[arg(long, global = true)]
    json: bool,
    /// Print nothing but results and errors
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Threads to use; all cores unless given. Results do not depend on it
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

#[derive(Subcommand)]
enum Command {
    /// Write a quantized checkpoint of a floating-point model
    Quantize(Box<quantize::Args>),
    /// Measure perplexity, multiple choice or speed
    Eval(eval::Args),
    /// Continue a prompt
    Generate(generate::Args),
    /// Say what is in a checkpoint, its quantization errors or its outliers
    Inspect(inspect::Args),
    /// Undo the transforms of a quantized checkpoint into plain safetensors for other tools
    Export(export::Args),
    /// Turn results of `duquant bench` into tables, Markdown or one HTML page with plots
    Report(report::Args),
    /// Quantize a small real model with each method and compare them
    Demo(demo::Args),
    /// Measure layers, models, kernels, quantization and ablations
    Bench(Box<bench::Args>),
}

/// Runs the command line; `args` begins with the program's name. Never panics on bad input.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to fail when help was asked for.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(error::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let console = Console::new(cli.json, cli.quiet);
    if let Some(threads) = cli.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global();
        if let Err(fault) = pool {
            return console.fail(&anyhow::Error::new(fault).context("cannot start the threads"));
        }
    }
    let done = match &cli.command {
        Command::Quantize(args) => quantize::run(args, &console),
        Command::Eval(args) => eval::run(args, &console),
        Command::Generate(args) => generate::run(args, &console),
        Command::Inspect(args) => inspect::run(args, &console),
        Command::Export(args) => export::run(args, &console),
        Command::Report(args) => report::run(args, &console),
        Command::Demo(args) => demo::run(args, &console),
        Command::Bench(args) => bench::run(args, &console),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => console.fail(&error),
    }
}
