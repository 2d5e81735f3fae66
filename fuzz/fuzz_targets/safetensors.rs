//! Headers of safetensors files: whatever parses must lie inside the file.
#![no_main]

use duquant::checkpoint::shards;
use std::path::Path;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(entries) = shards::parse(Path::new("fuzz.safetensors"), bytes) {
        for entry in entries.values() {
            assert!(bytes.get(entry.range.clone()).is_some());
        }
    }
});
