//! Small models and files in every format, built without the code under test.

use crate::checkpoint::{
    Config, Group, LayerWeights, LinearGroup, LinearWeights, Projection, Quantization, RopeScaling, Table, TableValues,
    Weight,
};
use crate::kernels::{Affine, QuantizedMatrix, Transform};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
"pre_tokenizer":null,"post_processor":null,"decoder":{"type":"Fuse"},"model":{"type":"BPE","dropout":null,"unk_token":null,
"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,
"vocab":{"a":0,"b":1,"c":2,"ab":3},"merges":[["a","b"]]}}"#;

pub(crate) fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0_f32)).collect()
}

pub(crate) fn random_bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Grouped-query attention, head_dim * heads other than hidden, widths that are no multiple of 8.
pub(crate) fn tiny_config() -> Config {
    Config {
        model_type: "llama".into(),
        hidden: 12,
        intermediate: 20,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        vocabulary: 7,
        max_positions: 64,
        norm_epsilon: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        tied_embeddings: false,
        bos: Some(1),
        eos: vec![2],
    }
}

/// The parameters of a float model by Hugging Face's names: shape and values.
pub(crate) fn tiny_tensors(config: &Config) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocabulary, config.hidden]),
        ("model.norm.weight".to_owned(), vec![config.hidden]),
    ];
    if !config.tied_embeddings {
        shapes.push(("lm_head.weight".into(), vec![config.vocabulary, config.hidden]));
    }
    for i in 0..config.layers {
        for (name, n, k) in [
            ("self_attn.q_proj", config.heads * config.head_dim, config.hidden),
            ("self_attn.k_proj", config.kv_heads * config.head_dim, config.hidden),
            ("self_attn.v_proj", config.kv_heads * config.head_dim, config.hidden),
            ("self_attn.o_proj", config.hidden, config.heads * config.head_dim),
            ("mlp.gate_proj", config.intermediate, config.hidden),
            ("mlp.up_proj", config.intermediate, config.hidden),
            ("mlp.down_proj", config.hidden, config.intermediate),
        ] {
            shapes.push((format!("model.layers.{i}.{name}.weight"), vec![n, k]));
        }
        shapes.push((format!("model.layers.{i}.input_layernorm.weight"), vec![config.hidden]));
        shapes.push((format!("model.layers.{i}.post_attention_layernorm.weight"), vec![config.hidden]));
    }
    let values = |i: usize, shape: &[usize]| random(1000 + i as u64, shape.iter().product());
    shapes.into_iter().enumerate().map(|(i, (name, shape))| (name, (shape.clone(), values(i, &shape)))).collect()
}

pub(crate) struct Raw {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl View for &Raw {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        (&self.bytes).into()
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

pub(crate) fn raw_f32(shape: &[usize], values: &[f32]) -> Raw {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Raw { dtype: Dtype::F32, shape: shape.into(), bytes }
}

pub(crate) fn tiny_raw(config: &Config) -> BTreeMap<String, Raw> {
    tiny_tensors(config).into_iter().map(|(name, (shape, values))| (name, raw_f32(&shape, &values))).collect()
}

pub(crate) fn write_safetensors(path: &Path, tensors: &BTreeMap<String, Raw>) {
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

/// Writes a Hugging Face folder with one `model.safetensors`.
pub(crate) fn write_folder(folder: &Path, config: &serde_json::Value, tensors: &BTreeMap<String, Raw>) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), TOKENIZER).unwrap();
    write_safetensors(&folder.join("model.safetensors"), tensors);
}

/// A layer with every feature of the format: rotations with and without a permutation, a Hadamard, online smoothing, 4-bit,
/// 3-bit, 8-bit and float weights, a bias, and a group in floating point.
pub(crate) fn quantized_layer(config: &Config, seed: u64) -> LayerWeights {
    let linear = |projection: Projection, bits: Option<u32>, bias: bool| {
        let (n, k) = config.linear_shape(projection);
        let values = random(seed * 100 + projection as u64, n * k);
        let weight = match bits {
            None => Weight::Float { n, k, values },
            Some(bits) => {
                let settings = Affine::new(bits, 0.9).unwrap();
                Weight::Quantized(QuantizedMatrix::quantize(&values, n, k, &[settings]).unwrap())
            }
        };
        LinearWeights { projection, weight, bias: bias.then(|| random(seed + 7, n)) }
    };
    let turn = |block: usize, angle: f32| {
        let mut rotation = vec![0.0; block * block];
        for i in (0..block).step_by(2) {
            let (sine, cosine) = angle.sin_cos();
            rotation[i * block + i] = cosine;
            rotation[i * block + i + 1] = sine;
            rotation[(i + 1) * block + i] = -sine;
            rotation[(i + 1) * block + i + 1] = cosine;
        }
        rotation
    };
    let hidden = config.hidden;
    let qkv = Transform {
        channels: hidden,
        block: 4,
        rotations: [turn(4, 0.3), turn(4, 1.1)].concat(),
        permutations: (0..hidden as u32).map(|j| (j * 5 + seed as u32) % hidden as u32).collect(),
        inverse_smooth: None,
        hadamard: false,
    };
    let hadamard =
        [0.5_f32; 16].iter().enumerate().map(|(i, x)| if ((i / 4) & (i % 4)).count_ones() % 2 == 0 { *x } else { -x });
    let o = Transform {
        channels: config.heads * config.head_dim,
        block: 4,
        rotations: hadamard.collect(),
        hadamard: true,
        ..Transform::default()
    };
    let down = Transform {
        inverse_smooth: Some(random(seed + 9, config.intermediate).iter().map(|x| 2.0 + x).collect()),
        ..Transform::identity(config.intermediate)
    };
    let affine = Affine::new(4, 0.9).unwrap();
    use Projection::{Down, Gate, K, O, Q, Up, V};
    LayerWeights {
        attention_norm: random(seed + 1, hidden),
        mlp_norm: random(seed + 2, hidden),
        groups: [
            LinearGroup {
                transform: qkv,
                activation: Some(affine),
                linears: vec![linear(Q, Some(4), true), linear(K, Some(3), false), linear(V, Some(8), false)],
            },
            LinearGroup {
                transform: o,
                activation: Some(affine.symmetric()),
                linears: vec![linear(O, Some(4), false)],
            },
            LinearGroup {
                transform: Transform::identity(hidden),
                activation: None,
                linears: vec![linear(Gate, None, false), linear(Up, Some(5), false)],
            },
            LinearGroup { transform: down, activation: Some(affine), linears: vec![linear(Down, Some(4), false)] },
        ],
    }
}

