//! `duquant generate`

use super::backend::{self, BackendArgs};
use super::console::Console;
use super::error::{Closed, Usage};
use super::source::{self, Loaded};
use super::{memory, parse};
use crate::checkpoint::Tokenizer;
use crate::model::{self, GenerateOptions};
use anyhow::Result;
use serde::Serialize;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  duquant generate ./w4a4 --prompt 'The capital of France is'
  duquant generate ./w4a4 --prompt 'Once upon a time' --tokens 200 --temperature 0.8 --seed 7";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Hugging Face folder, GGUF file or quantized folder
    model: PathBuf,
    /// Text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Most new tokens
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse::tokens)]
    tokens: usize,
    /// 0 takes the most likely token each time; above, tokens are drawn
    #[arg(long, value_name = "T", default_value = "0", value_parser = parse::temperature)]
    temperature: f32,
    /// Seed of the drawing
    #[arg(long, default_value_t = 2)]
    seed: u64,
    /// Go on behind a token that ends the text
    #[arg(long)]
    ignore_end: bool,
    #[command(flatten)]
    backend: BackendArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    source: source::Facts,
    prompt: &'a str,
    /// The new text alone.
    text: String,
    prompt_tokens: Vec<u32>,
    tokens: Vec<u32>,
    prefill_seconds: f64,
    prefill_tokens_per_second: f64,
    decode_seconds: f64,
    decode_tokens_per_second: f64,
    load_seconds: f64,
    peak_bytes: Option<u64>,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    if args.prompt.is_empty() {
        return Err(Usage("--prompt is empty; give some text to continue".into()).into());
    }
    let checkpoint = source::open(&args.model)?;
    let tokenizer = source::tokenizer(&checkpoint, &args.model)?;
    let prompt = tokenizer.encode_with_bos(&args.prompt)?;
    let backend = args.backend.open()?;
    let Loaded { model, facts, load_seconds } = source::load(&checkpoint, &args.model, &backend)?;
    let options = GenerateOptions {
        tokens: args.tokens,
        temperature: args.temperature,
        seed: args.seed,
        ignore_end: args.ignore_end,
    };
    let mut stream = Stream::new(&tokenizer, console);
    if !console.json() {
        console.print(&args.prompt)?;
    }
    let generated = model::generate(&model, &prompt, &options, |token| stream.push(token))?;
    let text = stream.finish()?;
    backend::keep_kernels(&backend, console);
    let (prefill, decode) = (generated.prefill.as_secs_f64(), generated.decode.as_secs_f64());
    let rate = |tokens: usize, seconds: f64| if tokens == 0 { 0.0 } else { tokens as f64 / seconds.max(1e-9) };
    let output = Output {
        source: facts,
        prompt: &args.prompt,
        text,
        prefill_seconds: prefill,
        prefill_tokens_per_second: rate(prompt.len(), prefill),
        decode_seconds: decode,
        decode_tokens_per_second: rate(generated.tokens.len().saturating_sub(1), decode),
        prompt_tokens: prompt,
        tokens: generated.tokens,
        load_seconds,
        peak_bytes: memory::peak_bytes(),
    };
    if console.json() {
        return console.result(&output, String::new);
    }
    console.print("\n")?;
    console.note(format!(
        "{} tokens; prompt {:.1} tokens/s, decode {:.1} tokens/s",
        output.tokens.len(),
        output.prefill_tokens_per_second,
        output.decode_tokens_per_second
    ));
    Ok(())
}

/// Turns tokens to text as they come. A character may be spread over several tokens, so text is held back while it ends
/// in the replacement character.
struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    console: &'a Console,
    tokens: Vec<u32>,
    printed: String,
    fault: Option<anyhow::Error>,
}

impl<'a> Stream<'a> {
    fn new(tokenizer: &'a Tokenizer, console: &'a Console) -> Self {
        Self { tokenizer, console, tokens: Vec::new(), printed: String::new(), fault: None }
    }

    /// Takes a token; says whether to go on.
    fn push(&mut self, token: u32) -> bool {
        self.tokens.push(token);
        if self.console.json() {
            return true;
        }
        let shown = self.text().and_then(|text| self.show(&text, true));
        self.fault = shown.err();
        self.fault.is_none()
    }

    /// Special tokens are written out, so that one sees where a text ended.
    fn text(&self) -> Result<String> {
        Ok(self.tokenizer.decode_with_special(&self.tokens)?)
    }

    fn show(&mut self, text: &str, hold: bool) -> Result<()> {
        if hold && text.ends_with('\u{fffd}') {
            return Ok(());
        }
        if let Some(more) = text.strip_prefix(self.printed.as_str()) {
            self.console.print(more)?;
            self.printed = text.to_owned();
        }
        Ok(())
    }

    /// The whole new text.
    fn finish(mut self) -> Result<String> {
        match self.fault.take() {
            Some(fault) if fault.is::<Closed>() => return Err(fault),
            Some(fault) => return Err(fault.context("cannot turn the new tokens to text")),
            None => {}
        }
        let text = self.text()?;
        if !self.console.json() {
            self.show(&text, false)?;
        }
        Ok(text)
    }
}
