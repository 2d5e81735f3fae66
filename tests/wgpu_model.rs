//! The model on wgpu against the model on the CPU.
#![cfg(all(feature = "cli", feature = "wgpu"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails and reports this way"
)]

mod common;
mod gpu;
#[path = "common/pipeline.rs"]
mod pipeline;

use duquant::checkpoint::Checkpoint;
use duquant::eval::{PerplexityOptions, perplexity};
use duquant::kernels::cpu::Isa;
use duquant::kernels::wgpu::{Arithmetic, Dtype, Gpu, GpuOptions};
use duquant::model::{Backend, GenerateOptions, Model, generate};
use duquant::quantize::{Method, Mode, Options};
use std::sync::Arc;

/// A device of its own for a model, which shares it by reference, with the CPU's arithmetic; `None` without an adapter, as
/// `gpu::gpu_with` says.
fn backend(test: &str) -> Option<(gpu::TestGpu, Backend)> {
    let watched = gpu::gpu_with(test, Arithmetic::Reproducible)?;
    let options =
        GpuOptions { adapter: std::env::var("WGPU_ADAPTER_NAME").ok(), validation: true, ..GpuOptions::default() };
    let gpu = Gpu::open(&options).unwrap().with_arithmetic(Arithmetic::Reproducible).unwrap();
    Some((watched, Backend::Wgpu { gpu: Arc::new(gpu), float: Dtype::F32 }))
}

/// Logits `[tokens, vocabulary]`, all tokens at once or the last ones one by one.
fn logits(model: &Model, tokens: &[u32], decoded: usize) -> Vec<f32> {
    let vocabulary = model.vocabulary();
    let mut state = model.new_state(tokens.len()).unwrap();
    let mut out = Vec::new();
    let (prompt, rest) = tokens.split_at(tokens.len() - decoded);
    for part in std::iter::once(prompt).chain(rest.chunks(1)) {
        model.forward(&mut state, part).unwrap();
        let mut logits = vec![0.0; part.len() * vocabulary];
        model.logits(&mut state, 0..part.len(), &mut logits).unwrap();
        let last = &logits[(part.len() - 1) * vocabulary..];
        let likeliest =
            last.iter().enumerate().fold(0, |best, (at, &logit)| if logit > last[best] { at } else { best });
        assert_eq!(model.greedy(&mut state).unwrap() as usize, likeliest);
        out.extend(logits);
    }
    assert_eq!(state.len(), tokens.len());
    out
}

fn relative_error(got: &[f32], expected: &[f32]) -> f32 {
    let size = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let error = got.iter().zip(expected).fold(0.0_f32, |max, (a, b)| max.max((a - b).abs()));
    error / size
}

#[test]
fn a_tiny_model_gives_the_cpus_logits() {
    let Some((_watched, backend)) = backend("a_tiny_model_gives_the_cpus_logits") else { return };
    let folder = tempfile::tempdir().unwrap();
    let float = pipeline::tiny(folder.path());
    let tokens: Vec<u32> = (0..40).map(|i| (i * i * 7 + 31 * i) % 256).collect();
    let base = pipeline::options();
    // How far logits may be off, and at how many tokens at least. Codes are equal; the output head sums in another order.
    // Weights of 8 bits are multiplied as numbers here and as integers there, so that some code behind them differs.
    let (codes, floats) = ((2e-6, 40), (2e-5, 40));
    let choices = [
        ("duquant", base.clone(), codes),
        ("hadamard", Options { mode: Mode::Hadamard, permutations: 2, ..base.clone() }, codes),
        ("w4a8", Options { activation_bits: 8, weight_bits: 3, ..base.clone() }, codes),
        ("w8a8", Options { activation_bits: 8, weight_bits: 8, kv_bits: 8, ..base.clone() }, (2e-5, 2)),
        ("w4a16", Options { activation_bits: 16, ..base.clone() }, floats),
        ("rtn", Options::new(Method::Rtn), codes),
        ("kv16", Options { kv_bits: 16, ..base }, codes),
    ];
    let mut models: Vec<_> = choices
        .iter()
        .map(|(name, options, bound)| {
            (*name, pipeline::quantized(&float, &folder.path().join(name), options).0, *bound)
        })
        .collect();
    models.push(("float", float, floats));
    for (name, checkpoint, (most, least)) in models {
        let cpu = Model::load_on(&checkpoint, &Backend::Cpu(Isa::best().into())).unwrap();
        let device = Model::load_on(&checkpoint, &backend).unwrap();
        for decoded in [0, 9] {
            let (expected, got) = (logits(&cpu, &tokens, decoded), logits(&device, &tokens, decoded));
            let rows = got.chunks(cpu.vocabulary()).zip(expected.chunks(cpu.vocabulary()));
            let errors: Vec<f32> = rows.map(|(got, expected)| relative_error(got, expected)).collect();
            let equal = errors.iter().take_while(|&&error| error < most).count();
            assert!(equal >= least, "{name}, {decoded} tokens decoded: {errors:?}");
            assert!(errors.iter().all(|&error| error < 0.1), "{name}, {decoded} tokens decoded: {errors:?}");
        }
    }
}

