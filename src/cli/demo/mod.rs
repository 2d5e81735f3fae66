//! `duquant demo`: each method on a small real model, or on a synthetic one where that cannot be had.

mod child;
mod real;
mod smollm2;
mod synthetic;
mod table;

use super::console::Console;
use super::{error, source};
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  duquant demo                      brings SmolLM2-135M (93 MB, once) and compares four methods, a few minutes
  duquant demo --fetch              brings the model and stops
  duquant demo --offline            no network: the cached model or a synthetic one
  duquant demo --model model.gguf   the same table for another LLaMA model";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Use no network: the cached model where there is one, a synthetic one otherwise
    #[arg(long)]
    offline: bool,
    /// Use the synthetic model even where the real one is at hand
    #[arg(long, conflicts_with = "model")]
    synthetic: bool,
    /// Only bring SmolLM2 and say where it is, for a later run without a network
    #[arg(long, conflicts_with_all = ["offline", "synthetic", "model"])]
    fetch: bool,
    /// Another floating-point model than SmolLM2: Hugging Face folder or GGUF file
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
}

/// A method of the table: its name there and what `quantize` is told.
struct Method {
    name: &'static str,
    flags: &'static [&'static str],
}

const METHODS: [Method; 4] = [
    Method { name: "RTN", flags: &["--method", "rtn"] },
    Method { name: "SmoothQuant", flags: &["--method", "smoothquant"] },
    Method { name: "QuaRot-RTN", flags: &["--method", "quarot"] },
    Method { name: "DuQuant", flags: &["--method", "duquant"] },
];

/// What `--fetch` prints.
#[derive(Serialize)]
struct Fetched {
    model: PathBuf,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    if args.fetch {
        let folder = super::cache::folder()?;
        let model = match smollm2::cached(&folder) {
            Some(model) => model,
            None => smollm2::bring(&folder, console).with_context(|| smollm2::how_to_bring(&folder))?,
        };
        let fetched = Fetched { model };
        return console.result(&fetched, || fetched.model.display().to_string());
    }
    let work = tempfile::Builder::new().prefix("duquant-demo-").tempdir().context("cannot make a temporary folder")?;
    if let Some(model) = find(args, console)? {
        real::run(&model, work.path(), console)
    } else {
        synthetic::run(work.path(), console)
    }
}

/// The real model; nothing where the synthetic one is to be used.
fn find(args: &Args, console: &Console) -> Result<Option<PathBuf>> {
    if let Some(model) = &args.model {
        source::open(model)?;
        return Ok(Some(model.clone()));
    }
    if args.synthetic {
        return Ok(None);
    }
    let folder = super::cache::folder()?;
    if let Some(model) = smollm2::cached(&folder) {
        return Ok(Some(model));
    }
    let reason = if args.offline {
        "--offline was given".to_owned()
    } else {
        match smollm2::bring(&folder, console) {
            Ok(model) => return Ok(Some(model)),
            Err(fault) => error::line(&fault),
        }
    };
    console.note(format!("SmolLM2 is not here: {reason}."));
    console.note(smollm2::how_to_bring(&folder));
    console.note("Meanwhile, on a synthetic LLaMA model with planted outliers:");
    Ok(None)
}
