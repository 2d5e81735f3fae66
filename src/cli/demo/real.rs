//! The comparison on a real model.

use super::{METHODS, Method, child, table};
use crate::cli::console::Console;
use crate::cli::text;
use anyhow::Result;
use serde::Serialize;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Instant;

const PROMPT: &str = "Once upon a time, in a small village by the sea,";

/// One row of the table.
#[derive(Serialize)]
struct Row {
    method: &'static str,
    bits: String,
    perplexity: f64,
    /// Of the checkpoint on disk; of the weights in memory for the floating-point model.
    bytes: f64,
    peak_bytes: f64,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    quantize_seconds: Option<f64>,
}

#[derive(Serialize)]
struct Output {
    model: String,
    text: &'static str,
    rows: Vec<Row>,
    prompt: &'static str,
    /// What the DuQuant model wrote behind the prompt.
    continuation: String,
    seconds: f64,
    threads: usize,
}

pub(super) fn run(model: &Path, work: &Path, console: &Console) -> Result<()> {
    let clock = Instant::now();
    let mut rows = Vec::new();
    console.note("measuring FP32 ...");
    rows.push(measure("FP32", model, None, console)?);
    for Method { name, flags } in METHODS {
        let out = work.join(name);
        console.note(format!("quantizing with {name} ..."));
        let mut args = vec![OsStr::new("quantize"), model.as_os_str(), OsStr::new("--out"), out.as_os_str()];
        args.extend(flags.iter().map(OsStr::new));
        let quantized = child::run(args, console)?;
        console.note(format!("measuring {name} ..."));
        rows.push(measure(name, &out, Some(child::number(&quantized, "/seconds")?), console)?);
    }
    let last = work.join(METHODS[METHODS.len() - 1].name);
    let flags = ["--prompt", PROMPT, "--tokens", "32"].map(OsStr::new);
    let generated = child::run([OsStr::new("generate"), last.as_os_str()].into_iter().chain(flags), console)?;
    let output = Output {
        model: model.display().to_string(),
        text: "Persuasion, chapters 13 to 18, 2 windows of 2048 tokens",
        rows,
        prompt: PROMPT,
        continuation: generated["text"].as_str().unwrap_or_default().to_owned(),
        seconds: clock.elapsed().as_secs_f64(),
        threads: rayon::current_num_threads(),
    };
    console.result(&output, || describe(&output))
}

fn measure(method: &'static str, model: &Path, quantize_seconds: Option<f64>, console: &Console) -> Result<Row> {
    let flags = ["--text", text::BUNDLED, "--windows", "2", "--speed", "512,64"].map(OsStr::new);
    let got = child::run([OsStr::new("eval"), model.as_os_str()].into_iter().chain(flags), console)?;
    let number = |path: &str| child::number(&got, path);
    let bytes = match quantize_seconds {
        Some(_) => number("/file_bytes")?,
        None => number("/layer_bytes")? + number("/table_bytes")?,
    };
    let bits = match quantize_seconds {
        Some(_) => {
            format!("W{}A{}KV{}", number("/weight_bits")?, number("/activation_bits")?, number("/kv_bits")?)
        }
        None => "float".into(),
    };
    Ok(Row {
        method,
        bits,
        perplexity: number("/perplexity")?,
        bytes,
        peak_bytes: got["peak_bytes"].as_f64().unwrap_or(0.0),
        prefill_tokens_per_second: number("/speed/prefill_tokens_per_second")?,
        decode_tokens_per_second: number("/speed/decode_tokens_per_second")?,
        quantize_seconds,
    })
}

fn describe(output: &Output) -> String {
    let header =
        ["method", "bits", "perplexity", "size MB", "peak MB", "prefill tok/s", "decode tok/s", "quantized in s"];
    let rows: Vec<Vec<String>> = output
        .rows
        .iter()
        .map(|row| {
            vec![
                row.method.to_owned(),
                row.bits.clone(),
                format!("{:.2}", row.perplexity),
                format!("{:.0}", row.bytes / 1e6),
                format!("{:.0}", row.peak_bytes / 1e6),
                format!("{:.0}", row.prefill_tokens_per_second),
                format!("{:.1}", row.decode_tokens_per_second),
                row.quantize_seconds.map_or_else(|| "-".into(), |seconds| format!("{seconds:.1}")),
            ]
        })
        .collect();
    format!(
        "{}\n{}\n\nperplexity of {}; size of FP32 as its weights lie in memory; prefill of 512 tokens, decode of 64 \
         behind them, {} threads\n\n{}{}\n\n{:.0} s in all",
        output.model,
        table::render(&header, &rows),
        output.text,
        output.threads,
        output.prompt,
        output.continuation,
        output.seconds
    )
}
