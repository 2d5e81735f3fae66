//! Sequences in lockstep on CUDA give what each of them gives alone, launch by launch and as a graph.
#![cfg(all(feature = "cli", feature = "cuda"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails and reports this way")]

#[path = "batch/mod.rs"]
mod batch;
mod common;
mod cuda;
mod oracle;
#[path = "common/pipeline.rs"]
#[allow(dead_code, reason = "the model here has another shape")]
mod pipeline;

use batch::{alone, texts, together};
use common::Tiny;
use cuda::capture::Capturing;
use duquant::checkpoint::Checkpoint;
use duquant::kernels::cuda::{Arch, Device, Dtype, ceilings};
use duquant::model::{Backend, Model, StateDesc};
use duquant::quantize::Options;
use std::path::Path;
use std::sync::Arc;

/// Grouped queries, heads of 64 channels: in floating point; W4A8, where a code on the other side of a tie changes little; W4A4; and
/// the first with a sliding window.
fn checkpoints(folder: &Path) -> Vec<(&'static str, Checkpoint)> {
    let tiny = Tiny { layers: 2, hidden: 128, intermediate: 192, heads: 4, kv_heads: 2, head_dim: 64 };
    let float = pipeline::with_outliers(folder, &tiny);
    let base = pipeline::options();
    let eight = Options { activation_bits: 8, kv_bits: 8, ..base.clone() };
    let quantized = |name: &str, options: &Options| pipeline::quantized(&float, &folder.join(name), options).0;
    let (w4a4, w4a8) = (quantized("w4a4", &base), quantized("w4a8", &eight));
    let other = folder.join("other");
    pipeline::with_outliers(&other, &tiny);
    vec![("w4a4", w4a4), ("w4a8", w4a8), ("window", batch::with_window(&other.join("tiny"), 7)), ("float", float)]
}

fn on(device: &Arc<dyn Device>) -> Backend {
    Backend::Cuda { device: Arc::clone(device), float: Dtype::F16, chunk: 16 }
}

/// Other numbers of rows take other kernels, whose sums in floating point differ in their last bits: half precision rounds them to
/// 11. Codes of 4 bits that come out of it may be others then, which says nothing about who got whose keys; so it is the error of
/// most sequences that is bounded there.
#[test]
fn each_sequence_is_as_alone() {
    for (place, device) in cuda::devices("each_sequence_is_as_alone", &[Arch::Sm80, Arch::Sm90a]) {
        let folder = tempfile::tempdir().unwrap();
        for (name, checkpoint) in checkpoints(folder.path()) {
            // The runner is the same for all chips; the host is slow.
            if place.contains("sm_90a") && name != "w4a4" {
                continue;
            }
            let model = Model::load_on(&checkpoint, &on(&device)).unwrap();
            for (sequences, parts, limits) in [
                (3, &[5, 1, 1, 1, 9][..], &[None, Some(8)][..]),
                (2, &[1, 21, 1, 1], &[None]),
                (9, &[1, 1], &[None, Some(8)]),
            ] {
                let texts = texts(sequences, parts.iter().sum());
                let expected: Vec<Vec<f32>> = texts.iter().map(|text| alone(&model, text, parts, None)).collect();
                for &rows in limits {
                    let got = together(&model, &texts, parts, rows);
                    let mut errors: Vec<f64> = got.iter().zip(&expected).map(|(a, b)| batch::error(a, b)).collect();
                    println!("{name} on {place}, {sequences} sequences, {parts:?} by {rows:?}: {errors:?}");
                    errors.sort_by(f64::total_cmp);
                    let (middle, most) = (errors[errors.len() / 2], errors[errors.len() - 1]);
                    let bounds = match name {
                        "w4a4" => (0.3, 0.7),
                        "w4a8" => (5e-2, 5e-2),
                        _ => (3e-3, 3e-3),
                    };
                    assert!(middle < bounds.0 && most < bounds.1, "{name} on {place}: {errors:?}");
                }
            }
        }
    }
}

/// Steps of several sequences are replayed like those of one, and give what launches give.
#[test]
fn steps_are_captured() {
    for (place, device) in cuda::devices("steps_are_captured", &[Arch::Sm80]) {
        let folder = tempfile::tempdir().unwrap();
        let (_, checkpoint) = checkpoints(folder.path()).swap_remove(0);
        let plain = Model::load_on(&checkpoint, &on(&device)).unwrap();
        let capturing = Arc::new(Capturing::new(Arc::clone(&device)));
        let shared: Arc<dyn Device> = Arc::clone(&capturing) as _;
        let captured = Model::load_on(&checkpoint, &on(&shared)).unwrap();
        // Over the end of a page; with fewer rows than sequences a step is several passes in one graph.
        for (sequences, prompt, rows) in [(2, 60, None), (9, 3, Some(8))] {
            let parts = [&[prompt][..], &[1; 6]].concat();
            let texts = texts(sequences, prompt + 6);
            let expected = together(&plain, &texts, &parts, rows);
            let before = capturing.counts();
            assert!(together(&captured, &texts, &parts, rows) == expected, "{place}");
            let [captures, replays, _] = capturing.counts();
            assert_eq!((captures - before[0], replays - before[1]), (1, 5), "{place}");
        }
        // The layers alone: the first run of a step launches, captures and replays before it is timed.
        let mut state = captured.new_state_with(&StateDesc { sequences: 3, capacity: 9, rows: None }).unwrap();
        let x = vec![0.5; captured.config().hidden];
        for replays in [2, 1, 1] {
            let before = capturing.counts();
            captured.run_layers(&mut state, &x, 1).unwrap();
            assert_eq!(capturing.counts()[1] - before[1], replays, "{place}");
        }
    }
}

#[test]
fn layers_run_alone_and_contexts_are_filled_in() {
    for (_, device) in cuda::devices("layers_run_alone_and_contexts_are_filled_in", &[Arch::Sm80]) {
        let folder = tempfile::tempdir().unwrap();
        let captured: Arc<dyn Device> = Arc::new(Capturing::new(Arc::clone(&device)));
        for (name, checkpoint) in checkpoints(folder.path()) {
            if !["w4a4", "float"].contains(&name) {
                continue;
            }
            for device in [&device, &captured] {
                let model = Model::load_on(&checkpoint, &on(device)).unwrap();
                for (sequences, rows) in [(1, None), (3, None), (10, Some(8))] {
                    batch::runs_of_the_layers(&model, sequences, rows);
                }
                batch::contexts_that_no_prompt_was_run_for(&model, if name == "float" { 3e-3 } else { 0.5 });
            }
        }
    }
}

/// The host shim says nothing about speed; what is left is that the kernels run and that amounts and times are put together.
#[test]
fn a_device_has_ceilings() {
    for (place, device) in cuda::devices("a_device_has_ceilings", &[Arch::Sm80, Arch::Sm90a]) {
        let seen = [
            ceilings::integer_per_second(&device).unwrap(),
            ceilings::half_per_second(&device, 16).unwrap(),
            ceilings::bytes_per_second(&device, 1 << 20).unwrap(),
        ];
        assert!(seen.iter().all(|rate| rate.is_finite() && *rate > 1e3), "{place}: {seen:?}");
    }
}

#[test]
fn bad_calls_are_errors() {
    for (_, device) in cuda::devices("bad_calls_are_errors", &[Arch::Sm80]) {
        let folder = tempfile::tempdir().unwrap();
        let (_, checkpoint) = checkpoints(folder.path()).swap_remove(3);
        batch::bad_calls(&Model::load_on(&checkpoint, &on(&device)).unwrap(), 3e-3);
    }
}
