//! The model on CUDA against the model on the CPU.
#![cfg(all(feature = "cli", feature = "cuda"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails and reports this way")]

mod common;
mod cuda;
mod oracle;
#[path = "common/pipeline.rs"]
#[allow(dead_code, reason = "the model here has another shape")]
mod pipeline;

use common::Tiny;
use cuda::capture::Capturing;
use duquant::checkpoint::Checkpoint;
use duquant::kernels::cpu::Isa;
use duquant::kernels::cuda::{Arch, Device, Driver, Dtype};
use duquant::model::{Backend, Error, GenerateOptions, Model, State, generate};
use duquant::quantize::{Method, Mode, Options};
use std::path::Path;
use std::sync::Arc;

const TOKENS: usize = 28;

/// Grouped queries, heads of 64 channels.
fn tiny(folder: &Path) -> Checkpoint {
    let tiny = Tiny { layers: 2, hidden: 128, intermediate: 192, heads: 4, kv_heads: 2, head_dim: 64 };
    pipeline::with_outliers(folder, &tiny)
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

/// How far logits may be from the CPU's: root mean square over that of the logits.
enum Bound {
    /// In `f32`, half precision and bfloat16: what flows between kernels, some twenty times a layer, is rounded to 24, 11 and 8 bits,
    /// keys and values to 11, 11 and 8. Codes of 8 bits add little where one is on the other side of a tie.
    Near([f64; 3]),
    /// Of what quantization itself changes. Codes of 4 bits that fall on the other side of a tie, as some do after a rotation in
    /// half precision, are off by a whole step, and so are more of them a layer further; two quantizations without a code in common
    /// would be 1.4 apart.
    Share(f64),
}

fn choices() -> Vec<(&'static str, Options, Bound)> {
    let base = pipeline::options();
    let eight = Options { activation_bits: 8, kv_bits: 8, ..base.clone() };
    vec![
        ("duquant", base.clone(), Bound::Share(0.75)),
        ("hadamard", Options { mode: Mode::Hadamard, permutations: 2, ..base.clone() }, Bound::Share(0.75)),
        ("w4a8", eight.clone(), Bound::Near([5e-2; 3])),
        ("w8a8", Options { weight_bits: 8, ..eight }, Bound::Near([5e-2; 3])),
        ("rtn", Options::new(Method::Rtn), Bound::Share(0.6)),
        ("kv16", Options { kv_bits: 16, ..base }, Bound::Share(0.75)),
    ]
}

#[test]
fn a_tiny_model_gives_the_cpus_logits() {
    let devices = cuda::devices("a_tiny_model_gives_the_cpus_logits", &[Arch::Sm80, Arch::Sm90a]);
    if devices.is_empty() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let float = tiny(folder.path());
    let tokens = tokens();
    let whole = logits(&Model::load_on(&float, &Backend::Cpu(Isa::best().into())).unwrap(), &tokens, &[TOKENS]);
    let mut models = vec![("float", Bound::Near([2e-3, 6e-3, 4e-2]), float)];
    for (name, options, bound) in choices() {
        let (checkpoint, _) = pipeline::quantized(&models[0].2, &folder.path().join(name), &options);
        models.push((name, bound, checkpoint));
    }
    let mut faults = Vec::new();
    for (index, (name, bound, checkpoint)) in models.iter().enumerate() {
        let cpu = Model::load_on(checkpoint, &Backend::Cpu(Isa::best().into())).unwrap();
        let expected = logits(&cpu, &tokens, &[TOKENS]);
        let quantization = error(&expected, &whole);
        for (at, (place, device)) in devices.iter().enumerate() {
            // Half precision runs everything on the first device; other types and devices run what is their own.
            for (which, float) in [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().enumerate() {
                let needed = match (at, float) {
                    (0, Dtype::F16) => true,
                    (0, Dtype::F32) => [0, 1, 3, 5].contains(&index),
                    (0, Dtype::Bf16) => index == 0,
                    _ => index == 1 && float == Dtype::F16,
                };
                if !needed {
                    continue;
                }
                let model = Model::load_on(checkpoint, &on(device, float, 16)).unwrap();
                for parts in [&[TOKENS][..], &[9, 13, 1, 1, 3, 1]] {
                    let logits = logits(&model, &tokens, parts);
                    let got = error(&logits, &expected);
                    let own = error(&logits, &whole);
                    println!(
                        "{name} on {place}, {float:?}, {parts:?}: {got:.2e}, quantization {quantization:.2e}, own {own:.2e}"
                    );
                    let most = match bound {
                        Bound::Near(most) => most[which],
                        Bound::Share(share) => share * quantization,
                    };
                    // As far from the model that is not quantized as the CPU's.
                    let fair = quantization == 0.0 || (own / quantization - 1.0).abs() < 0.15;
                    if got > most || !fair {
                        faults.push(format!("{name} on {place}, {float:?}, {parts:?}: {got:.2e}, {own:.2e}"));
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Without a driver the command line says what to install, and with one it writes text.
#[test]
fn the_command_line_runs_it_or_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    tiny(folder.path());
    let output =
        common::run(folder.path(), &["generate", "tiny", "--prompt", "ab", "--tokens", "3", "--backend", "cuda"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if Driver::open(0).is_ok() {
        assert_eq!(output.status.code(), Some(0), "{said}");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("install") || said.contains("nvidia-smi"), "{said}");
}

/// Greedy tokens of `model` behind `prompt`, and the logits behind the last of them.
fn greedy(model: &Model, prompt: &[u32], steps: usize) -> (Vec<u32>, Vec<f32>) {
    let mut state = model.new_state(prompt.len() + steps).unwrap();
    let (mut part, mut out) = (prompt.to_vec(), Vec::new());
    for _ in 0..steps {
        model.forward(&mut state, &part).unwrap();
        out.push(model.greedy(&mut state).unwrap());
        part = vec![*out.last().unwrap()];
    }
    let mut last = vec![0.0; model.vocabulary()];
    let rows = if steps > 1 { 0..1 } else { prompt.len() - 1..prompt.len() };
    model.logits(&mut state, rows, &mut last).unwrap();
    (out, last)
}

/// A captured step takes token and position from device memory: replayed, it gives what launches give, bit for bit.
#[test]
fn a_captured_step_is_replayed() {
    for (place, device) in cuda::devices("a_captured_step_is_replayed", &[Arch::Sm80]) {
        let folder = tempfile::tempdir().unwrap();
        let float = tiny(folder.path());
        let options = Options { mode: Mode::Hadamard, permutations: 2, ..pipeline::options() };
        let (quantized, _) = pipeline::quantized(&float, &folder.path().join("quantized"), &options);
        for checkpoint in [&float, &quantized] {
            let plain = Model::load_on(checkpoint, &on(&device, Dtype::F16, 64)).unwrap();
            let capturing = Arc::new(Capturing::new(Arc::clone(&device)));
            let shared: Arc<dyn Device> = Arc::clone(&capturing) as _;
            let captured = Model::load_on(checkpoint, &on(&shared, Dtype::F16, 64)).unwrap();
            let prompt = &tokens()[..9];
            // Over the end of a page.
            let expected = greedy(&plain, prompt, 12);
            assert_eq!(greedy(&captured, prompt, 3).0, expected.0[..3], "{place}");
            let before = capturing.counts();
            assert_eq!(greedy(&captured, prompt, 12), expected, "{place}");
            let [captures, replays, launches] = capturing.counts();
            // The prompt and the first step, which loads what is loaded lazily, are launched; the other ten steps are replayed.
            assert_eq!((captures - before[0], replays - before[1]), (1, 10), "{place}");
            let short = greedy_launches(&capturing, &captured, prompt, 4);
            let long = greedy_launches(&capturing, &captured, prompt, 5);
            assert_eq!(long - short, 2, "{place}: a replayed step launches the output head and the choice alone");
            assert!(launches > before[2]);
        }
    }
}

fn greedy_launches(device: &Capturing, model: &Model, prompt: &[u32], steps: usize) -> usize {
    let before = device.counts()[2];
    greedy(model, prompt, steps);
    device.counts()[2] - before
}

/// Text of the CPU's where its choice is clear.
#[test]
fn greedy_text_is_the_cpus() {
    for (place, device) in cuda::devices("greedy_text_is_the_cpus", &[Arch::Sm80]) {
        let folder = tempfile::tempdir().unwrap();
        let float = tiny(folder.path());
        let cpu = Model::load_on(&float, &Backend::Cpu(Isa::best().into())).unwrap();
        let model = Model::load_on(&float, &on(&device, Dtype::F32, 64)).unwrap();
        let options = GenerateOptions { tokens: 16, temperature: 0.0, seed: 0, ignore_end: true };
        let prompt = &tokens()[..7];
        let [expected, got] = [&cpu, &model].map(|model| generate(model, prompt, &options, |_| true).unwrap().tokens);
        // Up to where the CPU's second choice is near.
        let text: Vec<u32> = prompt.iter().chain(&expected).copied().collect();
        let rows = logits(&cpu, &text, &[text.len()]);
        let clear = rows.chunks(cpu.vocabulary()).skip(prompt.len() - 1).take_while(|row| {
            let mut sorted = row.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let size = row.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            sorted[0] - sorted[1] > 0.02 * size
        });
        let clear = clear.count().min(expected.len());
        assert!(clear >= 2, "{place}: {clear} clear choices");
        assert_eq!(got[..clear], expected[..clear], "{place}");
    }
}

#[test]
fn a_rewound_state_is_as_a_fresh_one() {
    for (place, device) in cuda::devices("a_rewound_state_is_as_a_fresh_one", &[Arch::Sm80]) {
        let folder = tempfile::tempdir().unwrap();
        let (checkpoint, _) =
            pipeline::quantized(&tiny(folder.path()), &folder.path().join("quantized"), &pipeline::options());
        let model = Model::load_on(&checkpoint, &on(&device, Dtype::F16, 16)).unwrap();
        let (text, other) = (tokens(), [7, 200, 31, 5]);
        let mut fresh = model.new_state(40).unwrap();
        run(&model, &mut fresh, &text[..12]);
        let expected = run(&model, &mut fresh, &other);
        let expected_next = run(&model, &mut fresh, &[9]);
        let mut state = model.new_state(40).unwrap();
        assert!(state.is_empty() && state.cache_bytes() > 0);
        run(&model, &mut state, &text);
        // A token that the device holds as its next one is not that of the rewound state.
        let held = model.greedy(&mut state).unwrap();
        state.truncate(12);
        assert_eq!(state.len(), 12);
        assert_eq!(run(&model, &mut state, &other), expected, "{place}");
        assert_eq!(run(&model, &mut state, &[9]), expected_next, "{place}");
        state.truncate(12);
        run(&model, &mut state, &[held]);
        state.clear();
        assert_eq!(run(&model, &mut state, &text[..12])[..256], {
            let mut fresh = model.new_state(40).unwrap();
            run(&model, &mut fresh, &text[..12])[..256].to_vec()
        });
    }
}

#[test]
fn bad_calls_are_errors() {
    for (_, device) in cuda::devices("bad_calls_are_errors", &[Arch::Sm80]) {
        let folder = tempfile::tempdir().unwrap();
        let float = tiny(folder.path());
        let backend = on(&device, Dtype::F16, 3);
        let model = Model::load_on(&float, &backend).unwrap();
        let mut state = model.new_state(10).unwrap();
        model.forward(&mut state, &[]).unwrap();
        assert!(matches!(model.greedy(&mut state), Err(Error::Shape { .. })));
        assert!(matches!(model.forward(&mut state, &[1, 256]), Err(Error::Token { token: 256, vocabulary: 256 })));
        assert!(matches!(model.forward(&mut state, &[1; 11]), Err(Error::Capacity { capacity: 10, wanted: 11 })));
        assert_eq!(state.len(), 0);
        model.forward(&mut state, &[1; 10]).unwrap();
        assert!(matches!(model.forward(&mut state, &[1]), Err(Error::Capacity { capacity: 10, wanted: 11 })));
        let mut short = vec![0.0; 255];
        assert!(matches!(model.logits(&mut state, 9..10, &mut short), Err(Error::Kernel { .. })));
        // A model of the same shape is still another one.
        let twin = Model::load_on(&float, &backend).unwrap();
        assert!(matches!(twin.forward(&mut state, &[]), Err(Error::State)));
        let mut foreign = Model::load_on(&float, &Backend::Cpu(Isa::best().into())).unwrap().new_state(10).unwrap();
        assert!(matches!(model.forward(&mut foreign, &[1]), Err(Error::State)));
        // A state keeps what it needs of its model.
        drop(model);
        assert_eq!(state.len(), 10);
    }
}
