//! `tokenizer.json`.
#![no_main]

use duquant::checkpoint::Tokenizer;
use std::path::Path;

libfuzzer_sys::fuzz_target!(init: {
    // libFuzzer's hook aborts on every panic, also on those of the tokenizers crate which the library turns into errors.
    // A panic that gets out of the library still ends the run.
    std::panic::set_hook(Box::new(|_| {}));
}, |bytes: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_json(Path::new("tokenizer.json"), bytes)
        && let Ok(ids) = tokenizer.encode("Two  words, 12 tokens\n")
    {
        let _ = tokenizer.decode(&ids);
    }
});
