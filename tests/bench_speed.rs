//! `duquant bench layer`, `model` and `kernel`: the contract of what they print, on shapes so small that times mean nothing.
#![cfg(feature = "cli")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail their test, and say what is skipped"
)]

mod common;

use common::{Tiny, json_of, run};
use duquant::bench::{Method, Points, Record};
use serde_json::Value;
use std::path::Path;

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40}"#;

fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    folder
}

fn points(value: &Value) -> &[Value] {
    value["points"].as_array().unwrap()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} is no number in {value}"))
}

/// Exit status and the last line of standard error.
fn failure(at: &Path, arguments: &[&str]) -> (i32, String) {
    let output = run(at, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code().unwrap(), said.lines().last().unwrap_or_default().to_owned())
}

/// What the issue promises of every point.
fn check_point(point: &Value) {
    for key in ["median_ms", "p10_ms", "p90_ms", "peak_bytes", "tokens_per_second"] {
        assert!(number(point, key) > 0.0, "{key} in {point}");
    }
    assert!(number(point, "p10_ms") <= number(point, "median_ms"));
    assert!(number(point, "median_ms") <= number(point, "p90_ms"));
    for key in ["method", "bits", "backend", "device", "phase"] {
        assert!(!point[key].as_str().unwrap().is_empty(), "{key}");
    }
    let kernels = point["kernels"].as_array().unwrap();
    assert_eq!(kernels.len(), 10);
    for kernel in kernels {
        for key in ["bytes", "ops", "ms"] {
            assert!(number(kernel, key) > 0.0, "{key} in {kernel}");
        }
        assert!(!kernel["variant"].as_str().unwrap().is_empty(), "{kernel}");
    }
    let memory = &point["memory"];
    let sum: f64 = ["weights", "activations", "kv_cache", "workspace"].iter().map(|key| number(memory, key)).sum();
    assert_eq!(sum, number(point, "peak_bytes"));
}

#[test]
fn a_layer_is_measured_in_both_phases_by_every_method() {
    let folder = workplace();
    let all = Method::NAMES.join(",");
    let arguments = [
        "bench",
        "layer",
        "--model",
        "config.json",
        "--length",
        "20",
        "--batch",
        "1,3",
        "--steps",
        "5",
        "--samples",
        "3",
        "--methods",
        &all,
        "--bits",
        "W4A4,W8A8",
        "--out",
        "out.json",
    ];
    let record = json_of(folder.path(), &arguments);
    assert_eq!(record["bench"], "layer");
    assert_eq!(record["failures"], serde_json::json!([]));
    // 2 phases, 2 batches, 3 baselines, 5 methods of 2 kinds of bits.
    assert_eq!(points(&record).len(), 2 * 2 * (3 + 5 * 2));
    for point in points(&record) {
        check_point(point);
        let (batch, prefill) = (number(point, "batch"), point["phase"] == "prefill");
        assert_eq!(number(point, "tokens"), if prefill { 20.0 * batch } else { batch });
        let samples = point["samples_ms"].as_array().unwrap().len();
        let float = point["bits"].as_str().unwrap().contains('P') || point["bits"] == "BF16";
        // Short prefills count up to eight times a sample.
        let repeats = if prefill && !float { samples / 3 } else { 1 };
        assert!((1..=8).contains(&repeats) && samples == if prefill { 3 * repeats } else { 5 }, "{point}");
        assert_eq!(point["transform_share"].is_null(), float, "{point}");
        let transforms = !float && point["method"] != "rtn";
        assert_eq!(point["transform_overhead"].is_number(), transforms, "{point}");
        assert!(number(point, "speedup") > 0.0);
    }
    let baseline = &points(&record)[0];
    assert_eq!((baseline["method"].as_str(), number(baseline, "speedup")), (Some("fp32"), 1.0));
    // The file is the same record, and the library reads it.
    let text = std::fs::read_to_string(folder.path().join("out.json")).unwrap();
    let read: Record = serde_json::from_str(&text).unwrap();
    let Points::Layer(read) = &read.points else { panic!("another bench") };
    assert_eq!(read.len(), points(&record).len());
}

