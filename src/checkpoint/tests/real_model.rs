//! Against a real model and what a known-good implementation makes of it. SmolLM2-135M-Instruct.Q4_1.gguf is where
//! `duquant demo` keeps it or at `DUQUANT_MODEL`; `DUQUANT_WIKITEXT` (wikitext-2 raw test) and `DUQUANT_GOLDEN` (ids and
//! losses) come from the environment. Where one is missing the test says so and passes, except for the model in CI.

use crate::checkpoint::{Checkpoint, Format, Precision, Quantization, TableValues, Weight, Writer, export};
use crate::kernels::{Affine, QuantizedMatrix};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Instant;

fn path_of(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("skipped: {variable} is not set");
    }
    path
}

fn model() -> Option<Checkpoint> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let cached = cache.map(|cache| cache.join("duquant").join("SmolLM2-135M-Instruct.Q4_1.gguf"));
    let path = [variable("DUQUANT_MODEL"), cached].into_iter().flatten().find(|path| path.exists());
    if path.is_none() {
        println!("skipped: SmolLM2 is missing; run `duquant demo` once or set DUQUANT_MODEL");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must bring SmolLM2");
    }
    path.map(|path| Checkpoint::open(&path).unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn smollm2_opens_with_its_hyperparameters() {
    let Some(model) = model() else { return };
    assert_eq!(model.format(), Format::Gguf);
    let config = model.config();
    assert_eq!((config.hidden, config.intermediate, config.layers), (576, 1536, 30));
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.vocabulary), (9, 3, 64, 49_152));
    assert_eq!((config.rope_theta, config.norm_epsilon, config.max_positions), (100_000.0, 1e-5, 8192));
    assert!(config.tied_embeddings && model.head().unwrap().is_none());
    assert_eq!((config.bos, config.eos.as_slice()), (Some(1), &[2][..]));
    let embedding = model.embedding().unwrap();
    assert!(matches!(&embedding.values, TableValues::F32(values) if values.len() == 49_152 * 576));
    let layer = model.layer(29).unwrap();
    let shapes: Vec<_> = layer.groups.iter().flat_map(|g| &g.linears).map(|l| (l.weight.n(), l.weight.k())).collect();
    assert_eq!(shapes, [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]);
    assert!(layer.groups.iter().flat_map(|g| &g.linears).all(|l| matches!(l.weight, Weight::Float { .. })));
    assert_eq!(model.final_norm().unwrap().len(), 576);
    assert!(model.layer(30).is_err());
}

#[test]
fn smollm2_tokenizes_as_the_golden_run_did() {
    let Some(model) = model() else { return };
    let Some(golden) = path_of("DUQUANT_GOLDEN") else { return };
    let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!((tokenizer.vocabulary(), tokenizer.bos()), (49_152, None));
    for run in golden["generation_greedy_fp32"].as_array().unwrap() {
        let prompt = run["prompt"].as_str().unwrap();
        assert_eq!(tokenizer.encode(prompt).unwrap(), ids(&run["prompt_ids"]));
        assert_eq!(tokenizer.decode(&ids(&run["prompt_ids"])).unwrap(), prompt);
    }
    let Some(text) = path_of("DUQUANT_WIKITEXT") else { return };
    // The file ends its lines with CR LF; the golden run read it in Python's text mode, which makes them LF.
    let text = std::fs::read_to_string(text).unwrap().replace("\r\n", "\n");
    let started = Instant::now();
    let tokens = tokenizer.encode(&text).unwrap();
    println!("{} bytes, {} tokens in {:?}", text.len(), tokens.len(), started.elapsed());
    let first = ids(&golden["window0"]["first_ids"]);
    assert_eq!(&tokens[..first.len()], first);
    assert_eq!(tokens.len() as u64, golden["tokens_total"].as_u64().unwrap());
    assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
}

#[test]
fn special_tokens_written_out_are_one_token_each() {
    let Some(model) = model() else { return };
    let tokenizer = model.tokenizer().unwrap();
    let ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>").unwrap();
    assert_eq!((ids[0], ids[ids.len() - 1]), (1, 2));
    assert_eq!(tokenizer.decode(&ids).unwrap(), "user\nhi");
    assert_eq!(tokenizer.decode_with_special(&ids).unwrap(), "<|im_start|>user\nhi<|im_end|>");
}

#[test]
fn smollm2_in_four_bits_is_written_read_back_and_exported() {
    let Some(model) = model() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (packed, plain) = (dir.path().join("packed"), dir.path().join("plain"));
    let tokenizer = model.tokenizer().unwrap();
    let settings = Quantization { weight_bits: 4, ..Quantization::default() };
    let json = tokenizer.to_json().unwrap();
    let mut writer = Writer::create(&packed, model.config(), model.config_json(), &settings, &json, false).unwrap();
    let quantized = |index: usize| {
        let mut layer = model.layer(index).unwrap();
        for linear in layer.groups.iter_mut().flat_map(|group| &mut group.linears) {
            let Weight::Float { n, k, values } = &linear.weight else { panic!("a float weight") };
            let matrix = QuantizedMatrix::quantize(values, *n, *k, &[Affine::new(4, 1.0).unwrap()]).unwrap();
            linear.weight = Weight::Quantized(matrix);
        }
        layer
    };
    for index in 0..model.config().layers {
        writer.layer(index, &quantized(index)).unwrap();
    }
    writer.finish(&model.embedding().unwrap(), None, &model.final_norm().unwrap()).unwrap();
    let read = Checkpoint::open(&packed).unwrap();
    read.verify().unwrap();
    assert_eq!((read.config(), read.quantization()), (model.config(), Some(&settings)));
    assert_eq!(read.layer(17).unwrap(), quantized(17));
    assert_eq!(read.embedding().unwrap(), model.embedding().unwrap());
    let text = "Notes, 1984: <|im_end|> naïve café\n";
    assert_eq!(read.tokenizer().unwrap().encode(text).unwrap(), tokenizer.encode(text).unwrap());
    let bytes: usize = read.tensors().map(|tensor| tensor.bytes).sum();
    // 106 M weights at half a byte, 28 M of the embedding as it came, at four.
    assert!((166_000_000..169_000_000).contains(&bytes), "{bytes}");
    export(&read, &plain, Precision::Bf16).unwrap();
    let plain = Checkpoint::open(&plain).unwrap();
    assert_eq!((plain.format(), plain.config()), (Format::HuggingFace, model.config()));
    let (Weight::Quantized(matrix), Weight::Float { values, .. }) =
        (&read.layer(3).unwrap().groups[3].linears[0].weight, &plain.layer(3).unwrap().groups[3].linears[0].weight)
    else {
        panic!("packed and plain")
    };
    let expected: Vec<f32> = matrix.dequantize().into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect();
    assert_eq!(values, &expected);
}
