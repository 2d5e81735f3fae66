use super::fixtures::*;
use crate::checkpoint::{Checkpoint, Error, Format, Precision, TableValues, Weight, Writer, export};
use crate::kernels::Transform;
use std::path::Path;
use tempfile::tempdir;

fn start(out: &Path, overwrite: bool) -> Result<Writer, Error> {
    let config = tiny_config();
    Writer::create(out, &config, &config.to_hugging_face(), &quantization(), TOKENIZER.as_bytes(), overwrite)
}

fn write(out: &Path, seed: u64, overwrite: bool) -> Result<(), Error> {
    let config = tiny_config();
    let mut writer = start(out, overwrite)?;
    // Layers may come in any order.
    for index in [1, 0] {
        writer.layer(index, &quantized_layer(&config, seed + index as u64))?;
    }
    writer.finish(&table(&config), Some(&table(&config)), &random(5, config.hidden))
}

/// Names in a folder, hidden ones included.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_written_reads_back_equal() {
    let (dir, config) = (tempdir().unwrap(), tiny_config());
    let out = dir.path().join("not/yet/there/model");
    write(&out, 3, false).unwrap();
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert_eq!(checkpoint.format(), Format::DuQuant);
    assert_eq!(checkpoint.config(), &config);
    assert_eq!(checkpoint.quantization(), Some(&quantization()));
    for index in 0..2 {
        assert_eq!(checkpoint.layer(index).unwrap(), quantized_layer(&config, 3 + index as u64), "layer {index}");
    }
    assert_eq!(checkpoint.embedding().unwrap(), table(&config));
    assert_eq!(checkpoint.head().unwrap(), Some(table(&config)));
    assert_eq!(checkpoint.final_norm().unwrap(), random(5, config.hidden));
    assert_eq!(checkpoint.tokenizer().unwrap().encode("ab").unwrap(), [3]);
    checkpoint.verify().unwrap();
    let packed = checkpoint.tensors().find(|t| t.name == "model.layers.0.self_attn.q_proj.weight_packed").unwrap();
    assert_eq!((packed.dtype.as_str(), packed.shape, packed.bytes), ("I32", vec![16, 2], 16 * 8));
    assert_eq!(names(out.parent().unwrap()), ["model"]);
}

#[test]
fn a_writer_that_is_dropped_or_killed_leaves_no_model() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("model");
    let mut writer = start(&out, false).unwrap();
    writer.layer(0, &quantized_layer(&tiny_config(), 1)).unwrap();
    assert_eq!(names(dir.path()).len(), 1);
    assert!(!out.exists());
    drop(writer);
    assert_eq!(names(dir.path()), [""; 0]);
    // A killed process cannot clean up. What it leaves is never opened as a model, and the next run removes it, but not
    // the folder of a writer that is still at work, nor that of another model.
    let abandoned = dir.path().join(".model.partial-1-0");
    std::fs::create_dir(&abandoned).unwrap();
    std::fs::write(abandoned.join("config.json"), "{").unwrap();
    std::fs::create_dir(dir.path().join(".other.partial-1-0")).unwrap();
    Checkpoint::open(&abandoned).unwrap_err();
    let first = start(&out, false).unwrap();
    let second = start(&out, false).unwrap();
    assert!(!abandoned.exists());
    assert_eq!(names(dir.path()).len(), 3);
    drop(first);
    drop(second);
    write(&out, 1, false).unwrap();
    assert_eq!(names(dir.path()), [".other.partial-1-0", "model"]);
}

