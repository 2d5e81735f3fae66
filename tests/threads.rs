//! Threads change no result: quantizing and running give the same bits on one, two and three.
#![cfg(feature = "cli")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails and reports this way"
)]

mod common;
#[path = "common/pipeline.rs"]
mod pipeline;

use duquant::checkpoint::Checkpoint;
use duquant::kernels::cpu::Isa;
use duquant::model::{Backend, Model};
use duquant::quantize::{Mode, Options, Propagation, Rounding};
use std::collections::BTreeMap;
use std::path::Path;

fn on_threads<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

/// Every file but the report, which holds times, and the index of hashes, which holds the report's.
fn weights(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let shards = entries.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    shards.map(|path| (path.file_name().unwrap().display().to_string(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn quantizing_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let float = pipeline::tiny(folder.path());
    let best = pipeline::options();
    for (name, options) in [
        ("best", best.clone()),
        ("official", Options { mode: Mode::Official, propagation: Propagation::Quantized, ..best.clone() }),
        ("compensated", Options { rounding: Rounding::Compensated, ..best }),
    ] {
        let run = |threads: usize| {
            let out = folder.path().join(format!("{name}-{threads}"));
            on_threads(threads, || pipeline::quantized(&float, &out, &options));
            weights(&out)
        };
        let one = run(1);
        assert!(one.len() >= 3, "{name}: two layers and the rest, got {:?}", one.keys());
        for threads in [2, 3] {
            let other = run(threads);
            assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "{name}");
            for (file, bytes) in &one {
                assert!(bytes == &other[file], "{name}: {file} differs on {threads} threads");
            }
        }
    }
}

/// The bits of the logits of a prompt and of tokens decoded behind it.
fn logits(checkpoint: &Checkpoint, isa: Isa, prompt: &[u32]) -> Vec<u32> {
    let model = Model::load_on(checkpoint, &Backend::Cpu(isa.into())).unwrap();
    let mut state = model.new_state(prompt.len() + 8).unwrap();
    let mut bits = Vec::new();
    let mut row = vec![0.0_f32; model.vocabulary()];
    let mut part = prompt.to_vec();
    for step in 0..8 {
        model.forward(&mut state, &part).unwrap();
        model.logits(&mut state, part.len() - 1..part.len(), &mut row).unwrap();
        bits.extend(row.iter().map(|logit| logit.to_bits()));
        part = vec![(step * 37 + 5) % 256];
    }
    bits
}

#[test]
fn running_gives_the_same_bits_on_threads_and_instruction_sets() {
    let folder = tempfile::tempdir().unwrap();
    let float = pipeline::tiny(folder.path());
    let (packed, _) = pipeline::quantized(&float, &folder.path().join("w4a4"), &pipeline::options());
    for prompt in [vec![1, 2, 3], (0..150_u32).map(|i| (i * 91 + 7) % 256).collect()] {
        for (name, checkpoint) in [("W4A4", &packed), ("FP32", &float)] {
            let isas: &[Isa] = if name == "W4A4" { Isa::available() } else { &[Isa::Portable] };
            for &isa in isas {
                let one = on_threads(1, || logits(checkpoint, isa, &prompt));
                for threads in [2, 3] {
                    let other = on_threads(threads, || logits(checkpoint, isa, &prompt));
                    assert!(one == other, "{name}, {}, {} tokens: {threads} threads", isa.name(), prompt.len());
                }
            }
        }
    }
}