/// The half-precision baseline: weights, keys and values rounded to 11 bits.
#[test]
fn a_tiny_model_in_half_precision_is_near() {
    let Some((_watched, backend)) = backend("a_tiny_model_in_half_precision_is_near") else { return };
    let Backend::Wgpu { gpu, .. } = backend else { panic!("a device") };
    if !gpu.has_f16() {
        println!("skipped: {} has no half precision", gpu.info().name);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let float = pipeline::tiny(folder.path());
    let tokens: Vec<u32> = (0..40).map(|i| (i * i * 7 + 31 * i) % 256).collect();
    let cpu = Model::load_on(&float, &Backend::Cpu(Isa::best().into())).unwrap();
    let device = Model::load_on(&float, &Backend::Wgpu { gpu, float: Dtype::F16 }).unwrap();
    assert!(device.layer_bytes() < cpu.layer_bytes() * 6 / 10);
    let error = relative_error(&logits(&device, &tokens, 9), &logits(&cpu, &tokens, 9));
    assert!(error > 0.0 && error < 1e-2, "{error}");
}

/// With the CPU's arithmetic the codes of the whole model are the CPU's, so the text is too, and the losses but for the
/// output head.
#[test]
fn smollm2_reads_and_writes_as_on_the_cpu() {
    let Some(path) = common::smollm2("smollm2_reads_and_writes_as_on_the_cpu") else { return };
    let Some((_watched, backend)) = backend("smollm2_reads_and_writes_as_on_the_cpu") else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = path.to_str().unwrap();
    let flags = ["quantize", model, "--out", "w4a4", "--mode", "hadamard", "--samples", "1"];
    common::json_of(folder.path(), &flags);
    let checkpoint = Checkpoint::open(&folder.path().join("w4a4")).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let text = include_str!("../assets/evaluation.txt");
    let tokens = tokenizer.encode(text).unwrap();
    let prompt = tokenizer.encode("Once upon a time").unwrap();
    let options = PerplexityOptions { window: 384, windows: Some(2) };
    let on = |backend: &Backend| {
        let model = Model::load_on(&checkpoint, backend).unwrap();
        let read = perplexity(&model, &tokens, &options, |_, _| ()).unwrap().perplexity;
        let choices = GenerateOptions { tokens: 64, temperature: 0.0, seed: 0, ignore_end: true };
        let written = generate(&model, &prompt, &choices, |_| true).unwrap().tokens;
        (read, written)
    };
    let (cpu, device) = (on(&Backend::default()), on(&backend));
    println!("perplexity {} on the CPU, {} on wgpu", cpu.0, device.0);
    assert!((device.0 / cpu.0 - 1.0).abs() < 1e-5, "perplexity {} on the CPU, {} on wgpu", cpu.0, device.0);
    assert_eq!(device.1, cpu.1, "greedy tokens");
}
