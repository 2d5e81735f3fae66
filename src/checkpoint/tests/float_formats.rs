use super::fixtures::*;
use crate::checkpoint::{Checkpoint, Error, Format, Group, LayerWeights, Projection, RopeScaling, TableValues, Weight};
use crate::checkpoint::{Config, parse_config};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::tempdir;

fn float(layer: &LayerWeights, projection: Projection) -> &[f32] {
    let linears = layer.groups.iter().flat_map(|group| &group.linears);
    match &linears.into_iter().find(|linear| linear.projection == projection).unwrap().weight {
        Weight::Float { values, .. } => values,
        Weight::Quantized(_) => panic!("a float weight"),
    }
}

/// Opened, the tiny model is the one that was written, in every tensor.
fn assert_is_tiny(checkpoint: &Checkpoint, config: &Config) {
    assert_eq!(checkpoint.config(), config);
    let expected = tiny_tensors(config);
    for i in 0..config.layers {
        let layer = checkpoint.layer(i).unwrap();
        for (projection, name) in [
            (Projection::Q, "self_attn.q_proj"),
            (Projection::K, "self_attn.k_proj"),
            (Projection::V, "self_attn.v_proj"),
            (Projection::O, "self_attn.o_proj"),
            (Projection::Gate, "mlp.gate_proj"),
            (Projection::Up, "mlp.up_proj"),
            (Projection::Down, "mlp.down_proj"),
        ] {
            assert_eq!(float(&layer, projection), expected[&format!("model.layers.{i}.{name}.weight")].1, "{name}");
        }
        assert_eq!(layer.attention_norm, expected[&format!("model.layers.{i}.input_layernorm.weight")].1);
        assert_eq!(layer.mlp_norm, expected[&format!("model.layers.{i}.post_attention_layernorm.weight")].1);
        for (group, linears) in groups(&layer) {
            assert_eq!(linears.transform.rotation_count(), 0, "{group:?}");
            assert_eq!(linears.activation, None);
        }
    }
    assert_eq!(
        checkpoint.embedding().unwrap().values,
        TableValues::F32(expected["model.embed_tokens.weight"].1.clone())
    );
    let head = checkpoint.head().unwrap().map(|head| head.values);
    assert_eq!(head, expected.get("lm_head.weight").map(|(_, values)| TableValues::F32(values.clone())));
    assert_eq!(checkpoint.final_norm().unwrap(), expected["model.norm.weight"].1);
}

#[test]
fn a_folder_with_one_file_reads_back() {
    let (dir, mut config) = (tempdir().unwrap(), tiny_config());
    for tied in [false, true] {
        config.tied_embeddings = tied;
        write_folder(dir.path(), &config.to_hugging_face(), &tiny_raw(&config));
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.format(), Format::HuggingFace);
        assert_is_tiny(&checkpoint, &config);
        assert_eq!(checkpoint.tensors().count(), tiny_raw(&config).len());
        assert_eq!(checkpoint.tokenizer().unwrap().encode("abc").unwrap(), [3, 2]);
        checkpoint.verify().unwrap();
    }
}

