//! `duquant bench ablate`, `outliers` and `quantize` on a tiny model: every row of every table, what the settings mean, and
//! that a row which fails costs no other.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails and reports this way")]

mod common;
#[path = "common/pipeline.rs"]
mod pipeline;

use common::{Tiny, duquant, json_of, run};
use duquant::bench::{Ablation, AblationOptions, Base, Grid, OutlierProbe, Row, Source, Table, rows};
use duquant::calibrate::{Calibrator, LayerActivations, Samples};
use duquant::checkpoint::{Checkpoint, Group};
use duquant::eval::PerplexityOptions;
use duquant::kernels::Transform;
use duquant::kernels::cpu::Isa;
use duquant::model::cpu::Layer;
use duquant::model::{Backend, CHUNK, KvQuantizer};
use duquant::quantize::{self, Mode, Options};
use duquant::transform::RotationPools;
use serde_json::Value;
use std::path::Path;

/// Tokens that stand for a text.
fn text(seed: u64, count: usize) -> Vec<u32> {
    (0..count as u64).map(|i| ((i * i * 31 + i * (7 + seed) + seed) % 251) as u32).collect()
}

fn source(name: &str, seed: u64) -> Source {
    Source { name: name.into(), tokens: Some(text(seed, 150).into()) }
}

fn base() -> Base {
    let options = Options { block: 32, steps: 24, ..Options::duquant(Mode::Paper) };
    Base { options, given: source("given", 1), other: Some(source("other", 2)), samples: 2, length: 48 }
}

fn ablation<'a>(checkpoint: &'a Checkpoint, text: &'a [u32], work: &Path) -> Ablation<'a> {
    std::fs::create_dir_all(work).unwrap();
    let windows = PerplexityOptions { window: 32, windows: Some(2) };
    let options = AblationOptions { work: work.into(), backend: Backend::default(), windows, length: 48 };
    Ablation::new(checkpoint, text, options).unwrap()
}

#[test]
fn every_table_gives_its_rows_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = pipeline::tiny(folder.path());
    let (text, work) = (text(5, 100), folder.path().join("work"));
    let mut ablation = ablation(&checkpoint, &text, &work);
    let counts = [5, 3, 6, 6, 4, 3, 3, 5];
    for (table, count) in Table::ALL.into_iter().zip(counts) {
        let rows = rows(table, &base());
        assert_eq!(rows.len(), count, "{table:?}");
        let points: Vec<_> = rows.iter().map(|row| ablation.measure(row).unwrap()).collect();
        for (row, point) in rows.iter().zip(&points) {
            assert_eq!((point.table.as_str(), point.row.as_str()), (table.name(), row.words.as_str()));
            assert_eq!((point.baseline, point.variance.is_some()), (ablation.baseline(), table == Table::Permutation));
            let perplexity = point.perplexity.unwrap();
            assert!(perplexity.is_finite() && perplexity > 1.0 && point.seconds > 0.0, "{point:?}");
        }
        match table {
            Table::Permutation => {
                let [none, random, anneal, zigzag] = [0, 1, 2, 3].map(|at| points[at].variance.unwrap());
                assert!(zigzag < random && anneal <= zigzag && zigzag < none, "{none} {random} {anneal} {zigzag}");
            }
            // 150 tokens hold three samples of 48.
            Table::Samples => assert_eq!(rows.iter().map(|row| row.samples).collect::<Vec<_>>(), [1, 2, 3]),
            Table::Calibration => assert_eq!(points[2].settings["calibration"], "random"),
            _ => {}
        }
    }
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0, "quantized folders are removed");

    // The full method is a row of several tables and was run once.
    let mut full = |table, at: usize| ablation.measure(&rows(table, &base())[at]).unwrap();
    let first = full(Table::Modules, 4);
    for (table, at) in [(Table::Outliers, 2), (Table::Permutation, 3), (Table::Calibration, 0), (Table::Samples, 1)] {
        let again = full(table, at);
        assert_eq!((again.perplexity, again.seconds), (first.perplexity, first.seconds), "{table:?}");
    }
}

#[test]
fn random_calibration_leaves_out_the_row_that_it_is() {
    let base = Base { given: Source::random(), other: None, ..base() };
    assert_eq!(rows(Table::Calibration, &base).len(), 1);
    let samples: Vec<_> = rows(Table::Samples, &base).iter().map(|row| row.samples).collect();
    assert_eq!(samples, [1, 2, 4, 8], "random tokens are as many as one likes");
}

