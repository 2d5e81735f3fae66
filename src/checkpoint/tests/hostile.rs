//! Files that are cut short, damaged or built to mislead: an error that names them, never a panic.

use super::fixtures::*;
use crate::checkpoint::gguf::{BlockType, Gguf};
use crate::checkpoint::{Checkpoint, Error, shards};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use tempfile::tempdir;

/// Opens and reads everything there is to read.
fn read_all(path: &Path) -> Result<(), Error> {
    let checkpoint = Checkpoint::open(path)?;
    for index in 0..checkpoint.config().layers {
        checkpoint.layer(index)?;
    }
    checkpoint.embedding()?;
    checkpoint.head()?;
    checkpoint.final_norm()?;
    checkpoint.tokenizer()?.encode("ab")?;
    Ok(())
}

fn tiny_gguf() -> Vec<u8> {
    let config = tiny_config();
    let mut metadata = gguf_metadata(&config);
    metadata.extend(super::tokenizers::byte_level_metadata());
    gguf_file(&metadata, &gguf_tensors(&config))
}

/// Every prefix of the header and some of the rest, then some hundreds of damaged copies; `read` says what it makes of one.
fn torment(whole: &[u8], header: usize, read: &mut dyn FnMut(&[u8]) -> Result<(), Error>) {
    read(whole).unwrap();
    let rest = (header..whole.len()).step_by((whole.len() - header) / 40 + 1);
    for length in (0..header).step_by(3).chain(rest).chain([whole.len() - 1]) {
        assert!(read(&whole[..length]).is_err(), "a prefix of {length} bytes of {} was accepted", whole.len());
    }
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..600 {
        let mut damaged = whole.to_vec();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..header);
            damaged[at] = if rng.random() { damaged[at] ^ (1 << rng.random_range(0..8)) } else { rng.random() };
        }
        // Some flips change a value or a name of metadata and are fine; all that is asked is an answer.
        let _ = read(&damaged);
    }
}

#[test]
fn damaged_gguf_files_give_errors() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("damaged.gguf");
    let whole = tiny_gguf();
    let tensors = Gguf::parse(&path, &whole).unwrap().tensors;
    let header = tensors.values().map(|tensor| tensor.range.start).min().unwrap();
    torment(&whole, header, &mut |bytes| {
        std::fs::write(&path, bytes).unwrap();
        read_all(&path)
    });
}

#[test]
fn damaged_safetensors_files_give_errors() {
    let (dir, config) = (tempdir().unwrap(), tiny_config());
    write_folder(dir.path(), &config.to_hugging_face(), &tiny_raw(&config));
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    torment(&whole, header, &mut |bytes| {
        std::fs::write(&path, bytes).unwrap();
        read_all(dir.path())
    });
}

#[test]
fn damaged_configs_give_errors() {
    let (dir, config) = (tempdir().unwrap(), tiny_config());
    write_folder(dir.path(), &config.to_hugging_face(), &tiny_raw(&config));
    let path = dir.path().join("config.json");
    let whole = std::fs::read(&path).unwrap();
    torment(&whole, whole.len(), &mut |bytes| {
        std::fs::write(&path, bytes).unwrap();
        read_all(dir.path())
    });
}

fn safetensors_file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn hostile_safetensors_headers_are_refused() {
    let entry =
        |shape: &str, offsets: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
    let max = u64::MAX;
    for header in [
        entry("[2,2]", "[0,20]"),
        entry("[2,2]", "[16,0]"),
        entry("[2,2]", &format!("[0,{max}]")),
        entry("[2,2]", &format!("[{max},16]")),
        entry("[4294967296,4294967296,4294967296]", "[0,16]"),
        entry(&format!("[{max},2]"), "[0,16]"),
        entry("[-1]", "[0,16]"),
        entry("[2,2]", "[4,20]"),
        entry("[2,2]", "[0,16]").replace("F32", "F33"),
        "{".repeat(200_000),
        "[".repeat(200_000),
        String::new(),
        "null".into(),
    ] {
        let error = shards::parse(Path::new("x.safetensors"), &safetensors_file(&header, 16)).unwrap_err();
        assert!(error.to_string().contains("x.safetensors"), "{error}");
    }
    for length in [0, 7, u64::from(u32::MAX), u64::MAX, u64::MAX - 7, 100_000_001] {
        let mut bytes = safetensors_file(&entry("[2,2]", "[0,16]"), 16);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        shards::parse(Path::new("x.safetensors"), &bytes).unwrap_err();
    }
}

