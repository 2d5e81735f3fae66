//! `duquant quantize`

use super::console::Console;
use super::{memory, parse, source, text};
use crate::calibrate::Samples;
use crate::quantize::{self, GroupReport, Method, Mode, Options, Propagation, Report, Rounding, Smoothing};
use crate::transform::PermutationKind;
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Samples of calibration text unless told otherwise.
const SAMPLES: usize = 2;

const EXAMPLES: &str = "\
Examples:
  duquant quantize model.gguf --out model-w4a4
  duquant quantize ./Llama-2-7b --out ./w4a4 --calibration wiki.train.raw --samples 8
  duquant quantize ./Llama-2-7b --out ./w4a8 --activations 8 --kv 16
  duquant quantize ./Llama-2-7b --out ./rtn --method rtn --json";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Hugging Face folder or GGUF file of a floating-point model
    model: PathBuf,
    /// Folder to write; it must not exist yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace the output folder when it exists
    #[arg(long)]
    overwrite: bool,
    /// Recipe
    #[arg(long, value_enum, default_value_t = MethodName::Duquant)]
    method: MethodName,
    /// How DuQuant finds its rotations; best picks per group by measured error
    #[arg(long, value_enum)]
    mode: Option<ModeName>,
    /// Bits of weights: 2 to 8, or 16 for floating point
    #[arg(long, value_name = "BITS", default_value = "4", value_parser = parse::bits)]
    weights: u32,
    /// Bits of activations: 2 to 8, or 16 for floating point
    #[arg(long, value_name = "BITS", default_value = "4", value_parser = parse::bits)]
    activations: u32,
    /// Bits of queries, keys and values: 2 to 8, or 16 for floating point
    #[arg(long, value_name = "BITS", default_value = "4", value_parser = parse::bits)]
    kv: u32,
    /// Largest rotation block: a power of two from 4 to 128
    #[arg(long, value_name = "CHANNELS", value_parser = parse::block)]
    block: Option<usize>,
    /// Greedy steps of a rotation
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    steps: Option<u32>,
    /// Permutations between rotations: 0, 1 or 2
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=2))]
    permutations: Option<u8>,
    /// How a permutation is found
    #[arg(long, value_enum)]
    permutation: Option<PermutationName>,
    /// Smoothing strength from 0 to 1, or none [default: 0.6 for duquant, 0.5 for smoothquant, none otherwise]
    #[arg(long, value_parser = parse::alpha)]
    alpha: Option<parse::Alpha>,
    /// What is smoothed: all inputs by maxima, inputs behind norms by maxima, or all inputs by root mean squares
    /// [default: balanced for mode best, all otherwise]
    #[arg(long, value_enum)]
    smooth: Option<SmoothName>,
    /// Clip ratio of activations, queries and keys, above 0 and up to 1 [default: 0.9 for duquant, 1 otherwise]
    #[arg(long, value_name = "RATIO", value_parser = parse::clip)]
    activation_clip: Option<f32>,
    /// Clip ratio of weights, above 0 and up to 1 [default: 0.8 for duquant, 1 otherwise]
    #[arg(long, value_name = "RATIO", value_parser = parse::clip)]
    weight_clip: Option<f32>,
    /// Quantize weights symmetrically around zero
    #[arg(long)]
    symmetric_weights: bool,
    /// Quantize activations symmetrically around zero
    #[arg(long)]
    symmetric_activations: bool,
    /// How a weight becomes a code: the nearest, or with the error of each channel made up for by the later ones (GPTQ)
    /// [default: compensated for mode best, nearest otherwise]
    #[arg(long, value_enum)]
    rounding: Option<RoundingName>,
    /// Activations that calibrate a layer: those behind quantized layers or those of the floating-point model
    #[arg(long, value_enum)]
    propagate: Option<PropagationName>,
    /// Text file to calibrate with, or random for random tokens [default: a bundled text]
    #[arg(long, value_name = "FILE|random")]
    calibration: Option<PathBuf>,
    /// Calibration samples
    #[arg(long, value_name = "N", default_value_t = SAMPLES, value_parser = parse::positive)]
    samples: usize,
    /// Tokens of a sample
    #[arg(long, value_name = "TOKENS", default_value = "2048", value_parser = parse::tokens)]
    length: usize,
    /// Seed of every random draw
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodName {
    Duquant,
    Rtn,
    Smoothquant,
    Quarot,
}