#[test]
fn smoothing_alone_on_some_groups_leaves_the_others_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = pipeline::tiny(folder.path());
    let full = base().options;
    let (all, _) = pipeline::quantized(&checkpoint, &folder.path().join("all"), &full);
    assert_eq!(all.quantization().unwrap().untransformed, Vec::<String>::new());
    assert!(
        !std::fs::read_to_string(folder.path().join("all/config.json")).unwrap().contains("untransformed"),
        "the folders of other runs are what they were"
    );
    for transformed in [[true, true, true, false], [false, false, false, true], [false; 4]] {
        let options = Options { transformed, ..full.clone() };
        let out = folder.path().join(format!("{transformed:?}"));
        let (some, _) = pipeline::quantized(&checkpoint, &out, &options);
        let names = Group::ALL.into_iter().zip(transformed).filter(|(_, yes)| !yes).map(|(group, _)| group.name());
        assert_eq!(some.quantization().unwrap().untransformed, names.collect::<Vec<_>>());
        for layer in 0..2 {
            let (all, some) = (all.layer(layer).unwrap(), some.layer(layer).unwrap());
            assert_eq!(all.attention_norm, some.attention_norm, "smoothing is the same");
            for (group, transformed) in Group::ALL.into_iter().zip(transformed) {
                let (all, some) = (&all.groups[group as usize].transform, &some.groups[group as usize].transform);
                assert_eq!(all.inverse_smooth, some.inverse_smooth);
                assert_eq!(all.rotation_count(), 2);
                if transformed {
                    assert_eq!(all, some, "{group:?}");
                } else {
                    assert_eq!((some.rotation_count(), some.permutation_count()), (0, 0), "{group:?}");
                }
            }
        }
    }
}

#[test]
fn a_row_that_fails_costs_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = pipeline::tiny(folder.path());
    let (text, work) = (text(5, 100), folder.path().join("work"));
    let mut ablation = ablation(&checkpoint, &text, &work);
    let good = rows(Table::Modules, &base()).remove(0);
    let bad = Row { options: Options { block: 2, ..base().options }, ..good.clone() };
    let first = ablation.measure(&bad).unwrap_err().to_string();
    assert!(first.contains("rotation block"), "{first}");
    assert_eq!(ablation.measure(&bad).unwrap_err().to_string(), first, "remembered, not run again");
    assert!(ablation.measure(&good).unwrap().perplexity.is_some());
    let few = Row { samples: 4, ..good };
    assert!(ablation.measure(&few).unwrap_err().to_string().contains("4 samples of 48"));
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0);
}

const STEPS: [&str; 7] = [
    "before smoothing",
    "after smoothing",
    "after rotation 1",
    "after permutation",
    "after rotation 2",
    "after permutation 2",
    "after rotation 3",
];

/// Runs layer 0 and looks at the inputs of layer 1, as the pipeline does.
fn second_layer(checkpoint: &Checkpoint, samples: &Samples) -> LayerActivations {
    let config = checkpoint.config();
    let load = |index| Layer::load(checkpoint.layer(index).unwrap(), config, index, CHUNK, Isa::best().into()).unwrap();
    let mut streams = Calibrator::new(checkpoint, samples).unwrap();
    streams.advance(&load(0), KvQuantizer::default()).unwrap();
    streams.observe(&load(1), KvQuantizer::default(), false).unwrap()
}

/// What the pipeline calibrates with.
fn samples(checkpoint: &Checkpoint) -> Samples {
    Samples::random(checkpoint.config().vocabulary, 3, 48, 11).unwrap()
}

#[test]
fn a_trace_is_the_transform_that_quantize_finds() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = pipeline::tiny(folder.path());
    for options in [base().options, pipeline::options()] {
        let mode = options.mode;
        let (quantized, report) = pipeline::quantized(&checkpoint, &folder.path().join(mode.name()), &options);
        let activations = second_layer(&checkpoint, &samples(&checkpoint));
        let weights = checkpoint.layer(1).unwrap();
        let (config, pools) = (checkpoint.config(), RotationPools::new());
        let traces = quantize::trace(weights, activations, &Group::ALL, &options, config, &pools).unwrap();
        for (trace, group) in traces.iter().zip(quantized.layer(1).unwrap().groups) {
            let found = Transform { inverse_smooth: None, ..group.transform };
            assert!(trace.transform == found, "{mode:?}, {:?}", trace.group);
        }
        let sum: f64 = report.stages.iter().map(|stage| stage.seconds).sum();
        assert!(sum <= report.seconds && sum > 0.5 * report.seconds, "{report:?}");
    }
}

