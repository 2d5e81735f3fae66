//! `tokenizer.json`.
#![no_main]

use duquant::checkpoint::Tokenizer;
use std::path::Path;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_json(Path::new("tokenizer.json"), bytes)
        && let Ok(ids) = tokenizer.encode("Two  words, 12 tokens\n")
    {
        let _ = tokenizer.decode(&ids);
    }
});