fn write_sharded(dir: &Path, config: &Config) -> Value {
    write_folder(dir, &config.to_hugging_face(), &BTreeMap::new());
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let (mut shards, mut map) = ([BTreeMap::new(), BTreeMap::new()], serde_json::Map::new());
    for (i, (name, raw)) in tiny_raw(config).into_iter().enumerate() {
        map.insert(name.clone(), format!("shard-{}.safetensors", i % 2).into());
        shards[i % 2].insert(name, raw);
    }
    for (i, shard) in shards.iter().enumerate() {
        write_safetensors(&dir.join(format!("shard-{i}.safetensors")), shard);
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    index
}

#[test]
fn a_sharded_folder_reads_back_and_its_index_stays_inside() {
    let (dir, config) = (tempdir().unwrap(), tiny_config());
    let index = write_sharded(dir.path(), &config);
    assert_is_tiny(&Checkpoint::open(dir.path()).unwrap(), &config);
    let index_path = dir.path().join("model.safetensors.index.json");
    for hostile in ["../model.safetensors", "/etc/passwd", "..", "", "a/b", "a\\..\\b", "./shard-0.safetensors"] {
        let mut index = index.clone();
        index["weight_map"]["model.norm.weight"] = hostile.into();
        std::fs::write(&index_path, index.to_string()).unwrap();
        let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains("plain name") && message.contains("model.norm.weight"), "{message}");
    }
    let mut moved = index.clone();
    moved["weight_map"]["model.norm.weight"] = "shard-9.safetensors".into();
    std::fs::write(&index_path, moved.to_string()).unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap_err().to_string().contains("shard-9.safetensors"));
    let mut lying = index;
    lying["weight_map"]["not.there"] = "shard-0.safetensors".into();
    std::fs::write(&index_path, lying.to_string()).unwrap();
    assert!(matches!(Checkpoint::open(dir.path()), Err(Error::MissingTensor { tensor, .. }) if tensor == "not.there"));
}

#[test]
fn half_precision_is_read_exactly_and_kept_in_tables() {
    let (dir, config) = (tempdir().unwrap(), tiny_config());
    let mut raw = tiny_raw(&config);
    let values = random(5, config.vocabulary * config.hidden);
    let shape = vec![config.vocabulary, config.hidden];
    let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
    let brains: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
    let bytes = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
    raw.insert("model.embed_tokens.weight".into(), Raw { dtype: Dtype::F16, shape: shape.clone(), bytes });
    let bytes = brains.iter().flat_map(|x| x.to_le_bytes()).collect();
    raw.insert("lm_head.weight".into(), Raw { dtype: Dtype::BF16, shape, bytes });
    let norm: Vec<bf16> = brains[..config.hidden].to_vec();
    let bytes = norm.iter().flat_map(|x| x.to_le_bytes()).collect();
    raw.insert("model.norm.weight".into(), Raw { dtype: Dtype::BF16, shape: vec![config.hidden], bytes });
    write_folder(dir.path(), &config.to_hugging_face(), &raw);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.embedding().unwrap().values, TableValues::F16(halves));
    assert_eq!(checkpoint.head().unwrap().unwrap().values, TableValues::Bf16(brains));
    assert_eq!(checkpoint.final_norm().unwrap(), norm.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
}

#[test]
fn wrong_tensors_are_named() {
    let (dir, config) = (tempdir().unwrap(), tiny_config());
    let key = "model.layers.1.mlp.up_proj.weight";
    let open = |edit: &dyn Fn(&mut BTreeMap<String, Raw>)| {
        let mut raw = tiny_raw(&config);
        edit(&mut raw);
        write_folder(dir.path(), &config.to_hugging_face(), &raw);
        Checkpoint::open(dir.path())
    };
    let error = open(&|raw| drop(raw.remove(key))).unwrap_err();
    assert!(matches!(&error, Error::MissingTensor { tensor, .. } if tensor == key), "{error}");
    let error = open(&|raw| raw.get_mut(key).unwrap().shape.reverse()).unwrap_err();
    assert!(error.to_string().contains("expected shape [20, 12], got [12, 20]"), "{error}");
    for bad in [f32::NAN, f32::INFINITY] {
        let checkpoint =
            open(&|raw| raw.get_mut(key).unwrap().bytes[17 * 4..18 * 4].copy_from_slice(&bad.to_le_bytes()));
        let checkpoint = checkpoint.unwrap();
        checkpoint.layer(0).unwrap();
        assert!(matches!(checkpoint.layer(1), Err(Error::NotFinite { tensor, index: 17, .. }) if tensor == key));
    }
    let checkpoint = open(&|raw| raw.get_mut(key).unwrap().dtype = Dtype::I32).unwrap();
    assert!(checkpoint.layer(1).unwrap_err().to_string().contains("expected F32, F16 or BF16, got I32"));
    // A bias is read where there is one, and must be there where config.json says so.
    let bias = "model.layers.0.self_attn.q_proj.bias".to_owned();
    let checkpoint = open(&|raw| drop(raw.insert(bias.clone(), raw_f32(&[16], &[0.5; 16])))).unwrap();
    assert_eq!(checkpoint.layer(0).unwrap().groups[0].linears[0].bias.as_deref(), Some(&[0.5; 16][..]));
    let mut json = config.to_hugging_face();
    json["attention_bias"] = true.into();
    write_folder(dir.path(), &json, &tiny_raw(&config));
    assert!(matches!(Checkpoint::open(dir.path()), Err(Error::MissingTensor { tensor, .. }) if tensor == bias));
}

