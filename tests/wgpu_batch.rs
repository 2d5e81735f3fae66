//! Sequences in lockstep on wgpu give what each of them gives alone, however passes cut them.
#![cfg(all(feature = "cli", feature = "wgpu"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails and reports this way")]

#[path = "batch/mod.rs"]
mod batch;
mod common;
mod gpu;
#[path = "common/pipeline.rs"]
#[allow(dead_code, reason = "the model here has another shape")]
mod pipeline;

use batch::{alone, texts, together};
use duquant::checkpoint::Checkpoint;
use duquant::kernels::wgpu::{Arithmetic, Dtype, Gpu, GpuOptions};
use duquant::model::{Backend, Model, StateDesc};
use duquant::quantize::Options;
use std::path::Path;
use std::sync::Arc;

/// A device of its own, and an ear for what the validation layers say about it; `None` without an adapter.
fn backend(test: &str, arithmetic: Arithmetic) -> Option<(gpu::TestGpu, Backend)> {
    let watched = gpu::gpu_with(test, arithmetic)?;
    let options =
        GpuOptions { adapter: std::env::var("WGPU_ADAPTER_NAME").ok(), validation: true, ..GpuOptions::default() };
    let gpu = Gpu::open(&options).unwrap().with_arithmetic(arithmetic).unwrap();
    Some((watched, Backend::Wgpu { gpu: Arc::new(gpu), float: Dtype::F32 }))
}

fn checkpoints(folder: &Path) -> Vec<(&'static str, Checkpoint)> {
    let float = pipeline::tiny(folder);
    let quantized = |name: &str, options: &Options| pipeline::quantized(&float, &folder.join(name), options).0;
    let base = pipeline::options();
    quantized("window", &base);
    let window = batch::with_window(&folder.join("window"), 7);
    let kv16 = quantized("kv16", &Options { kv_bits: 16, ..base.clone() });
    vec![("w4a4", quantized("w4a4", &base)), ("kv16", kv16), ("window", window), ("float", float)]
}

/// With the CPU's arithmetic a token's codes depend on its sequence alone, so that the bits are the same; the fast kernels take other
/// tiles for other numbers of rows, and attention for few tokens is split over the context.
#[test]
fn each_sequence_is_as_alone() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(folder.path());
    for (arithmetic, cases) in [
        (
            Arithmetic::Reproducible,
            &[
                (2, &[1, 5, 1][..], &[None, Some(1), Some(7)][..]),
                (3, &[5, 1, 9], &[None, Some(4)]),
                (65, &[2, 1], &[None, Some(66), Some(13)]),
                (3, &[300, 1], &[None, Some(77)]),
            ][..],
        ),
        (Arithmetic::Fast, &[(3, &[5, 1, 9], &[None, Some(4)]), (2, &[300, 1, 3], &[None])]),
    ] {
        let Some((_watched, backend)) = backend("each_sequence_is_as_alone", arithmetic) else { return };
        let exact = arithmetic == Arithmetic::Reproducible;
        for (name, checkpoint) in &checkpoints {
            // Where sums differ in their last bits, some code of 4 bits is another one, and all behind it.
            if !exact && *name != "float" {
                continue;
            }
            let model = Model::load_on(checkpoint, &backend).unwrap();
            for &(sequences, parts, limits) in cases {
                // Long texts once: the driver on the CPU is slow.
                if exact && sequences * parts[0] > 100 && *name != "w4a4" && *name != "window" {
                    continue;
                }
                let texts = texts(sequences, parts.iter().sum());
                let expected: Vec<Vec<f32>> = texts.iter().map(|text| alone(&model, text, parts, None)).collect();
                for &rows in limits {
                    let got = together(&model, &texts, parts, rows);
                    for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
                        let same = got.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
                        let error = batch::error(got, expected);
                        let fine = same || (*name == "float" && error < 1e-5);
                        assert!(fine, "{name}, {index} of {sequences}, {parts:?} by {rows:?}: {error:.2e}");
                    }
                }
            }
        }
    }
}

#[test]
fn layers_run_alone_and_contexts_are_filled_in() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_watched, backend)) = backend("layers_run_alone_and_contexts_are_filled_in", Arithmetic::Fast) else {
        return;
    };
    for (_, checkpoint) in checkpoints(folder.path()).iter().filter(|(name, _)| ["w4a4", "float"].contains(name)) {
        let model = Model::load_on(checkpoint, &backend).unwrap();
        for (sequences, rows) in [(1, None), (3, Some(2))] {
            batch::runs_of_the_layers(&model, sequences, rows);
        }
        // A state for decoding alone has little scratch memory.
        let memory = |rows| model.new_state_with(&StateDesc { sequences: 2, capacity: 300, rows }).unwrap().memory();
        let (all, few) = (memory(None), memory(Some(2)));
        assert!(20 * few.activations < all.activations, "{few:?}, {all:?}");
        assert_eq!(few.kv_cache, all.kv_cache);
    }
}

#[test]
fn contexts_are_those_of_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_watched, backend)) = backend("contexts_are_those_of_their_numbers", Arithmetic::Reproducible) else {
        return;
    };
    for (_, checkpoint) in checkpoints(folder.path()).iter().filter(|(name, _)| ["w4a4", "float"].contains(name)) {
        batch::contexts_that_no_prompt_was_run_for(&Model::load_on(checkpoint, &backend).unwrap(), 1e-5);
    }
}

#[test]
fn bad_calls_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_watched, backend)) = backend("bad_calls_are_errors", Arithmetic::Fast) else { return };
    batch::bad_calls(&Model::load_on(&pipeline::tiny(folder.path()), &backend).unwrap(), 1e-5);
}