pub(crate) fn table(config: &Config) -> Table {
    let values = random(77, config.vocabulary * config.hidden).into_iter().map(half::f16::from_f32).collect();
    Table { rows: config.vocabulary, columns: config.hidden, values: TableValues::F16(values) }
}

pub(crate) fn quantization() -> Quantization {
    Quantization {
        method: "duquant".into(),
        mode: "best".into(),
        weight_bits: 4,
        activation_bits: 4,
        kv_bits: 4,
        block: 128,
        weight_clip: 0.8,
        seed: u64::MAX,
        rotate_heads: true,
        key: Some(Affine::new(4, 0.9).unwrap()),
        value: Some(Affine::new(3, 0.123_456_79).unwrap().symmetric()),
        ..Quantization::default()
    }
}

/// A metadata value of a GGUF file.
#[derive(Clone)]
pub(crate) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A GGUF file of tensors `(name, shape in row-major order, type, bytes)`.
pub(crate) fn gguf_file(metadata: &[(String, Meta)], tensors: &[(String, Vec<usize>, u32, Vec<u8>)]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        string(&mut out, key);
        let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
        let array = |out: &mut Vec<u8>, element: u32, count: usize| {
            kind(out, 9);
            kind(out, element);
            out.extend((count as u64).to_le_bytes());
        };
        match value {
            Meta::U32(x) => {
                kind(&mut out, 4);
                out.extend(x.to_le_bytes());
            }
            Meta::F32(x) => {
                kind(&mut out, 6);
                out.extend(x.to_le_bytes());
            }
            Meta::Bool(x) => {
                kind(&mut out, 7);
                out.push(u8::from(*x));
            }
            Meta::Text(text) => {
                kind(&mut out, 8);
                string(&mut out, text);
            }
            Meta::Texts(texts) => {
                array(&mut out, 8, texts.len());
                texts.iter().for_each(|text| string(&mut out, text));
            }
            Meta::I32s(xs) => {
                array(&mut out, 5, xs.len());
                out.extend(xs.iter().flat_map(|x| x.to_le_bytes()));
            }
            Meta::F32s(xs) => {
                array(&mut out, 6, xs.len());
                out.extend(xs.iter().flat_map(|x| x.to_le_bytes()));
            }
        }
    }
    let mut data = Vec::new();
    for (name, shape, kind, bytes) in tensors {
        data.resize(data.len().next_multiple_of(32), 0);
        string(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&size| out.extend((size as u64).to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

/// The metadata that [`tiny_config`] comes from.
pub(crate) fn gguf_metadata(config: &Config) -> Vec<(String, Meta)> {
    [
        ("general.architecture", Meta::Text("llama".into())),
        ("llama.block_count", Meta::U32(config.layers as u32)),
        ("llama.context_length", Meta::U32(config.max_positions as u32)),
        ("llama.embedding_length", Meta::U32(config.hidden as u32)),
        ("llama.feed_forward_length", Meta::U32(config.intermediate as u32)),
        ("llama.attention.head_count", Meta::U32(config.heads as u32)),
        ("llama.attention.head_count_kv", Meta::U32(config.kv_heads as u32)),
        ("llama.attention.key_length", Meta::U32(config.head_dim as u32)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(config.norm_epsilon)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

/// The tiny model's tensors under GGUF's names, Q and K rows interleaved as llama.cpp's converter does it.
pub(crate) fn gguf_tensors(config: &Config) -> Vec<(String, Vec<usize>, u32, Vec<u8>)> {
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ];
    let tensors = tiny_tensors(config).into_iter();
    tensors
        .map(|(name, (shape, mut values))| {
            let gguf = names.iter().fold(name.clone(), |name, (from, to)| name.replace(from, to));
            let heads = if name.contains("q_proj") { config.heads } else { config.kv_heads };
            if name.contains("q_proj") || name.contains("k_proj") {
                // reshape(heads, 2, head_dim / 2, k).swapaxes(1, 2)
                let (half, k, source) = (config.head_dim / 2, shape[1], values.clone());
                let mut at = 0;
                for head in 0..heads {
                    for j in 0..half {
                        for side in 0..2 {
                            let from = ((head * 2 + side) * half + j) * k;
                            values[at..at + k].copy_from_slice(&source[from..from + k]);
                            at += k;
                        }
                    }
                }
            }
            (gguf, shape, 0, values.iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect()
}

pub(crate) fn groups(layer: &LayerWeights) -> impl Iterator<Item = (Group, &LinearGroup)> {
    Group::ALL.into_iter().zip(&layer.groups)
}
