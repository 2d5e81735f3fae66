//! `duquant export`

use super::console::Console;
use super::{memory, source, text};
use crate::checkpoint;
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  duquant export ./w4a4 --out ./plain                 bfloat16 weights that any Hugging Face tool loads
  duquant export ./w4a4 --out ./plain --dtype f32

The weights come out as they are after quantization, with rotation and permutation undone; activations and the cache are
no longer quantized in the tool that loads them.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Quantized folder (or any other checkpoint)
    model: PathBuf,
    /// Folder to write; it must not exist yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number format of the weights
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    Bf16,
    F32,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Output {
    model: String,
    out: String,
    dtype: &'static str,
    bytes: u64,
    seconds: f64,
    peak_bytes: Option<u64>,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    source::check_out(&args.out)?;
    let checkpoint = source::open(&args.model)?;
    let clock = Instant::now();
    let (precision, name) = match args.dtype {
        Dtype::Bf16 => (checkpoint::Precision::Bf16, "bf16"),
        Dtype::F32 => (checkpoint::Precision::F32, "f32"),
    };
    checkpoint::export(&checkpoint, &args.out, precision)
        .with_context(|| format!("cannot export {}", args.model.display()))?;
    let output = Output {
        model: args.model.display().to_string(),
        out: args.out.display().to_string(),
        dtype: name,
        bytes: source::size_on_disk(&args.out)?,
        seconds: clock.elapsed().as_secs_f64(),
        peak_bytes: memory::peak_bytes(),
    };
    console.result(&output, || {
        format!("{} written in {name}, {} in {:.1} s", output.out, text::bytes(output.bytes), output.seconds)
    })
}