#[test]
fn only_a_quantized_model_is_replaced_and_only_when_asked() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("model");
    std::fs::create_dir(&out).unwrap();
    write(&out, 1, false).unwrap();
    assert!(matches!(start(&out, false), Err(Error::Occupied { .. })));
    write(&out, 5, true).unwrap();
    assert_eq!(names(dir.path()), ["model"]);
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert_eq!(checkpoint.layer(0).unwrap(), quantized_layer(&tiny_config(), 5));
    // A failed replacement leaves the old one.
    let mut writer = start(&out, true).unwrap();
    writer.layer(0, &quantized_layer(&tiny_config(), 8)).unwrap();
    assert!(matches!(
        writer.finish(&table(&tiny_config()), None, &random(5, 12)),
        Err(Error::MissingTensor { tensor, .. }) if tensor == "model.layers.1"
    ));
    Checkpoint::open(&out).unwrap().verify().unwrap();
    let photos = dir.path().join("photos");
    std::fs::create_dir(&photos).unwrap();
    std::fs::write(photos.join("config.json"), r#"{"quantization_config":{"quant_method":"gptq"}}"#).unwrap();
    assert!(matches!(start(&photos, true), Err(Error::Occupied { .. })));
    assert!(matches!(start(&photos.join("config.json"), true), Err(Error::Occupied { .. })));
    assert!(matches!(start(&photos.join("config.json/model"), true), Err(Error::Io { .. })));
    assert_eq!(names(&photos), ["config.json"]);
    assert!(start(Path::new("/proc/duquant-model"), false).is_err());
}

#[test]
fn damage_is_found() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("model");
    write(&out, 2, false).unwrap();
    let shard = out.join("model-layer-00000.safetensors");
    let whole = std::fs::read(&shard).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, &flipped).unwrap();
    let error = Checkpoint::open(&out).unwrap().verify().unwrap_err();
    assert!(matches!(&error, Error::Hash { path, .. } if path == &shard), "{error}");
    std::fs::write(&shard, &whole[..whole.len() - 1]).unwrap();
    let message = Checkpoint::open(&out).unwrap_err().to_string();
    assert!(message.contains("model-layer-00000") && message.contains("cut short"), "{message}");
    std::fs::write(&shard, &whole).unwrap();
    let config = std::fs::read_to_string(out.join("config.json")).unwrap();
    let edits = [
        ("\"version\": 1", "\"version\": 2", "version"),
        ("\"bits\": 4", "\"bits\": 9", "bits"),
        ("\"clip\": 0.9", "\"clip\": 1.5", "clip"),
        ("\"rotations\": 2", "\"rotations\": 3", "shape"),
        ("\"block\": 4", "\"block\": 0", "block"),
        ("\"model-tables.safetensors\": {", "\"../tables.safetensors\": {", "plain file names"),
    ];
    for (from, to, expected) in edits {
        assert!(config.contains(from), "{from}");
        std::fs::write(out.join("config.json"), config.replace(from, to)).unwrap();
        let message = Checkpoint::open(&out).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

/// Changes one tensor's bytes in a shard of the right size: what hashes would find, values must too.
#[test]
fn values_that_kernels_cannot_take_are_named() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("model");
    write(&out, 2, false).unwrap();
    let shard = out.join("model-layer-00001.safetensors");
    let whole = std::fs::read(&shard).unwrap();
    let entries = crate::checkpoint::shards::parse(&shard, &whole).unwrap();
    let cases: [(&str, &[u8], &str); 7] = [
        ("qkv.permutation", &[1, 0, 0, 0, 1, 0, 0, 0], "permutation"),
        ("qkv.rotation", &[0, 0, 0xc0, 0x7f], "not finite"),
        ("o.rotation", &[0, 0, 0, 0x3f, 0, 0, 0, 0x3f, 0, 0, 0, 0], "hadamard"),
        ("self_attn.q_proj.weight_scale", &[0, 0, 0, 0], "scale"),
        ("self_attn.k_proj.weight_packed", &[0x08], "more than 3 bits"),
        ("self_attn.q_proj.weight_shape", &[0x0c, 0, 0, 0, 0, 0, 0, 0, 0x10], "weight_shape"),
        ("self_attn.q_proj.weight_packed", &[0, 0, 0, 0, 0, 0, 1], "zeros behind channel 12"),
    ];
    for (tensor, bytes, expected) in cases {
        let at = entries[&format!("model.layers.1.{tensor}")].range.start;
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&shard, damaged).unwrap();
        let checkpoint = Checkpoint::open(&out).unwrap();
        checkpoint.layer(0).unwrap();
        let message = checkpoint.layer(1).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("model-layer-00001"), "{tensor}: {message}");
    }
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let (dir, config) = (tempdir().unwrap(), tiny_config());
    let mut writer = start(&dir.path().join("model"), false).unwrap();
    let good = quantized_layer(&config, 1);
    let mut bad = Vec::new();
    for _ in 0..6 {
        bad.push(good.clone());
    }
    bad[0].attention_norm.pop();
    bad[1].mlp_norm[3] = f32::NAN;
    bad[2].groups[0].transform.permutations[0] = 99;
    bad[3].groups[3].transform = Transform::identity(3);
    bad[4].groups[2].linears.swap(0, 1);
    if let Weight::Quantized(matrix) = &mut bad[5].groups[1].linears[0].weight {
        matrix.scale.pop();
    }
    for layer in &bad {
        assert!(matches!(writer.layer(0, layer), Err(Error::Tensor { .. } | Error::NotFinite { .. })));
    }
    assert!(matches!(writer.layer(2, &good), Err(Error::Layer { index: 2, layers: 2, .. })));
    writer.layer(0, &good).unwrap();
    assert!(writer.layer(0, &good).unwrap_err().to_string().contains("written before"));
}

