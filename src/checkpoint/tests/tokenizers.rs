use super::fixtures::{Meta, gguf_file};
use crate::checkpoint::gguf::Gguf;
use crate::checkpoint::{Error, Tokenizer};
use std::path::Path;

fn texts(tokens: &[&str]) -> Meta {
    Meta::Texts(tokens.iter().map(|&token| token.into()).collect())
}

fn meta(key: &str, value: Meta) -> (String, Meta) {
    (format!("tokenizer.ggml.{key}"), value)
}

/// A byte-level vocabulary of a few letters; `Ġ` stands for a space.
pub(crate) fn byte_level_metadata() -> Vec<(String, Meta)> {
    vec![
        meta("model", Meta::Text("gpt2".into())),
        meta("pre", Meta::Text("smollm".into())),
        meta("tokens", texts(&["<s>", "a", "b", "Ġ", "ab", "Ġab", "1", "2", "<x>", "12"])),
        meta("token_type", Meta::I32s(vec![3, 1, 1, 1, 1, 1, 1, 1, 4, 1])),
        meta("merges", texts(&["a b", "Ġ ab", "1 2"])),
    ]
}

fn tokenizer(metadata: &[(String, Meta)]) -> Result<Tokenizer, Error> {
    Gguf::parse(Path::new("x.gguf"), &gguf_file(metadata, &[]))?.tokenizer()
}

fn replaced(mut metadata: Vec<(String, Meta)>, key: &str, value: Meta) -> Vec<(String, Meta)> {
    let key = format!("tokenizer.ggml.{key}");
    metadata.retain(|(k, _)| *k != key);
    metadata.push((key, value));
    metadata
}

#[test]
fn byte_level_vocabularies_merge_words_and_split_digits() {
    let smollm = tokenizer(&byte_level_metadata()).unwrap();
    assert_eq!(smollm.encode("ab ab12").unwrap(), [4, 5, 6, 7]);
    assert_eq!(smollm.encode("a<s>b<x>").unwrap(), [1, 0, 2, 8]);
    assert_eq!((smollm.bos(), smollm.vocabulary()), (None, 10));
    assert_eq!(smollm.decode(&[0, 4, 5, 8]).unwrap(), "ab ab<x>");
    assert_eq!(smollm.decode_with_special(&[0, 4]).unwrap(), "<s>ab");
    // GPT-2 keeps digits together.
    let gpt2 = tokenizer(&replaced(byte_level_metadata(), "pre", Meta::Text("gpt-2".into()))).unwrap();
    assert_eq!(gpt2.encode("ab ab12").unwrap(), [4, 5, 9]);
    // LLaMA 3 adds a first token; ours does when asked.
    let mut metadata = replaced(byte_level_metadata(), "pre", Meta::Text("llama-bpe".into()));
    metadata.push(meta("bos_token_id", Meta::U32(0)));
    let llama3 = tokenizer(&metadata).unwrap();
    assert_eq!((llama3.bos(), llama3.encode("ab").unwrap()), (Some(0), vec![4]));
    assert_eq!(llama3.encode_with_bos("ab").unwrap(), [0, 4]);
    let llama3 = tokenizer(&replaced(metadata, "add_bos_token", Meta::Bool(false))).unwrap();
    assert_eq!(llama3.encode_with_bos("ab").unwrap(), [4]);
}

#[test]
fn sentence_piece_vocabularies_merge_by_score_and_fall_back_to_bytes() {
    let tokens = ["<unk>", "<s>", "▁", "a", "b", "c", "ab", "bc", "▁a", "<0xC3>", "<0xA9>", "<0x0A>", "[INST]"];
    let scores = vec![0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -3.0, -2.0, -4.0, 0.0, 0.0, 0.0, 0.0];
    let kinds = vec![2, 3, 1, 1, 1, 1, 1, 1, 1, 6, 6, 6, 4];
    let metadata = vec![
        meta("model", Meta::Text("llama".into())),
        meta("tokens", texts(&tokens)),
        meta("scores", Meta::F32s(scores)),
        meta("token_type", Meta::I32s(kinds)),
        meta("bos_token_id", Meta::U32(1)),
    ];
    let llama = tokenizer(&metadata).unwrap();
    // "▁abc": "bc" scores better than "ab" and is merged first, then "▁a".
    assert_eq!(llama.encode("abc").unwrap(), [8, 7]);
    assert_eq!(llama.encode("é\n").unwrap(), [2, 9, 10, 11]);
    assert_eq!(llama.encode_with_bos("ab").unwrap(), [1, 2, 6]);
    assert_eq!(llama.encode("[INST]").unwrap(), [12]);
    assert_eq!(llama.decode(&[1, 8, 7, 2, 9, 10]).unwrap(), "abc é");
    let bare = tokenizer(&replaced(metadata, "add_space_prefix", Meta::Bool(false))).unwrap();
    assert_eq!(bare.encode("abc").unwrap(), [3, 7]);
}

#[test]
fn a_tokenizer_written_as_json_reads_back() {
    let text = "ab ab12 <s>";
    let first = tokenizer(&byte_level_metadata()).unwrap();
    let again = Tokenizer::from_json(Path::new("tokenizer.json"), &first.to_json().unwrap()).unwrap();
    assert_eq!(first.encode(text).unwrap(), again.encode(text).unwrap());
    assert_eq!(first.to_json().unwrap(), again.to_json().unwrap());
}

#[test]
fn vocabularies_that_cannot_work_are_refused() {
    let base = byte_level_metadata;
    for (key, value, expected) in [
        ("model", Meta::Text("bert".into()), "bert"),
        ("pre", Meta::Text("mystery".into()), "mystery"),
        ("token_type", Meta::I32s(vec![1]), "token_type"),
        ("merges", texts(&["ab"]), "merge"),
        ("merges", texts(&["a z"]), "tokenizer"),
        ("merges", Meta::U32(1), "merges"),
        ("tokens", Meta::I32s(vec![1]), "tokens"),
    ] {
        let message = tokenizer(&replaced(base(), key, value)).unwrap_err().to_string();
        assert!(message.contains("x.gguf") && message.contains(expected), "{message}");
    }
    let missing: Vec<_> = base().into_iter().filter(|(key, _)| !key.ends_with("tokens")).collect();
    assert!(matches!(tokenizer(&missing), Err(Error::Tokenizer { .. })));
    // Found by fuzzing: not JSON, and a panic inside the tokenizers crate.
    let broken = r#"{"version":"1.0","decoder":{"type":"ByteLevel",r": null},"model":{"type":"BPE"}}"#;
    for json in [broken, "", "{}", "null", "{\"model\":{\"type\":\"BPE\"}}"] {
        assert!(Tokenizer::from_json(Path::new("tokenizer.json"), json.as_bytes()).is_err());
    }
}
