//! GGUF files: header, metadata, configuration, tokenizer, and the values of every tensor.
#![no_main]

use duquant::checkpoint::gguf::Gguf;
use std::path::Path;

libfuzzer_sys::fuzz_target!(init: {
    // As in the tokenizer target: panics which the library turns into errors must not end the run.
    std::panic::set_hook(Box::new(|_| {}));
}, |bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(Path::new("fuzz.gguf"), bytes) else { return };
    for (name, tensor) in &gguf.tensors {
        if let Ok(values) = gguf.dequantize(name, bytes) {
            assert_eq!(values.len(), tensor.shape.iter().product::<usize>());
        }
    }
    let _ = gguf.llama_config();
    if let Ok(tokenizer) = gguf.tokenizer() {
        let _ = tokenizer.encode("Two  words, 12 tokens\n");
    }
});