/// A model whose weights and activations stay in floating point shows at the inputs of its linears what the picture says.
#[test]
fn the_picture_is_what_the_transformed_model_sees() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = pipeline::tiny(folder.path());
    let shown = Samples::from_tokens(text(9, 20), 1, 20).unwrap();
    let paper = Options::duquant(Mode::Paper);
    let (weight_bits, activation_bits, kv_bits) = (16, 16, 16);
    let options = Options { block: 32, steps: 24, permutations: 2, weight_bits, activation_bits, kv_bits, ..paper };
    let (transformed, _) = pipeline::quantized(&checkpoint, &folder.path().join("out"), &options);
    let seen = second_layer(&transformed, &shown).inputs;
    let mut probe = OutlierProbe::new(&checkpoint, &samples(&checkpoint), &shown, options).unwrap();
    let points = probe.layer(1, &Group::ALL, Grid { rows: 10, columns: 16 }).unwrap();
    assert!(probe.layer(0, &[Group::Qkv], Grid::default()).is_err(), "layers are passed once");
    assert_eq!(points.len(), 4);
    for ((point, group), mut x) in points.iter().zip(transformed.layer(1).unwrap().groups).zip(seen) {
        assert_eq!(point.steps.iter().map(|step| step.step.as_str()).collect::<Vec<_>>(), STEPS);
        assert_eq!((point.layer, point.tokens, point.channels), (1, 20, group.transform.channels));
        assert!(point.steps.iter().all(|step| (step.columns, step.grid.len()) == (16, 160)));
        duquant::transform::apply(&group.transform, &mut x, 20).unwrap();
        let max = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        let last = point.steps[6].max;
        assert!((last - max).abs() < 1e-3 * max, "{}: {last} in the picture, {max} in the model", point.group);
    }
    let qkv = &points[0].steps;
    assert!(qkv[6].max < 0.5 * qkv[0].max, "outliers are spread: {} to {}", qkv[0].max, qkv[6].max);
}

/// A folder with the models `tiny`, and `odd` whose down takes no rotation, and the text `text.txt`.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(&folder.path().join("tiny"));
    Tiny { intermediate: 130, ..Tiny::default() }.write(&folder.path().join("odd"));
    let text: String = (0..100).map(|i| format!("line {i:>4} of some text. \n")).collect();
    std::fs::write(folder.path().join("text.txt"), text).unwrap();
    std::fs::write(folder.path().join("short.txt"), "just some words").unwrap();
    folder
}

/// `duquant bench ablate MODEL` with small windows and samples.
fn ablate<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let flags = ["--text", "text.txt", "--window", "64", "--windows", "2"];
    let calibration = ["--calibration", "text.txt", "--samples", "1", "--length", "64"];
    [&["bench", "ablate", model], &flags[..], &calibration, more].concat()
}

#[test]
fn ablations_on_the_command_line() {
    let folder = workplace();
    let at = folder.path();
    let record = json_of(at, &ablate("tiny", &["--tables", "outliers,calibration", "--out", "record.json"]));
    assert_eq!((&record["format"], &record["bench"]), (&Value::from("duquant-bench"), &Value::from("ablate")));
    let points = record["points"].as_array().unwrap();
    let tables: Vec<_> = points.iter().map(|point| point["table"].as_str().unwrap()).collect();
    assert_eq!(tables, ["outliers", "outliers", "outliers", "calibration", "calibration", "calibration"]);
    assert!(points.iter().all(|point| point["perplexity"].as_f64().is_some_and(|perplexity| perplexity > 1.0)));
    assert_eq!(points[0]["paper_perplexity"], 18.16);
    assert_eq!(record["settings"]["mode"], "paper");
    assert_eq!(record["failures"], serde_json::json!([]));
    let kept: Value = serde_json::from_slice(&std::fs::read(at.join("record.json")).unwrap()).unwrap();
    assert_eq!(kept, record);
}