#[test]
fn a_gguf_file_reads_back_with_its_rows_in_order() {
    let (dir, config) = (tempdir().unwrap(), tiny_config());
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, gguf_file(&gguf_metadata(&config), &gguf_tensors(&config))).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.format(), Format::Gguf);
    assert_is_tiny(&checkpoint, &config);
    // The factors of LLaMA 3 come as a tensor.
    let mut tensors = gguf_tensors(&config);
    let factors = [1.0_f32, 8.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    tensors.push(("rope_freqs.weight".into(), vec![2], 0, factors));
    std::fs::write(&path, gguf_file(&gguf_metadata(&config), &tensors)).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.config().rope_scaling, RopeScaling::Factors { factors: vec![1.0, 8.0] });
    // Written as config.json, they read back.
    let json = checkpoint.config_json().to_string();
    assert_eq!(&parse_config(Path::new("config.json"), json.as_bytes()).unwrap(), checkpoint.config());
    let other = gguf_metadata(&config).into_iter().map(|(key, value)| match key.as_str() {
        "general.architecture" => (key, Meta::Text("qwen2moe".into())),
        _ => (key, value),
    });
    std::fs::write(&path, gguf_file(&other.collect::<Vec<_>>(), &tensors)).unwrap();
    assert!(matches!(Checkpoint::open(&path), Err(Error::Architecture { name, .. }) if name == "qwen2moe"));
}

#[test]
fn configs_of_every_generation_are_understood() {
    let parse = |value: Value| parse_config(Path::new("config.json"), value.to_string().as_bytes());
    let with = |edit: &dyn Fn(&mut Value)| {
        let mut value = tiny_config().to_hugging_face();
        edit(&mut value);
        parse(value)
    };
    // LLaMA 1: no heads of keys, no size of heads, no theta.
    let old = with(&|v| {
        let object = v.as_object_mut().unwrap();
        for key in
            ["num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "tie_word_embeddings", "bos_token_id"]
        {
            object.remove(key);
        }
        v["hidden_size"] = 16.into();
    });
    let old = old.unwrap();
    assert_eq!(
        (old.kv_heads, old.head_dim, old.rope_theta, old.tied_embeddings, old.bos),
        (4, 4, 10_000.0, false, None)
    );
    let llama3 = json!({ "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3" });
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_positions: 8192,
    };
    assert_eq!(with(&|v| v["rope_scaling"] = llama3.clone()).unwrap().rope_scaling, expected);
    let five = with(&|v| {
        v.as_object_mut().unwrap().retain(|key, _| !key.starts_with("rope"));
        v["rope_parameters"] = llama3.clone();
        v["rope_parameters"]["rope_theta"] = 500_000.0.into();
    });
    let five = five.unwrap();
    assert_eq!((five.rope_theta, five.rope_scaling), (500_000.0, expected));
    let linear = with(&|v| v["rope_scaling"] = json!({ "type": "linear", "factor": 2 })).unwrap();
    assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    let eos = with(&|v| v["eos_token_id"] = json!([128_001, 128_009])).unwrap().eos;
    assert_eq!(eos, [128_001, 128_009]);
    let mistral = with(&|v| {
        v["architectures"] = json!(["MistralForCausalLM"]);
        v["sliding_window"] = 4096.into();
    });
    assert_eq!(mistral.unwrap().sliding_window, Some(4096));
}

