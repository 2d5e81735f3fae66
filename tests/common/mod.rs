//! What several tests need: a tiny LLaMA on disk, the real model where it is at hand, and this program run as a user would.
#![allow(dead_code, reason = "each test file takes what it needs")]

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A LLaMA so small that everything runs in a moment: one token a byte.
#[derive(Clone, Copy)]
pub(crate) struct Tiny {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Default for Tiny {
    fn default() -> Self {
        Self { layers: 2, hidden: 64, intermediate: 128, heads: 4, kv_heads: 2, head_dim: 16 }
    }
}

pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

impl Tiny {
    /// Its tensors by their Hugging Face names.
    pub(crate) fn tensors(&self) -> Tensors {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut normal = |shape: &[usize], deviation: f32| {
            let draw = |_| deviation * <StandardNormal as Distribution<f32>>::sample(&StandardNormal, &mut rng);
            (shape.to_vec(), (0..shape.iter().product()).map(draw).collect::<Vec<f32>>())
        };
        let Self { layers, hidden, intermediate, heads, kv_heads, head_dim } = *self;
        let mut tensors = Tensors::new();
        tensors.insert("model.embed_tokens.weight".into(), normal(&[256, hidden], 0.5));
        tensors.insert("model.norm.weight".into(), (vec![hidden], vec![1.0; hidden]));
        for layer in 0..layers {
            let mut put = |name: &str, tensor| tensors.insert(format!("model.layers.{layer}.{name}.weight"), tensor);
            put("input_layernorm", (vec![hidden], vec![1.0; hidden]));
            put("post_attention_layernorm", (vec![hidden], vec![1.0; hidden]));
            put("self_attn.q_proj", normal(&[heads * head_dim, hidden], 0.1));
            put("self_attn.k_proj", normal(&[kv_heads * head_dim, hidden], 0.1));
            put("self_attn.v_proj", normal(&[kv_heads * head_dim, hidden], 0.1));
            put("self_attn.o_proj", normal(&[hidden, heads * head_dim], 0.1));
            put("mlp.gate_proj", normal(&[intermediate, hidden], 0.1));
            put("mlp.up_proj", normal(&[intermediate, hidden], 0.1));
            put("mlp.down_proj", normal(&[hidden, intermediate], 0.1));
        }
        tensors
    }

    /// Writes it as a Hugging Face folder.
    pub(crate) fn write(&self, folder: &Path) {
        self.write_with(folder, &self.tensors());
    }

    /// Writes it with other tensors.
    pub(crate) fn write_with(&self, folder: &Path, tensors: &Tensors) {
        std::fs::create_dir_all(folder).unwrap();
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": 256,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": true,
        });
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        std::fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
        let views: BTreeMap<_, _> = tensors
            .iter()
            .map(|(name, (shape, values))| {
                (name, TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).unwrap())
            })
            .collect();
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    }
}

/// Byte-level BPE without merges: token `b` is byte `b`.
fn tokenizer() -> Value {
    // GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on.
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..256 {
        let code = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        vocabulary.insert(char::from_u32(code).unwrap().to_string(), json!(byte));
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": [],
        },
    })
}

/// SmolLM2-135M where it is at hand: `DUQUANT_MODEL`, or where `duquant demo` keeps it. Where it is missing the test says
/// so and passes, but never in CI, which must bring it.
pub(crate) fn smollm2(test: &str) -> Option<PathBuf> {
    let named = std::env::var_os("DUQUANT_MODEL").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let cached = cache.map(|cache| cache.join("duquant").join("SmolLM2-135M-Instruct.Q4_1.gguf"));
    if let Some(found) = [named, cached].into_iter().flatten().find(|path| path.exists()) {
        return Some(found);
    }
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "{test}: SmolLM2 is missing; run `duquant demo` once or set DUQUANT_MODEL"
    );
    println!("skipped: {test} needs SmolLM2; run `duquant demo` once or set DUQUANT_MODEL");
    None
}

/// This program with some arguments, its cache where no model is.
pub(crate) fn duquant(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_duquant"));
    command.current_dir(folder).args(args).env("XDG_CACHE_HOME", folder.join("cache"));
    command
}

/// Runs the program and waits.
pub(crate) fn run(folder: &Path, args: &[&str]) -> Output {
    duquant(folder, args).output().unwrap()
}

/// Runs the program with `--json`; all of its standard output must be one object.
pub(crate) fn json_of(folder: &Path, args: &[&str]) -> Value {
    let output = duquant(folder, args).arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(value.is_object(), "{args:?}: {value}");
    value
}
