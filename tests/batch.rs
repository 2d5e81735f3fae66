//! Sequences in lockstep give what each of them gives alone, however passes cut them: the same bits where integers are multiplied.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

#[path = "batch/mod.rs"]
mod batch;
mod common;
#[path = "common/pipeline.rs"]
#[allow(dead_code, reason = "the model here has another shape")]
mod pipeline;

use batch::{alone, texts, together};
use duquant::checkpoint::Checkpoint;
use duquant::model::{Backend, Model};
use duquant::quantize::Options;
use std::path::Path;

/// Floating point, W4A4 with keys and values in codes and not, and W4A4 with a sliding window; all with grouped queries.
fn checkpoints(folder: &Path) -> Vec<(&'static str, Checkpoint)> {
    let float = pipeline::tiny(folder);
    let quantized = |name: &str, options: &Options| pipeline::quantized(&float, &folder.join(name), options).0;
    let base = pipeline::options();
    let all = vec![
        ("w4a4", quantized("w4a4", &base)),
        ("kv16", quantized("kv16", &Options { kv_bits: 16, ..base.clone() })),
        ("window", {
            quantized("window", &base);
            batch::with_window(&folder.join("window"), 7)
        }),
    ];
    std::iter::once(("float", float)).chain(all).collect()
}

#[test]
fn each_sequence_is_as_alone() {
    let folder = tempfile::tempdir().unwrap();
    for (name, checkpoint) in checkpoints(folder.path()) {
        let model = Model::load_on(&checkpoint, &Backend::default()).unwrap();
        for (sequences, parts, limits) in [
            (1, &[5, 1, 1, 2][..], &[None, Some(3)][..]),
            (2, &[1, 1, 5, 1], &[None, Some(1), Some(7)]),
            (3, &[5, 1, 4, 1], &[None, Some(1), Some(2), Some(7)]),
            (65, &[5, 1, 1], &[None, Some(64), Some(66), Some(13)]),
            (3, &[300, 1, 1], &[None, Some(256), Some(77)]),
        ] {
            let texts = texts(sequences, parts.iter().sum());
            let expected: Vec<Vec<f32>> = texts.iter().map(|text| alone(&model, text, parts, None)).collect();
            for &rows in limits {
                for (index, (got, expected)) in together(&model, &texts, parts, rows).iter().zip(&expected).enumerate()
                {
                    let same = got.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    let error = batch::error(got, expected);
                    // The floating-point product has one order of sums for up to 16 tokens and another for more.
                    let fine = same || (name == "float" && error < 1e-5);
                    assert!(fine, "{name}, {index} of {sequences}, {parts:?} by {rows:?}: {error:.2e}");
                }
            }
        }
    }
}

#[test]
fn layers_run_alone_and_contexts_are_filled_in() {
    let folder = tempfile::tempdir().unwrap();
    for (_, checkpoint) in checkpoints(folder.path()).iter().take(2) {
        let model = Model::load_on(checkpoint, &Backend::default()).unwrap();
        for (sequences, rows) in [(1, None), (3, None), (3, Some(2))] {
            batch::runs_of_the_layers(&model, sequences, rows);
        }
        batch::contexts_that_no_prompt_was_run_for(&model, 1e-5);
    }
}

#[test]
fn bad_calls_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    batch::bad_calls(&Model::load_on(&pipeline::tiny(folder.path()), &Backend::default()).unwrap(), 1e-5);
}