#[test]
fn counted_memory_follows_bits_batch_and_context() {
    let folder = workplace();
    let memory = |batch: &str, length: &str, method: &str| {
        let arguments = [
            "bench",
            "layer",
            "--model",
            "config.json",
            "--phase",
            "prefill",
            "--length",
            length,
            "--batch",
            batch,
            "--samples",
            "1",
            "--methods",
            method,
        ];
        points(&json_of(folder.path(), &arguments))[0]["memory"].clone()
    };
    let (fp32, fp16) = (memory("1", "64", "fp32"), memory("1", "64", "fp16"));
    let w4a4 = memory("1", "64", "duquant");
    let weights = number(&fp32, "weights");
    assert!(number(&fp16, "weights") < 0.51 * weights && number(&fp16, "weights") > 0.5 * weights);
    // 4 bits a weight, and the tables of four transforms on top.
    assert!(number(&memory("1", "64", "rtn"), "weights") < 0.14 * weights);
    assert!(number(&w4a4, "weights") < 0.6 * weights);
    let (two, long) = (memory("2", "64", "duquant"), memory("1", "128", "duquant"));
    assert_eq!(number(&two, "kv_cache"), 2.0 * number(&w4a4, "kv_cache"));
    assert_eq!(number(&long, "kv_cache"), 2.0 * number(&w4a4, "kv_cache"));
    assert!(number(&w4a4, "kv_cache") < 0.25 * number(&fp32, "kv_cache"));
}

#[test]
fn whole_models_are_measured_with_random_and_with_real_weights() {
    let folder = workplace();
    let arguments = [
        "bench",
        "model",
        "--model",
        "config.json",
        "--length",
        "9",
        "--batch",
        "1,2",
        "--steps",
        "4",
        "--samples",
        "2",
        "--methods",
        "fp16,duquant",
    ];
    let record = json_of(folder.path(), &arguments);
    assert_eq!(record["bench"], "model");
    assert_eq!(points(&record).len(), 2 * 2 * 2);
    points(&record).iter().for_each(check_point);
    let quantized = points(&record).iter().find(|point| point["method"] == "duquant").unwrap();
    assert!(number(quantized, "speedup") > 0.0);

    Tiny::default().write(&folder.path().join("tiny"));
    let arguments = [
        "bench",
        "model",
        "--model",
        "tiny",
        "--phase",
        "decode",
        "--length",
        "9",
        "--steps",
        "4",
        "--methods",
        "fp32",
    ];
    let record = json_of(folder.path(), &arguments);
    assert_eq!(points(&record).len(), 1);
    check_point(&points(&record)[0]);
}