/// A header of counts, then `rest`.
fn gguf_header(version: u32, tensors: u64, metadata: u64, rest: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(metadata.to_le_bytes());
    rest.iter().for_each(|part| bytes.extend(*part));
    bytes
}

#[test]
fn hostile_gguf_headers_are_refused() {
    let parse = |bytes: &[u8]| Gguf::parse(Path::new("x.gguf"), bytes);
    let (one, max) = (1_u64.to_le_bytes(), u64::MAX.to_le_bytes());
    let kind = |kind: u32| kind.to_le_bytes();
    for version in [0, 1, 4, 3_u32.swap_bytes()] {
        assert!(parse(&gguf_header(version, 0, 0, &[])).unwrap_err().to_string().contains("version"));
    }
    parse(&gguf_header(2, 0, 0, &[])).unwrap();
    let nested: Vec<u8> = (0..100_000).flat_map(|_| [kind(9).to_vec(), one.to_vec()].concat()).collect();
    for bytes in [
        gguf_header(3, u64::MAX, 0, &[]),
        gguf_header(3, 0, u64::MAX, &[]),
        gguf_header(3, 0, 1, &[&max, b"key"]),
        gguf_header(3, 0, 1, &[&one, b"k", &kind(13)]),
        gguf_header(3, 0, 1, &[&one, b"k", &kind(8), &max]),
        gguf_header(3, 0, 1, &[&one, b"k", &kind(9), &kind(8), &max]),
        gguf_header(3, 0, 1, &[&one, b"k", &kind(9), &kind(0), &max]),
        gguf_header(3, 0, 1, &[&one, b"k", &kind(9), &nested]),
        gguf_header(3, 0, 2, &[&one, b"k", &kind(7), &[1], &one, b"k", &kind(7), &[1]]),
    ] {
        assert!(matches!(parse(&bytes), Err(Error::Malformed { .. })));
    }
    let tensor = |dims: &[u64], block: u32, offset: u64, data: usize| {
        let dims_bytes: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
        let count = (dims.len() as u32).to_le_bytes();
        let mut bytes = gguf_header(3, 1, 0, &[&one, b"t", &count, &dims_bytes, &kind(block), &offset.to_le_bytes()]);
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        parse(&bytes)
    };
    assert_eq!(tensor(&[8, 2], 0, 0, 64).unwrap().tensors["t"].shape, [2, 8]);
    let q4 = BlockType::Q4_0.id();
    for (dims, block, offset, data) in [
        (&[8_u64, 2][..], 0, 0, 63),
        (&[8, 2], 0, 32, 64),
        (&[8, 2], 0, 1, 96),
        (&[8, 2], 0, u64::MAX - 31, 64),
        (&[1 << 32, 1 << 32], 0, 0, 64),
        (&[u64::MAX], 0, 0, 64),
        (&[1 << 63, 2], 0, 0, 64),
        (&[16, 4], q4, 0, 64),
        (&[32, u64::MAX], q4, 0, 64),
        (&[8, 2], 99, 0, 64),
    ] {
        let error = tensor(dims, block, offset, data).unwrap_err();
        assert!(matches!(&error, Error::Tensor { tensor, .. } if tensor == "t"), "{dims:?}: {error}");
    }
    assert!(tensor(&[1; 9], 0, 0, 64).is_err());
}

#[test]
fn paths_that_are_no_checkpoint_are_refused() {
    let dir = tempdir().unwrap();
    let missing = dir.path().join("missing");
    assert!(matches!(Checkpoint::open(&missing), Err(Error::Io { path, .. }) if path == missing));
    assert!(Checkpoint::open(dir.path()).unwrap_err().to_string().contains("config.json"));
    let empty = dir.path().join("empty.gguf");
    std::fs::write(&empty, "").unwrap();
    assert!(Checkpoint::open(&empty).unwrap_err().to_string().contains("cut short"));
    let config = tiny_config();
    std::fs::write(dir.path().join("config.json"), config.to_hugging_face().to_string()).unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap_err().to_string().contains("expected model.safetensors"));
    let mut json = config.to_hugging_face();
    json["quantization_config"] = serde_json::json!({ "quant_method": "gptq" });
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap_err().to_string().contains("gptq"));
}
