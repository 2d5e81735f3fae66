//! The model on CUDA against the model on the CPU.
#![cfg(all(feature = "cli", feature = "cuda"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails and reports this way")]

mod common;
mod cuda;
mod oracle;
#[path = "common/pipeline.rs"]
mod pipeline;

use common::Tiny;
use cuda::capture::Capturing;
use duquant::checkpoint::Checkpoint;
use duquant::kernels::cpu::Isa;
use duquant::kernels::cuda::{Arch, Device, Dtype};
use duquant::model::{Backend, Error, GenerateOptions, Model, State, generate};
use duquant::quantize::{Method, Mode, Options};
use std::path::Path;
use std::sync::Arc;

const TOKENS: usize = 28;

/// Grouped queries, heads of 64 channels, and the outliers of a real model: a few channels that every norm raises.
fn tiny(folder: &Path) -> Checkpoint {
    let tiny = Tiny { layers: 2, hidden: 128, intermediate: 192, heads: 4, kv_heads: 2, head_dim: 64 };
    let mut tensors = tiny.tensors();
    for (name, (_, values)) in &mut tensors {
        if name.ends_with("layernorm.weight") {
            for (channel, value) in values.iter_mut().enumerate() {
                *value = if channel % 29 == 3 { 9.0 } else { 0.5 + 0.1 * (channel % 7) as f32 };
            }
        }
    }
    tiny.write_with(&folder.join("tiny"), &tensors);
    Checkpoint::open(&folder.join("tiny")).unwrap()
}

fn tokens() -> Vec<u32> {
    (0..TOKENS as u32).map(|i| (i * i * 7 + 31 * i) % 256).collect()
}

fn on(device: &Arc<dyn Device>, float: Dtype, chunk: usize) -> Backend {
    Backend::Cuda { device: Arc::clone(device), float, chunk }
}

/// Runs `part` and gives its logits.
fn run(model: &Model, state: &mut State, part: &[u32]) -> Vec<f32> {
    model.forward(state, part).unwrap();
    let mut logits = vec![0.0; part.len() * model.vocabulary()];
    model.logits(state, 0..part.len(), &mut logits).unwrap();
    let last = &logits[(part.len() - 1) * model.vocabulary()..];
    let likeliest = last.iter().enumerate().fold(0, |best, (at, &logit)| if logit > last[best] { at } else { best });
    for _ in 0..2 {
        assert_eq!(model.greedy(state).unwrap() as usize, likeliest);
    }
    logits
}

/// Logits `[tokens, vocabulary]`, in runs of so many tokens.
fn logits(model: &Model, tokens: &[u32], parts: &[usize]) -> Vec<f32> {
    let mut state = model.new_state(tokens.len()).unwrap();
    let (mut out, mut first) = (Vec::new(), 0);
    for &part in parts {
        out.extend(run(model, &mut state, &tokens[first..first + part]));
        first += part;
    }
    assert_eq!((first, state.len()), (tokens.len(), tokens.len()));
    out
}

fn error(got: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let size: f64 = expected.iter().map(|&x| square(x.into())).sum();
    let error: f64 = got.iter().zip(expected).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    assert!(got.iter().all(|x| x.is_finite()));
    (error / size).sqrt()
}

fn choices() -> Vec<(&'static str, Options)> {
    let base = pipeline::options();
    vec![
        ("duquant", base.clone()),
        ("hadamard", Options { mode: Mode::Hadamard, permutations: 2, ..base.clone() }),
        ("w4a8", Options { activation_bits: 8, weight_bits: 3, ..base.clone() }),
        ("w8a8", Options { activation_bits: 8, weight_bits: 8, kv_bits: 8, ..base.clone() }),
        ("rtn", Options::new(Method::Rtn)),
        ("kv16", Options { kv_bits: 16, ..base }),
    ]
}

#[test]
fn a_tiny_model_gives_the_cpus_logits() {
    let devices = cuda::devices("a_tiny_model_gives_the_cpus_logits", &[Arch::Sm80]);
    if devices.is_empty() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let float = tiny(folder.path());
    let tokens = tokens();
    let whole = logits(&Model::load_on(&float, &Backend::Cpu(Isa::best())).unwrap(), &tokens, &[TOKENS]);
    let mut models = vec![("float", float)];
    for (name, options) in choices() {
        let (checkpoint, _) = pipeline::quantized(&models[0].1, &folder.path().join(name), &options);
        models.push((name, checkpoint));
    }
    for (name, checkpoint) in &models {
        let cpu = Model::load_on(checkpoint, &Backend::Cpu(Isa::best())).unwrap();
        let expected = logits(&cpu, &tokens, &[TOKENS]);
        println!("{name}: quantization {:.2e}", error(&expected, &whole));
        for (place, device) in &devices {
            for float in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let model = Model::load_on(checkpoint, &on(device, float, 16)).unwrap();
                for parts in [&[TOKENS][..], &[9, 13, 1, 1, 3, 1]] {
                    let got = logits(&model, &tokens, parts);
                    println!("{name} on {place}, {float:?}, {parts:?}: {:.2e}", error(&got, &expected));
                }
            }
        }
    }
}
