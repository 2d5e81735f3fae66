//! The comparison on a small random LLaMA with both kinds of outliers planted, where no real model can be had.

use super::{METHODS, Method, child, table};
use crate::cli::console::Console;
use crate::quantize::GroupReport;
use anyhow::{Context, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use safetensors::{Dtype, tensor::TensorView};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

const LAYERS: usize = 2;
const HIDDEN: usize = 512;
const INTERMEDIATE: usize = 1408;
const HEADS: usize = 8;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const VOCABULARY: usize = 256;

/// Channels that stand out at every token, and by how much: normal outliers.
const LOUD_CHANNELS: [usize; 4] = [17, 130, 301, 444];
const LOUDNESS: f32 = 20.0;
/// The token and the neuron of the massive outlier.
const MASSIVE_TOKEN: usize = 3;
const MASSIVE_NEURON: usize = 700;

#[derive(Serialize)]
struct Row {
    method: &'static str,
    /// Mean output error of each group over the layers: `|y - y'|^2 / |y|^2`.
    qkv: f64,
    o: f64,
    gate_up: f64,
    down: f64,
    mean_error: f64,
    /// Largest `|x|` at the inputs of all linears, before and behind the transform.
    input_max: f32,
    transformed_max: f32,
}

#[derive(Serialize)]
struct Output {
    model: &'static str,
    rows: Vec<Row>,
}

pub(super) fn run(work: &Path, console: &Console) -> Result<()> {
    let model = work.join("synthetic");
    write(&model).context("cannot write the synthetic model")?;
    let mut rows = Vec::new();
    for Method { name, flags } in METHODS {
        let out = work.join(name);
        console.note(format!("quantizing with {name} ..."));
        let mut args = vec![OsStr::new("quantize"), model.as_os_str(), OsStr::new("--out"), out.as_os_str()];
        args.extend(["--calibration", "random", "--samples", "2", "--length", "512"].map(OsStr::new));
        args.extend(flags.iter().map(OsStr::new));
        let quantized = child::run(args, console)?;
        let layers: Vec<Vec<GroupReport>> =
            serde_json::from_value(quantized["layers"].clone()).context("quantize reported no layers")?;
        rows.push(row(name, &layers));
    }
    let output = Output { model: "synthetic LLaMA, 2 layers of 512 channels, planted outliers, W4A4KV4", rows };
    console.result(&output, || describe(&output))
}

fn row(method: &'static str, layers: &[Vec<GroupReport>]) -> Row {
    let all = || layers.iter().flatten();
    let mean = |group: &str| {
        let errors: Vec<f64> = all()
            .filter(|report| report.group == group || group.is_empty())
            .map(|report| report.output_error)
            .collect();
        errors.iter().sum::<f64>() / errors.len().max(1) as f64
    };
    Row {
        method,
        qkv: mean("qkv"),
        o: mean("o"),
        gate_up: mean("gate_up"),
        down: mean("down"),
        mean_error: mean(""),
        input_max: all().map(|report| report.input_max).fold(0.0, f32::max),
        transformed_max: all().map(|report| report.transformed_max).fold(0.0, f32::max),
    }
}

fn describe(output: &Output) -> String {
    let header = ["method", "qkv", "o", "gate_up", "down", "mean", "max |x|", "behind the transform"];
    let rows: Vec<Vec<String>> = output
        .rows
        .iter()
        .map(|row| {
            let mut cells = vec![row.method.to_owned()];
            cells.extend([row.qkv, row.o, row.gate_up, row.down, row.mean_error].map(|error| format!("{error:.4}")));
            cells.extend([row.input_max, row.transformed_max].map(|max| format!("{max:.1}")));
            cells
        })
        .collect();
    format!(
        "{}\n{}\n\nerror of a linear's output, |y - y'|^2 / |y|^2, mean over tokens; smaller is better",
        output.model,
        table::render(&header, &rows)
    )
}

/// Writes the model as a Hugging Face folder.
fn write(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
    });
    std::fs::write(folder.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
    std::fs::write(folder.join("tokenizer.json"), serde_json::to_vec(&tokenizer())?)?;
    let tensors = tensors();
    let views = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values))?;
            Ok((name.clone(), view))
        })
        .collect::<Result<BTreeMap<_, _>>>()?;
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors"))?;
    Ok(())
}

/// One word a token, `<0>` to `<255>`: nothing is ever tokenized with it, but a checkpoint has a tokenizer.
fn tokenizer() -> serde_json::Value {
    let vocabulary: BTreeMap<String, usize> = (0..VOCABULARY).map(|token| (format!("<{token}>"), token)).collect();
    serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<0>"},
    })
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors() -> Tensors {
    let mut rng = ChaCha8Rng::seed_from_u64(2406);
    let mut normal = |shape: &[usize], deviation: f32| -> (Vec<usize>, Vec<f32>) {
        let draw = |_| deviation * <StandardNormal as Distribution<f32>>::sample(&StandardNormal, &mut rng);
        (shape.to_vec(), (0..shape.iter().product()).map(draw).collect())
    };
    let embedding = normal(&[VOCABULARY, HIDDEN], 1.0);
    let massive: Vec<f32> = embedding.1[MASSIVE_TOKEN * HIDDEN..(MASSIVE_TOKEN + 1) * HIDDEN].to_vec();
    let length = massive.iter().map(|x| x * x).sum::<f32>().sqrt();
    let mut loud = vec![1.0_f32; HIDDEN];
    LOUD_CHANNELS.iter().for_each(|&channel| loud[channel] = LOUDNESS);
    let mut tensors = Tensors::new();
    let inner = (HIDDEN as f32).powf(-0.5);
    for layer in 0..LAYERS {
        let mut put = |name: &str, tensor| tensors.insert(format!("model.layers.{layer}.{name}.weight"), tensor);
        put("input_layernorm", (vec![HIDDEN], loud.clone()));
        put("post_attention_layernorm", (vec![HIDDEN], loud.clone()));
        let small = 0.2 * inner;
        put("self_attn.q_proj", normal(&[HEADS * HEAD_DIM, HIDDEN], small));
        put("self_attn.k_proj", normal(&[KV_HEADS * HEAD_DIM, HIDDEN], small));
        put("self_attn.v_proj", normal(&[KV_HEADS * HEAD_DIM, HIDDEN], small));
        put("self_attn.o_proj", normal(&[HIDDEN, HEADS * HEAD_DIM], inner));
        put("mlp.down_proj", normal(&[HIDDEN, INTERMEDIATE], 0.1 * inner));
        for name in ["mlp.gate_proj", "mlp.up_proj"] {
            let (shape, mut values) = normal(&[INTERMEDIATE, HIDDEN], small);
            // The neuron looks for the direction of one token's embedding, whose input it meets at full length there and
            // as noise elsewhere: SiLU(g) u is about a thousand there and about one elsewhere.
            let row = &mut values[MASSIVE_NEURON * HIDDEN..(MASSIVE_NEURON + 1) * HIDDEN];
            for ((w, x), loud) in row.iter_mut().zip(&massive).zip(&loud) {
                *w = 1.5 * x / (length * loud);
            }
            put(name, (shape, values));
        }
    }
    tensors.insert("model.embed_tokens.weight".into(), embedding);
    tensors.insert("model.norm.weight".into(), (vec![HIDDEN], vec![1.0; HIDDEN]));
    tensors
}