#[test]
fn kernels_are_set_beside_the_ceilings_of_the_same_run() {
    let folder = workplace();
    let arguments = [
        "bench",
        "kernel",
        "--model",
        "config.json",
        "--phase",
        "prefill",
        "--length",
        "33",
        "--samples",
        "3",
        "--methods",
        "fp32,duquant",
    ];
    let record = json_of(folder.path(), &arguments);
    assert_eq!(points(&record).len(), 2 * 10);
    for key in ["bytes_per_second", "f32_per_second", "integer_per_second"] {
        assert!(number(&record["ceilings"], key) > 1e8, "{key}");
    }
    for point in points(&record) {
        assert!(number(point, "of_ceiling") > 0.0, "{point}");
        assert!(["memory", "compute"].contains(&point["bound"].as_str().unwrap()));
        assert!(number(&point["shape"], "tokens") == 33.0, "{point}");
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn wgpu_counts_its_memory_and_knows_its_ceilings() {
    use duquant::kernels::wgpu::{Gpu, GpuOptions};
    if let Err(fault) = Gpu::open(&GpuOptions::default()) {
        assert!(std::env::var_os("CI").is_none(), "{fault}");
        println!("skipped wgpu_counts_its_memory_and_knows_its_ceilings: {fault}");
        return;
    }
    let folder = workplace();
    let asked =
        ["--model", "config.json", "--phase", "prefill", "--length", "33", "--samples", "2", "--backend", "wgpu"];
    let arguments = |bench| [&["bench", bench], &asked[..], &["--methods", "fp32,duquant"]].concat();
    for bench in ["layer", "model"] {
        for point in points(&json_of(folder.path(), &arguments(bench))) {
            check_point(point);
            // Beside its buffers a device holds what the host reads results through.
            let (counted, taken) = (number(point, "peak_bytes"), number(point, "device_bytes"));
            assert!(
                (0.95 * counted..4.0 * counted + 4e6).contains(&taken),
                "{bench}: {counted} counted, {taken} taken"
            );
        }
    }
    let record = json_of(folder.path(), &arguments("kernel"));
    for key in ["bytes_per_second", "f32_per_second", "integer_per_second"] {
        assert!(number(&record["ceilings"], key) > 1e7, "{key}");
    }
    for point in points(&record) {
        assert!(number(point, "of_ceiling") > 0.0, "{point}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_before_the_work_begins() {
    let folder = workplace();
    let at = folder.path();
    let (status, said) = failure(at, &["bench", "layer", "--model", "llama9"]);
    assert_eq!(status, 1);
    assert!(said.contains("unknown model llama9") && said.contains("llama2-7b"), "{said}");

    let (status, said) = failure(
        at,
        &["bench", "layer", "--model", "llama2-70b", "--phase", "decode", "--batch", "60000", "--length", "4096"],
    );
    assert_eq!(status, 1);
    assert!(said.contains("decode at batch 60000") && said.contains("GB"), "{said}");

    for (flag, value) in
        [("--methods", "gptq"), ("--bits", "W1A4"), ("--batch", "0"), ("--length", "0"), ("--phase", "x")]
    {
        let (status, said) = failure(at, &["bench", "layer", "--model", "config.json", flag, value]);
        assert_eq!(status, 2, "{flag} {value}: {said}");
    }
    std::fs::write(at.join("bad.json"), "{\"model_type\": \"llama\"").unwrap();
    let (status, said) = failure(at, &["bench", "layer", "--model", "bad.json"]);
    assert_eq!(status, 1);
    assert!(said.contains("bad.json"), "{said}");

    let (status, said) = failure(at, &["bench", "layer", "--model", "config.json", "--out", "no/such/folder/x.json"]);
    assert_eq!(status, 1);
    assert!(said.contains("cannot write no/such/folder/x.json"), "{said}");
    let (status, said) = failure(at, &["bench", "model", "--model", "config.json", "--model", "llama2-7b"]);
    assert_eq!(status, 2, "{said}");
    #[cfg(feature = "cuda")]
    if !duquant_has_cuda() {
        let (status, said) = failure(at, &["bench", "layer", "--model", "config.json", "--backend", "cuda"]);
        assert_eq!(status, 1, "{said}");
        assert!(said.starts_with("error: "), "{said}");
    }
}

#[cfg(feature = "cuda")]
fn duquant_has_cuda() -> bool {
    duquant::kernels::cuda::Driver::open(0).is_ok()
}

/// A model that turns out to be damaged when it is loaded leaves the points of those before it.
#[test]
fn finished_points_are_kept_when_a_later_one_fails() {
    let folder = workplace();
    let at = folder.path();
    Tiny::default().write(&at.join("good"));
    Tiny::default().write(&at.join("damaged"));
    let weights = std::fs::read_dir(at.join("damaged")).unwrap().map(|entry| entry.unwrap().path());
    let weights = weights.into_iter().find(|path| path.extension().is_some_and(|e| e == "safetensors")).unwrap();
    let mut bytes = std::fs::read(&weights).unwrap();
    // Not a number, in every floating-point format.
    let end = bytes.len();
    bytes[end - 4..].fill(0xff);
    std::fs::write(&weights, bytes).unwrap();
    let arguments = [
        "bench",
        "model",
        "--model",
        "good",
        "--model",
        "damaged",
        "--model",
        "good",
        "--phase",
        "prefill",
        "--length",
        "8",
        "--samples",
        "1",
        "--json",
        "--out",
        "out.json",
    ];
    let output = run(at, &arguments);
    assert_eq!(output.status.code(), Some(1));
    let record: Record = serde_json::from_slice(&output.stdout).unwrap();
    let Points::Model(points) = &record.points else { panic!("another bench") };
    assert_eq!((points.len(), record.failures.len()), (2, 1), "{record:?}");
    assert!(record.failures[0].error.contains("not finite"), "{:?}", record.failures);
    let saved: Record = serde_json::from_str(&std::fs::read_to_string(at.join("out.json")).unwrap()).unwrap();
    assert_eq!(saved, record);
}