#[test]
fn configs_that_make_no_sense_are_refused_by_field() {
    let refuse = |field: &str, value: Value| {
        let mut config = tiny_config().to_hugging_face();
        config[field] = value.clone();
        let message = match parse_config(Path::new("config.json"), config.to_string().as_bytes()) {
            Ok(_) => panic!("{field} = {value} was accepted"),
            Err(error) => error.to_string(),
        };
        assert!(message.contains("config.json"), "{message}");
        message
    };
    for (field, value) in [
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(5)),
        ("head_dim", json!(1_u64 << 40)),
        ("hidden_size", json!(-4)),
        ("hidden_size", json!(u64::MAX)),
        ("vocab_size", json!("many")),
        ("num_hidden_layers", json!(1.5)),
        ("rms_norm_eps", json!("x")),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(-1e300)),
        ("hidden_act", json!("gelu")),
        ("tie_word_embeddings", json!(1)),
    ] {
        assert!(refuse(field, value).contains(field));
    }
    assert!(refuse("rope_scaling", json!({ "rope_type": "yarn", "factor": 2.0 })).contains("yarn"));
    assert!(refuse("rope_scaling", json!({ "type": "linear" })).contains("factor"));
    assert!(refuse("rope_scaling", json!({ "type": "linear", "factor": 0.0 })).contains("rope_scaling"));
    assert!(refuse("rope_scaling", json!([1])).contains("rope_scaling"));
    let message = refuse("architectures", json!(["Qwen2ForCausalLM"]));
    assert!(message.contains("Qwen2ForCausalLM") && message.contains("MistralForCausalLM"), "{message}");
    for text in ["", "[]", "null", "{", "{}", &"[".repeat(100_000)] {
        parse_config(Path::new("config.json"), text.as_bytes()).unwrap_err();
    }
    // A count of layers that lies stops at the first layer that is not there.
    let dir = tempdir().unwrap();
    let mut config = tiny_config().to_hugging_face();
    config["num_hidden_layers"] = (1 << 24).into();
    write_folder(dir.path(), &config, &tiny_raw(&tiny_config()));
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::MissingTensor { tensor, .. } if tensor.contains("layers.2.")), "{error}");
    assert_eq!(Group::ALL.len(), 4);
}

#[test]
fn factors_of_a_published_rule_are_exported_by_its_name() {
    let mut config = tiny_config();
    (config.head_dim, config.rope_theta) = (64, 500_000.0);
    // transformers' `_compute_llama3_parameters`, branch by branch.
    let factor = |j: usize| {
        let frequency = 500_000.0_f64.powf(-(j as f64) / 32.0);
        let wavelength = std::f64::consts::TAU / frequency;
        let scaled = if wavelength < 8192.0 / 4.0 {
            frequency
        } else if wavelength > 8192.0 {
            frequency / 32.0
        } else {
            let smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
            (1.0 - smooth) * frequency / 32.0 + smooth * frequency
        };
        f64::from((frequency / scaled) as f32)
    };
    let factors: Vec<f64> = (0..32).map(factor).collect();
    assert!(factors[0] == 1.0 && factors[31] == 32.0 && factors.iter().any(|&x| x > 1.0 && x < 32.0));
    config.rope_scaling = RopeScaling::Factors { factors: factors.clone() };
    assert_eq!(config.to_hugging_face()["rope_scaling"]["rope_type"], "llama3");
    assert_eq!(config.to_hugging_face()["rope_scaling"]["factor"], 32.0);
    config.rope_scaling = RopeScaling::Factors { factors: factors.iter().map(|x| x * 1.01).collect() };
    assert_eq!(config.to_hugging_face()["rope_scaling"]["rope_type"], "factors");
}
