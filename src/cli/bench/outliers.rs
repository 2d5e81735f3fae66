//! `duquant bench outliers`

use super::calibration::{self, CalibrationArgs};
use super::sink::{OutArgs, Sink};
use crate::bench::{Grid, Machine, ModelShape, OutlierProbe, Points};
use crate::calibrate::Samples;
use crate::checkpoint::Group;
use crate::cli::console::Console;
use crate::cli::error::Usage;
use crate::cli::quantize::ModeName;
use crate::cli::{parse, source, text};
use crate::model::Backend;
use crate::quantize::{self, Mode, Options};
use anyhow::{Context, Result};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  duquant bench outliers model.gguf --layer 11 --group down --calibration wiki.valid.tokens --out massive.json
  duquant bench outliers model.gguf --layer 3,11 --group qkv,down --text wiki.test.raw --tokens 256

|x| at the input of a group of linears before smoothing, and behind smoothing, each rotation and each permutation: the
transform that quantize would find. The grid holds the largest |x| of neighbouring tokens and channels.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Hugging Face folder or GGUF file of a floating-point model
    model: PathBuf,
    /// Layers, counted from 0
    #[arg(long, value_name = "N,..", value_delimiter = ',', required = true)]
    layer: Vec<usize>,
    /// Groups of linears: qkv, o, gate_up, down
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true, value_parser = group)]
    group: Vec<Group>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Text file whose first tokens are shown, or bundled [default: the tokens that calibrate]
    #[arg(long, value_name = "FILE|bundled")]
    text: Option<PathBuf>,
    /// Tokens that are shown
    #[arg(long, value_name = "N", default_value = "128", value_parser = parse::tokens)]
    tokens: usize,
    /// Most rows and columns of a grid
    #[arg(long, value_name = "ROWS,COLUMNS", default_value = "64,256", value_parser = grid)]
    grid: Grid,
    /// How DuQuant finds its rotations
    #[arg(long, value_enum, default_value_t = ModeName::Paper)]
    mode: ModeName,
    /// Seed of every random draw
    #[arg(long, default_value_t = 2)]
    seed: u64,
    #[command(flatten)]
    out: OutArgs,
}

fn group(name: &str) -> Result<Group, String> {
    Group::ALL
        .into_iter()
        .find(|group| group.name() == name)
        .ok_or_else(|| format!("expected some of {}", Group::ALL.map(Group::name).join(", ")))
}

fn grid(text: &str) -> Result<Grid, String> {
    let pair = text.split_once(',').and_then(|(rows, columns)| Some((rows.parse().ok()?, columns.parse().ok()?)));
    match pair {
        Some((rows @ 1..=64, columns @ 1..=256)) => Ok(Grid { rows, columns }),
        _ => Err("expected ROWS,COLUMNS, at most 64,256".into()),
    }
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let checkpoint = source::open(&args.model)?;
    let at = || args.model.display().to_string();
    if checkpoint.quantization().is_some() {
        return Err(quantize::Error::AlreadyQuantized).with_context(at);
    }
    let config = checkpoint.config();
    let layers: BTreeSet<usize> = args.layer.iter().copied().collect();
    if let Some(layer) = layers.iter().find(|&&layer| layer >= config.layers) {
        return Err(Usage(format!("--layer {layer}: {} has layers 0 to {}", at(), config.layers - 1)).into());
    }
    let tokenizer = source::tokenizer(&checkpoint, &args.model)?;
    let given = args.calibration.source(&tokenizer)?;
    let CalibrationArgs { samples, length, .. } = args.calibration;
    let mode = Mode::from(args.mode);
    let options = Options { seed: args.seed, ..Options::duquant(mode) };
    let calibration = given.samples(config.vocabulary, samples, length, args.seed)?;
    let shown = match &args.text {
        Some(path) => calibration::read(&tokenizer, path, text::EVALUATION)?,
        None => given.clone(),
    };
    let tokens = shown.samples(config.vocabulary, 1, args.tokens, args.seed);
    let tokens: Samples = tokens.with_context(|| format!("cannot show {}", shown.name))?;
    let settings = BTreeMap::from([
        ("calibration".to_owned(), json!(given.name)),
        ("samples".to_owned(), json!(samples)),
        ("length".to_owned(), json!(length)),
        ("text".to_owned(), json!(shown.name)),
        ("mode".to_owned(), json!(mode.name())),
        ("seed".to_owned(), json!(args.seed)),
    ]);
    let machine = Machine::of(&Backend::default());
    let shape = ModelShape::of(&at(), config);
    let mut sink = Sink::new(&args.out, console, machine, Some(shape), settings, Points::Outliers(Vec::new()))?;
    let mut probe = OutlierProbe::new(&checkpoint, &calibration, &tokens, options).with_context(at)?;
    for layer in layers {
        console.note(format!("layer {layer}"));
        match probe.layer(layer, &args.group, args.grid) {
            Ok(pictures) => sink.update(|record| {
                if let Points::Outliers(points) = &mut record.points {
                    points.extend(pictures);
                }
            })?,
            Err(error) => sink.fail(&format!("layer {layer}"), &error.into())?,
        }
    }
    sink.finish()
}
