//! `duquant eval`

use super::backend::{self, BackendArgs};
use super::console::Console;
use super::source::{self, Loaded};
use super::{memory, parse, text};
use crate::checkpoint::Tokenizer;
use crate::eval::{self, Accuracy, Perplexity, PerplexityOptions, Speed, TokenizedTask};
use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  duquant eval ./w4a4 --text wiki.test.raw                        perplexity, windows of 2048 tokens
  duquant eval ./w4a4 --text bundled --windows 2 --json           on the text that comes with the program
  duquant eval ./w4a4 --task hellaswag --data hellaswag_val_full.txt --limit 200
  duquant eval ./w4a4 --task piqa --data valid.jsonl --labels valid-labels.lst
  duquant eval ./w4a4 --speed 512,64                              tokens a second in prefill and decode";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("what").args(["text", "task", "speed"]).required(true).multiple(true))]
pub(super) struct Args {
    /// Hugging Face folder, GGUF file or quantized folder
    model: PathBuf,
    /// Text file whose perplexity to measure, or bundled for the text that comes with the program
    #[arg(long, value_name = "FILE|bundled", conflicts_with = "task")]
    text: Option<PathBuf>,
    /// Tokens of a window
    #[arg(long, value_name = "TOKENS", default_value = "2048", value_parser = parse::window)]
    window: usize,
    /// Read only so many windows from the front
    #[arg(long, value_name = "N", value_parser = parse::positive, requires = "text")]
    windows: Option<usize>,
    /// Report the loss of every token as well (with --json)
    #[arg(long, requires = "text")]
    token_losses: bool,
    /// Multiple-choice task to answer
    #[arg(long, value_enum, requires = "data")]
    task: Option<TaskName>,
    /// File of the task, uncompressed: HellaSwag in six lines a task, PIQA as JSON lines
    #[arg(long, value_name = "FILE", requires = "task")]
    data: Option<PathBuf>,
    /// Labels of PIQA, one a line
    #[arg(long, value_name = "FILE", required_if_eq("task", "piqa"), requires = "task")]
    labels: Option<PathBuf>,
    /// Answer only so many tasks from the front
    #[arg(long, value_name = "N", value_parser = parse::positive, requires = "task")]
    limit: Option<usize>,
    /// Measure the speed of PREFILL tokens and DECODE tokens behind them
    #[arg(long, value_name = "PREFILL,DECODE", value_parser = parse::speed)]
    speed: Option<(usize, usize)>,
    #[command(flatten)]
    backend: BackendArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TaskName {
    Hellaswag,
    Piqa,
}

/// What `--json` prints. Fields of measures that were not asked for are left out.
#[derive(Serialize)]
struct Output {
    #[serde(flatten)]
    source: source::Facts,
    #[serde(flatten)]
    perplexity: Option<Perplexity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_losses: Option<Vec<Vec<f64>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    #[serde(flatten)]
    accuracy: Option<Accuracy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speed: Option<Speed>,
    /// Of the perplexity or the task, without loading and tokenizing.
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
    load_seconds: f64,
    peak_bytes: Option<u64>,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let checkpoint = source::open(&args.model)?;
    let needs_text = args.text.is_some() || args.task.is_some();
    let tokenizer = if needs_text { Some(source::tokenizer(&checkpoint, &args.model)?) } else { None };
    let work = match (&tokenizer, &args.text, args.task) {
        (Some(tokenizer), Some(path), _) => Work::Text(tokens(tokenizer, path, args)?),
        (Some(tokenizer), None, Some(task)) => Work::Tasks(tasks(tokenizer, task, args)?),
        _ => Work::Nothing,
    };
    let backend = args.backend.open()?;
    let Loaded { model, facts, load_seconds } = source::load(&checkpoint, &args.model, &backend)?;
    let mut output = Output {
        source: facts,
        perplexity: None,
        token_losses: None,
        task: None,
        accuracy: None,
        speed: None,
        seconds: 0.0,
        tokens_per_second: None,
        load_seconds,
        peak_bytes: None,
    };
    let clock = Instant::now();
    match work {
        Work::Text(tokens) => {
            let options = PerplexityOptions { window: args.window, windows: args.windows };
            let mut progress = console.progress("window", options.count(tokens.len())?);
            let mut kept = Vec::new();
            let measured = eval::perplexity(&model, &tokens, &options, |_, losses| {
                progress.step(&format!("loss {:.4}", losses.iter().sum::<f64>() / losses.len() as f64));
                if args.token_losses {
                    kept.push(losses.to_vec());
                }
            })?;
            drop(progress);
            output.seconds = clock.elapsed().as_secs_f64();
            output.tokens_per_second = Some((measured.windows * measured.window) as f64 / output.seconds.max(1e-9));
            output.perplexity = Some(measured);
            output.token_losses = args.token_losses.then_some(kept);
        }
        Work::Tasks(tasks) => {
            let mut progress = console.progress("task", tasks.len());
            output.accuracy = Some(eval::multiple_choice(&model, &tasks, |_| progress.step(""))?);
            output.seconds = clock.elapsed().as_secs_f64();
            output.task = args.task.and_then(|task| Some(task.to_possible_value()?.get_name().to_owned()));
        }
        Work::Nothing => {}
    }
    if let Some((prefill, decode)) = args.speed {
        let vocabulary = model.config().vocabulary as u64;
        // Any tokens do: nothing that runs depends on their values.
        let prompt: Vec<u32> = (0..prefill as u64).map(|i| (i * 7919 % vocabulary.max(1)) as u32).collect();
        output.speed = Some(eval::speed(&model, &prompt, decode)?);
    }
    output.peak_bytes = memory::peak_bytes();
    backend::keep_kernels(&backend, console);
    console.result(&output, || describe(&output))
}

/// What is to be measured, read and tokenized before the model is loaded.
enum Work {
    Text(Vec<u32>),
    Tasks(Vec<TokenizedTask>),
    Nothing,
}

fn tokens(tokenizer: &Tokenizer, path: &Path, args: &Args) -> Result<Vec<u32>> {
    let name = path.display().to_string();
    let read;
    let text = if name == text::BUNDLED {
        text::EVALUATION
    } else {
        read = text::read(path)?;
        &read
    };
    let tokens = text::tokenize(tokenizer, text, &name)?;
    let options = PerplexityOptions { window: args.window, windows: args.windows };
    options.count(tokens.len()).with_context(|| name)?;
    Ok(tokens)
}

fn tasks(tokenizer: &Tokenizer, task: TaskName, args: &Args) -> Result<Vec<TokenizedTask>> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let missing = |flag: &str| anyhow!(super::error::Usage(format!("the task needs {flag} FILE")));
    let data = args.data.as_deref().ok_or_else(|| missing("--data"))?;
    let tasks = match task {
        TaskName::Hellaswag => eval::hellaswag(&read(data)?),
        TaskName::Piqa => {
            let labels = args.labels.as_deref().ok_or_else(|| missing("--labels"))?;
            eval::piqa(&read(data)?, &read(labels)?)
        }
    };
    let mut tasks = tasks.with_context(|| data.display().to_string())?;
    tasks.truncate(args.limit.unwrap_or(usize::MAX));
    if tasks.is_empty() {
        bail!("{}: expected tasks, got none", data.display());
    }
    tasks
        .iter()
        .map(|task| TokenizedTask::new(task, |text| tokenizer.encode(text)))
        .collect::<Result<_, _>>()
        .with_context(|| format!("cannot tokenize {}", data.display()))
}

