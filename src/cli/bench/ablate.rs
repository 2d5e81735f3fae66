//! `duquant bench ablate`

use super::calibration::{self, CalibrationArgs};
use super::sink::{OutArgs, Sink};
use crate::bench::{Ablation, AblationOptions, AblationPoint, Base, Machine, ModelShape, Points, Table, Watch, rows};
use crate::cli::backend::BackendArgs;
use crate::cli::console::Console;
use crate::cli::quantize::ModeName;
use crate::cli::{parse, source, text};
use crate::eval::PerplexityOptions;
use crate::quantize::{self, Mode, Options};
use anyhow::{Context, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  duquant bench ablate model.gguf --text wiki.test.raw --calibration wiki.valid.tokens --windows 4 --out ablations.json
  duquant bench ablate ./SmolLM2 --text bundled --windows 2 --tables modules,permutation --json

Each row quantizes the model to a temporary folder (TMPDIR says where), evaluates it and removes it again. Rows quantize in
the paper's way unless --mode says otherwise; what tables share is measured once.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Hugging Face folder or GGUF file of a floating-point model
    model: PathBuf,
    /// Text file whose perplexity to measure, or bundled for the text that comes with the program
    #[arg(long, value_name = "FILE|bundled")]
    text: PathBuf,
    /// Tokens of a window
    #[arg(long, value_name = "TOKENS", default_value = "2048", value_parser = parse::window)]
    window: usize,
    /// Read only so many windows from the front
    #[arg(long, value_name = "N", value_parser = parse::positive)]
    windows: Option<usize>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Tables: modules (6), outliers (7), block (E14), steps (E15), permutation (E16), calibration (E17, E18),
    /// samples (E19), rotation (F23)
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = table)]
    tables: Vec<Table>,
    /// How DuQuant finds its rotations
    #[arg(long, value_enum, default_value_t = ModeName::Paper)]
    mode: ModeName,
    /// Seed of every random draw
    #[arg(long, default_value_t = 2)]
    seed: u64,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    out: OutArgs,
}

/// A table by its name.
fn table(name: &str) -> Result<Table, String> {
    Table::ALL.into_iter().find(|table| table.name() == name).ok_or_else(|| {
        let names = Table::ALL.map(Table::name).join(", ");
        format!("expected some of {names}")
    })
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let checkpoint = source::open(&args.model)?;
    if checkpoint.quantization().is_some() {
        return Err(quantize::Error::AlreadyQuantized).with_context(|| args.model.display().to_string());
    }
    let tables = if args.tables.is_empty() { Table::ALL.to_vec() } else { args.tables.clone() };
    let tokenizer = source::tokenizer(&checkpoint, &args.model)?;
    let read = calibration::read(&tokenizer, &args.text, text::EVALUATION)?;
    let tokens = read.tokens.unwrap_or_default();
    let windows = PerplexityOptions { window: args.window, windows: args.windows };
    let count = windows.count(tokens.len()).with_context(|| read.name.clone())?;
    let given = args.calibration.source(&tokenizer)?;
    let other = if tables.contains(&Table::Calibration) { args.calibration.other(&tokenizer)? } else { None };
    let mode = Mode::from(args.mode);
    let options = Options { seed: args.seed, ..Options::duquant(mode) };
    let backend = args.backend.open()?;
    let settings = BTreeMap::from([
        ("text".to_owned(), json!(read.name)),
        ("window".to_owned(), json!(args.window)),
        ("windows".to_owned(), json!(count)),
        ("calibration".to_owned(), json!(given.name)),
        ("samples".to_owned(), json!(args.calibration.samples)),
        ("length".to_owned(), json!(args.calibration.length)),
        ("mode".to_owned(), json!(mode.name())),
        ("bits".to_owned(), json!("W4A4KV4")),
        ("seed".to_owned(), json!(args.seed)),
        ("tables".to_owned(), json!(tables.iter().map(|table| table.name()).collect::<Vec<_>>())),
    ]);
    let shape = ModelShape::of(&args.model.display().to_string(), checkpoint.config());
    let mut sink =
        Sink::new(&args.out, console, Machine::of(&backend), Some(shape), settings, Points::Ablate(Vec::new()))?;
    let base = Base { options, given, other, samples: args.calibration.samples, length: args.calibration.length };
    let rows: Vec<_> = tables.iter().flat_map(|&table| rows(table, &base)).collect();
    let work =
        tempfile::Builder::new().prefix("duquant-ablate-").tempdir().context("cannot make a temporary folder")?;
    let watch = Watch::start();
    let measured = AblationOptions { work: work.path().into(), backend, windows, length: args.calibration.length };
    let failed = || format!("cannot evaluate {}", args.model.display());
    let mut ablation = Ablation::new(&checkpoint, &tokens, measured).with_context(failed)?;
    console.note(format!("floating point: perplexity {:.3}", ablation.baseline()));
    for (at, row) in rows.iter().enumerate() {
        let what = format!("{} ({}/{}), {}", row.table.name(), at + 1, rows.len(), row.words);
        match ablation.measure(row) {
            Ok(point) => {
                console.note(format!("{what}: {}", describe(&point)));
                sink.update(|record| {
                    if let Points::Ablate(points) = &mut record.points {
                        points.push(point);
                    }
                })?;
            }
            Err(error) => sink.fail(&format!("{}, {}", row.table.name(), row.words), &error.into())?,
        }
    }
    sink.update(|record| {
        record.settings.insert("noise".to_owned(), json!(watch.noise()));
    })?;
    sink.finish()
}

fn describe(point: &AblationPoint) -> String {
    let perplexity = point.perplexity.map_or_else(|| "no number".into(), |perplexity| format!("{perplexity:.3}"));
    let variance = point.variance.map_or_else(String::new, |variance| format!(", variance {variance:.3e}"));
    format!("perplexity {perplexity}{variance}, quantized in {:.1} s", point.seconds)
}