/// [`Mode`] as a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ModeName {
    Best,
    Paper,
    Official,
    Left,
    Hadamard,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Best => Self::Best,
            ModeName::Paper => Self::Paper,
            ModeName::Official => Self::Official,
            ModeName::Left => Self::Left,
            ModeName::Hadamard => Self::Hadamard,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PermutationName {
    Zigzag,
    Random,
    Anneal,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SmoothName {
    Norms,
    All,
    Balanced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoundingName {
    Nearest,
    Compensated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PropagationName {
    Float,
    Quantized,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Output<'a> {
    model: String,
    out: String,
    method: &'a str,
    mode: Option<&'a str>,
    weight_bits: u32,
    activation_bits: u32,
    kv_bits: u32,
    calibration: Option<Calibration>,
    seed: u64,
    mean_error: f64,
    bytes: u64,
    source_bytes: u64,
    seconds: f64,
    calibration_seconds: f64,
    search_seconds: f64,
    writing_seconds: f64,
    peak_bytes: Option<u64>,
    layers: &'a [Vec<GroupReport>],
}

#[derive(Serialize)]
struct Calibration {
    source: String,
    samples: usize,
    length: usize,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let options = options(args)?;
    source::check_out(&args.out)?;
    let checkpoint = source::open(&args.model)?;
    if checkpoint.quantization().is_some() {
        return Err(quantize::Error::AlreadyQuantized).with_context(|| args.model.display().to_string());
    }
    let calibration = calibration(args, &options);
    let name = calibration.as_ref().map_or("none", |calibration| &calibration.source);
    let writer = source::writer(&args.out, args.overwrite, &checkpoint, &options.quantization(name)?)?;
    let samples = match &calibration {
        Some(calibration) => Some(samples(args, &checkpoint, calibration, options.seed)?),
        None => None,
    };
    let config = checkpoint.config();
    console.note(format!(
        "quantizing {} ({} layers of {} channels) to W{}A{}KV{} with {}",
        args.model.display(),
        config.layers,
        config.hidden,
        options.weight_bits,
        options.activation_bits,
        options.kv_bits,
        options.method.name()
    ));
    let mut progress = console.progress("layer", config.layers);
    let report = quantize::quantize(&checkpoint, writer, samples.as_ref(), &options, |_, groups| {
        progress.step(&describe(groups));
    });
    drop(progress);
    let report = report.with_context(|| format!("cannot quantize {}", args.model.display()))?;
    finish(args, console, &options, calibration, &report)
}

fn finish(
    args: &Args,
    console: &Console,
    options: &Options,
    calibration: Option<Calibration>,
    report: &Report,
) -> Result<()> {
    let output = Output {
        model: args.model.display().to_string(),
        out: args.out.display().to_string(),
        method: options.method.name(),
        mode: (options.method == Method::DuQuant).then(|| options.mode.name()),
        weight_bits: options.weight_bits,
        activation_bits: options.activation_bits,
        kv_bits: options.kv_bits,
        calibration,
        seed: options.seed,
        mean_error: report.mean_error(),
        bytes: source::size_on_disk(&args.out)?,
        source_bytes: source::size_on_disk(&args.model)?,
        seconds: report.seconds,
        calibration_seconds: report.calibration_seconds,
        search_seconds: report.search_seconds,
        writing_seconds: report.writing_seconds,
        peak_bytes: memory::peak_bytes(),
        layers: &report.layers,
    };
    console.result(&output, || {
        let measured = if output.calibration.is_some() {
            format!("mean output error of a linear {:.4}\n", output.mean_error)
        } else {
            String::new()
        };
        let peak = output.peak_bytes.map_or_else(String::new, |peak| format!(", peak memory {}", text::bytes(peak)));
        format!(
            "{} written, {} (source {})\n{measured}{:.1} s: {:.1} s calibrating, {:.1} s searching, {:.1} s writing{peak}",
            output.out,
            text::bytes(output.bytes),
            text::bytes(output.source_bytes),
            output.seconds,
            output.calibration_seconds,
            output.search_seconds,
            output.writing_seconds,
        )
    })
}

/// The library's options: the method's defaults under whatever was asked for. What a method has no use for (`--steps` with
/// `rtn`) is let pass, so that a script can give all methods the same flags.
fn options(args: &Args) -> Result<Options> {
    let mut options = Options::new(match args.method {
        MethodName::Duquant => Method::DuQuant,
        MethodName::Rtn => Method::Rtn,
        MethodName::Smoothquant => Method::SmoothQuant,
        MethodName::Quarot => Method::QuaRot,
    });
    if let Some(mode) = args.mode.filter(|_| args.method == MethodName::Duquant) {
        options = Options::duquant(mode.into());
    }
    if let Some(permutation) = args.permutation {
        options.permutation = match permutation {
            PermutationName::Zigzag => PermutationKind::Zigzag,
            PermutationName::Random => PermutationKind::Random,
            PermutationName::Anneal => PermutationKind::Anneal,
            PermutationName::None => PermutationKind::None,
        };
    }
    if let Some(propagation) = args.propagate {
        options.propagation = match propagation {
            PropagationName::Float => Propagation::Float,
            PropagationName::Quantized => Propagation::Quantized,
        };
    }
    if let Some(rounding) = args.rounding {
        options.rounding = match rounding {
            RoundingName::Nearest => Rounding::Nearest,
            RoundingName::Compensated => Rounding::Compensated,
        };
    }
    if let Some(smooth) = args.smooth {
        options.smoothing = match smooth {
            SmoothName::Norms => Smoothing::Norms,
            SmoothName::All => Smoothing::All,
            SmoothName::Balanced => Smoothing::Balanced,
        };
    }
    options.weight_bits = args.weights;
    options.activation_bits = args.activations;
    options.kv_bits = args.kv;
    options.symmetric_weights = args.symmetric_weights;
    options.symmetric_activations = args.symmetric_activations;
    options.block = args.block.unwrap_or(options.block);
    options.steps = args.steps.map_or(options.steps, |steps| steps as usize);
    options.permutations = args.permutations.map_or(options.permutations, usize::from);
    if args.method == MethodName::Quarot {
        // Naming one of the two is asking for permutations, which QuaRot has none of by itself.
        match (args.permutation, args.permutations) {
            (Some(_), None) => options.permutations = 1,
            (None, Some(_)) => options.permutation = PermutationKind::Zigzag,
            _ => {}
        }
    }
    options.alpha = args.alpha.map_or(options.alpha, |alpha| alpha.0);
    options.activation_clip = args.activation_clip.unwrap_or(options.activation_clip);
    options.weight_clip = args.weight_clip.unwrap_or(options.weight_clip);
    options.seed = args.seed.unwrap_or(options.seed);
    Ok(options)
}

/// What to calibrate with; nothing where nothing was asked for and nothing is measured.
fn calibration(args: &Args, options: &Options) -> Option<Calibration> {
    let source = match &args.calibration {
        Some(path) => path.display().to_string(),
        None if options.needs_samples() => text::BUNDLED.to_owned(),
        None => return None,
    };
    Some(Calibration { source, samples: args.samples, length: args.length })
}

fn samples(
    args: &Args,
    checkpoint: &crate::checkpoint::Checkpoint,
    calibration: &Calibration,
    seed: u64,
) -> Result<Samples> {
    let Calibration { source: name, samples, length } = calibration;
    if name == "random" {
        return Ok(Samples::random(checkpoint.config().vocabulary, *samples, *length, seed)?);
    }
    let tokenizer = source::tokenizer(checkpoint, &args.model)?;
    let read;
    let text = match &args.calibration {
        Some(path) => {
            read = text::read(Path::new(path))?;
            &read
        }
        None => text::CALIBRATION,
    };
    let tokens = text::tokenize(&tokenizer, text, name)?;
    Samples::from_tokens(tokens, *samples, *length).with_context(|| format!("cannot calibrate with {name}"))
}

/// The errors of a layer on one short line.
fn describe(groups: &[GroupReport]) -> String {
    let parts: Vec<_> = groups.iter().map(|group| format!("{} {:.4}", group.group, group.output_error)).collect();
    format!("error {}", parts.join(", "))
}