fn describe(output: &Output) -> String {
    let mut lines = vec![format!("{}: {}", output.source.model, output.source.summary())];
    if let Some(measured) = &output.perplexity {
        let rate = output.tokens_per_second.unwrap_or_default();
        lines.push(format!(
            "perplexity {:.4} ({} windows of {} tokens; the text has {})",
            measured.perplexity, measured.windows, measured.window, measured.tokens
        ));
        lines.push(format!("{:.1} s, {rate:.0} tokens/s", output.seconds));
    }
    if let (Some(task), Some(accuracy)) = (&output.task, &output.accuracy) {
        lines.push(format!(
            "{task}: acc {:.4}, acc_norm {:.4} ({} tasks in {:.1} s)",
            accuracy.acc, accuracy.acc_norm, accuracy.n, output.seconds
        ));
    }
    if let Some(speed) = &output.speed {
        lines.push(format!(
            "prefill of {}: {:.0} tokens/s; decode of {} behind it: {:.1} tokens/s",
            speed.prefill_tokens, speed.prefill_tokens_per_second, speed.decode_tokens, speed.decode_tokens_per_second
        ));
    }
    if let Some(peak) = output.peak_bytes {
        lines.push(format!("peak memory {}", text::bytes(peak)));
    }
    lines.join("\n")
}
