//! The tokenizer in a GGUF file's metadata, written out as a `tokenizer.json`.

use super::super::Error;
use super::Gguf;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Longest token whose splits are tried when merges are rebuilt from scores: far above any real one (48 bytes in LLaMA),
/// low enough that a hostile vocabulary cannot make the rebuilding quadratic in the file.
const LONGEST_PIECE: usize = 512;

/// The kinds of `tokenizer.ggml.token_type`.
const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;

/// The space of SentencePiece.
const SPACE: &str = "\u{2581}";

/// Regular expressions that cut a text into words before merging.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The `tokenizer.json` that tokenizes as the metadata of `gguf` say.
///
/// # Errors
/// [`Error::Tokenizer`] for a model other than `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE), an unknown
/// pre-tokenizer, or arrays that do not fit each other; [`Error::Config`] for metadata of the wrong type.
pub(super) fn tokenizer_json(gguf: &Gguf) -> Result<Value, Error> {
    let bad = |what: String| Error::tokenizer(&gguf.path, what);
    let tokens = gguf.strings("tokenizer.ggml.tokens")?;
    let tokens = tokens.ok_or_else(|| bad("tokenizer.ggml.tokens is missing".into()))?;
    if u32::try_from(tokens.len()).is_err() {
        return Err(bad(format!("{} tokens", tokens.len())));
    }
    let kinds = gguf.numbers("tokenizer.ggml.token_type")?.unwrap_or_default();
    if !kinds.is_empty() && kinds.len() != tokens.len() {
        return Err(bad(format!("token_type has {} entries for {} tokens", kinds.len(), tokens.len())));
    }
    let kind = |id: usize| kinds.get(id).map_or(1, |&kind| kind as u32);
    let mut vocabulary = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        // Of a token that appears twice the first counts, as a search from the front would find it.
        vocabulary.entry(token.as_str()).or_insert(id);
    }
    let added = tokens.iter().enumerate().filter(|(id, token)| {
        matches!(kind(*id), CONTROL | USER_DEFINED | UNKNOWN) && !token.is_empty() && vocabulary[token.as_str()] == *id
    });
    let added: Vec<Value> = added
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": kind(id) != USER_DEFINED,
            })
        })
        .collect();
    let model = gguf.text("tokenizer.ggml.model")?.unwrap_or("(none named)");
    let mut json = match model {
        "gpt2" => byte_level(gguf, &vocabulary)?,
        "llama" => {
            let unknown = (0..tokens.len()).find(|&id| kind(id) == UNKNOWN).map(|id| tokens[id].as_str());
            sentence_piece(gguf, tokens, &vocabulary, unknown)?
        }
        _ => return Err(bad(format!("model {model:?} is not supported; supported are \"gpt2\" and \"llama\""))),
    };
    json["version"] = "1.0".into();
    json["added_tokens"] = added.into();
    json["post_processor"] = post_processor(gguf, tokens, model)?;
    Ok(json)
}

fn vocabulary_json(vocabulary: &HashMap<&str, usize>) -> Value {
    let object: Map<String, Value> =
        vocabulary.iter().map(|(token, &id)| ((*token).to_owned(), Value::from(id))).collect();
    object.into()
}

/// Byte-level BPE: merges are in the file, the way to cut words is known by name.
fn byte_level(gguf: &Gguf, vocabulary: &HashMap<&str, usize>) -> Result<Value, Error> {
    let bad = |what: String| Error::tokenizer(&gguf.path, what);
    let merges = gguf.strings("tokenizer.ggml.merges")?;
    let merges = merges.ok_or_else(|| bad("tokenizer.ggml.merges is missing".into()))?;
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        // A left part may itself be a space in some vocabularies, never an empty string.
        let cut = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let cut = cut.ok_or_else(|| bad(format!("merge {merge:?}: expected two tokens with a space between")))?;
        pairs.push(json!([&merge[..cut], &merge[cut + 1..]]));
    }
    let split = |regex: &str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let name = gguf.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let (cuts, ignore_merges) = match name {
        "gpt-2" | "gpt2" | "phi-2" | "jina-es" | "jina-de" | "mpt" | "olmo" | "jais" | "roberta-bpe" => {
            (vec![split(GPT2)], false)
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            (vec![digits, split(GPT2)], false)
        }
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" => (vec![split(LLAMA3)], true),
        "qwen2" | "stablelm2" | "deepseek-r1-qwen" => (vec![split(QWEN2)], false),
        "tekken" => (vec![split(TEKKEN)], true),
        "default" => (
            vec![
                split(r"[\p{P}\$\+<=>\^~\|]+"),
                split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
                split(r"\p{N}+"),
                split(r"[0-9][0-9][0-9]"),
            ],
            false,
        ),
        other => {
            let supported = "smollm, gpt-2, llama-bpe, qwen2, tekken, starcoder, default and their like";
            return Err(bad(format!("pre-tokenizer {other:?} is not supported; supported are {supported}")));
        }
    };
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": false });
    let steps: Vec<Value> = cuts.into_iter().chain([bytes.clone()]).collect();
    Ok(json!({
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocabulary_json(vocabulary), "merges": pairs,
        },
    }))
}

/// SentencePiece BPE: the pair whose joined token scores best is merged first. Every way to join two tokens into a third
/// becomes a merge, ranked by the third's score.
fn sentence_piece(
    gguf: &Gguf,
    tokens: &[String],
    vocabulary: &HashMap<&str, usize>,
    unknown: Option<&str>,
) -> Result<Value, Error> {
    let bad = |what: String| Error::tokenizer(&gguf.path, what);
    let scores = gguf.numbers("tokenizer.ggml.scores")?.unwrap_or_default();
    if scores.len() != tokens.len() {
        return Err(bad(format!("tokenizer.ggml.scores has {} entries for {} tokens", scores.len(), tokens.len())));
    }
    let mut merges: Vec<(usize, usize, usize)> = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(_, token)| token.len() <= LONGEST_PIECE) {
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(&left), Some(&right)) = (vocabulary.get(left), vocabulary.get(right)) {
                merges.push((id, left, right));
            }
        }
    }
    merges.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]).then(a.cmp(b)));
    let merges: Vec<Value> = merges.into_iter().map(|(_, left, right)| json!([tokens[left], tokens[right]])).collect();
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE })];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary_json(vocabulary), "merges": merges,
        },
    }))
}

/// Puts the first token of a text where the metadata ask for one.
fn post_processor(gguf: &Gguf, tokens: &[String], model: &str) -> Result<Value, Error> {
    let pre = gguf.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let usual =
        model == "llama" || matches!(pre, "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" | "tekken");
    if !gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(usual) {
        return Ok(Value::Null);
    }
    let bos = gguf.token("tokenizer.ggml.bos_token_id")?;
    let Some((id, token)) = bos.and_then(|id| Some((id, tokens.get(id as usize)?))) else {
        return Ok(Value::Null);
    };
    let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [special, text("A")],
        "pair": [special, text("A"), special, text("B")],
        "special_tokens": { token.as_str(): { "id": token, "ids": [id], "tokens": [token] } },
    }))
}