#[test]
fn finished_points_survive_failing_ones() {
    let folder = workplace();
    let at = folder.path();
    let args = ablate("odd", &["--tables", "outliers", "--out", "record.json", "--json"]);
    let output = run(at, &args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let record: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(record["points"].as_array().unwrap().len(), 1, "smoothing alone at down does: {record}");
    let failures = record["failures"].as_array().unwrap();
    assert_eq!(failures.len(), 2);
    assert!(failures.iter().all(|failure| failure["error"].as_str().unwrap().contains("rotation block")), "{record}");
    let kept: Value = serde_json::from_slice(&std::fs::read(at.join("record.json")).unwrap()).unwrap();
    assert_eq!(kept["points"], record["points"]);
}

#[test]
fn bad_input_is_refused_before_work_begins() {
    let folder = workplace();
    let at = folder.path();
    json_of(at, &["quantize", "tiny", "--out", "quantized", "--method", "rtn"]);
    let outliers = ["bench", "outliers", "tiny", "--calibration", "text.txt", "--samples", "1", "--length", "64"];
    let refused: [(Vec<&str>, i32, &str); 15] = [
        (ablate("tiny", &["--tables", "modules,chairs"]), 2, "chairs"),
        (ablate("tiny", &["--mode", "fast"]), 2, "fast"),
        (vec!["bench", "ablate", "tiny", "--calibration", "text.txt"], 2, "--text"),
        (ablate("quantized", &[]), 1, "quantized already"),
        (ablate("nothing", &[]), 1, "nothing"),
        (vec!["bench", "ablate", "tiny", "--text", "nowhere.txt"], 1, "nowhere.txt"),
        (vec!["bench", "ablate", "tiny", "--text", "short.txt"], 1, "15 tokens"),
        (vec!["bench", "ablate", "tiny", "--text", "text.txt", "--calibration", "short.txt"], 1, "4096"),
        (ablate("tiny", &["--out", "no/where.json"]), 1, "no/where.json"),
        ([&outliers[..], &["--layer", "0", "--group", "gate"]].concat(), 2, "gate"),
        ([&outliers[..], &["--layer", "0,2", "--group", "qkv"]].concat(), 2, "layers 0 to 1"),
        ([&outliers[..], &["--layer", "0", "--group", "qkv", "--tokens", "9999"]].concat(), 1, "9999"),
        ([&outliers[..], &["--layer", "0", "--group", "qkv", "--grid", "65,1"]].concat(), 2, "64,256"),
        (vec!["bench", "quantize", "tiny", "--methods", "rtn,magic"], 2, "magic"),
        (vec!["bench", "quantize", "quantized"], 1, "quantized already"),
    ];
    for (args, status, part) in refused {
        let output = duquant(at, &args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert!(output.stdout.is_empty() && said.contains(part) && !said.contains("panicked"), "{args:?}: {said}");
        assert!(!said.contains("perplexity "), "{args:?} worked first: {said}");
    }
}

#[test]
fn outliers_on_the_command_line() {
    let folder = workplace();
    let flags = ["--layer", "1,0", "--group", "down,qkv", "--samples", "1", "--length", "64", "--grid", "8,16"];
    let args = [&["bench", "outliers", "tiny", "--calibration", "text.txt", "--tokens", "32"], &flags[..]].concat();
    let record = json_of(folder.path(), &args);
    let points = record["points"].as_array().unwrap();
    let places: Vec<_> = points.iter().map(|p| (p["layer"].as_u64().unwrap(), p["group"].as_str().unwrap())).collect();
    assert_eq!(places, [(0, "down"), (0, "qkv"), (1, "down"), (1, "qkv")]);
    for point in points {
        let steps = point["steps"].as_array().unwrap();
        assert_eq!(steps.iter().map(|step| step["step"].as_str().unwrap()).collect::<Vec<_>>(), STEPS[..5]);
        assert!(steps.iter().all(|step| step["grid"].as_array().unwrap().len() == 128), "{point}");
    }
}

#[test]
fn quantization_is_timed_by_stage() {
    let folder = workplace();
    let args = ["bench", "quantize", "tiny", "--methods", "rtn,duquant", "--samples", "1", "--length", "64"];
    let record = json_of(folder.path(), &args);
    assert!(record["settings"].get("extrapolated_seconds").is_none());
    let points = record["points"].as_array().unwrap();
    for (point, (method, mode, tokens)) in points.iter().zip([("rtn", "none", 0), ("duquant", "paper", 64)]) {
        assert_eq!((point["method"].as_str(), point["mode"].as_str()), (Some(method), Some(mode)));
        assert_eq!((point["tokens"].as_u64(), point["layers"].as_u64()), (Some(tokens), Some(2)));
        let stages = point["stages"].as_array().unwrap();
        let sum: f64 = stages.iter().map(|stage| stage["seconds"].as_f64().unwrap()).sum();
        let all = point["seconds"].as_f64().unwrap();
        assert!((sum / all - 1.0).abs() < 0.01, "{point}");
        if cfg!(target_os = "linux") {
            assert!(point["peak_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{point}");
        }
    }
    let record = json_of(folder.path(), &[&args[..], &["--layers", "1"]].concat());
    let point = &record["points"][1];
    assert_eq!(point["layers"], 1);
    assert_eq!(record["model"]["layers"], 2, "the model is what it is");
    let whole = &record["settings"]["extrapolated_seconds"]["duquant"];
    assert_eq!(whole["layers"], 2);
    assert!(whole["seconds"].as_f64().unwrap() > point["seconds"].as_f64().unwrap());
}