/// `x S^-1 R_0 P_0 R_1 ..` for one row, straight from the definition.
fn transformed(transform: &Transform, x: &[f32]) -> Vec<f64> {
    let mut x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    if let Some(inverse) = &transform.inverse_smooth {
        x.iter_mut().zip(inverse).for_each(|(x, &s)| *x *= f64::from(s));
    }
    let b = transform.block;
    for i in 0..transform.rotation_count() {
        let r = transform.rotation(i);
        let y = (0..x.len()).map(|j| {
            let base = j / b * b;
            (0..b).map(|l| x[base + l] * f64::from(r[l * b + j % b])).sum()
        });
        x = y.collect();
        if i < transform.permutation_count() {
            x = transform.permutation(i).iter().map(|&from| x[from as usize]).collect();
        }
    }
    x
}

#[test]
fn export_undoes_the_transform() {
    let (dir, config) = (tempdir().unwrap(), tiny_config());
    let (packed, plain) = (dir.path().join("packed"), dir.path().join("plain"));
    write(&packed, 4, false).unwrap();
    let checkpoint = Checkpoint::open(&packed).unwrap();
    export(&checkpoint, &plain, Precision::F32).unwrap();
    let exported = Checkpoint::open(&plain).unwrap();
    assert_eq!((exported.format(), exported.config()), (Format::HuggingFace, &config));
    assert_eq!(exported.tokenizer().unwrap().encode("ab").unwrap(), [3]);
    for index in 0..2 {
        let (before, after) = (checkpoint.layer(index).unwrap(), exported.layer(index).unwrap());
        assert_eq!(before.attention_norm, after.attention_norm);
        for ((kind, before), (_, after)) in groups(&before).zip(groups(&after)) {
            for (linear, plain) in before.linears.iter().zip(&after.linears) {
                assert_eq!(linear.bias, plain.bias);
                let Weight::Float { n, k, values } = &plain.weight else { panic!("a float weight") };
                let transformed_weight = match &linear.weight {
                    Weight::Float { values, .. } => values.clone(),
                    Weight::Quantized(matrix) => matrix.dequantize(),
                };
                // y = x W^T through the transformed weight and through the exported one.
                let x = random(31, *k);
                let g = transformed(&before.transform, &x);
                for row in 0..*n {
                    let through: f64 =
                        g.iter().zip(&transformed_weight[row * k..]).map(|(x, &w)| x * f64::from(w)).sum();
                    let direct: f64 =
                        x.iter().zip(&values[row * k..]).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    assert!((through - direct).abs() < 2e-6 * (*k as f64), "{kind:?} row {row}: {through} {direct}");
                }
            }
        }
    }
    let TableValues::F32(values) = exported.embedding().unwrap().values else { panic!("f32") };
    let TableValues::F16(halves) = table(&config).values else { panic!("f16") };
    assert_eq!(values, halves.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
    assert!(matches!(export(&checkpoint, &plain, Precision::F32), Err(Error::Occupied { .. })));
    export(&checkpoint, &dir.path().join("half"), Precision::Bf16).unwrap();
    let half = Checkpoint::open(&dir.path().join("half")).unwrap();
    assert!(half.tensors().all(|tensor| tensor.dtype == "BF16"));
    half.layer(1).unwrap();
}
