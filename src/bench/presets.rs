//! Shapes of well-known models: what a benchmark needs of them when there are no weights.

use crate::checkpoint::{Config, RopeScaling};

/// Names that [`preset`] knows.
pub const PRESETS: [&str; 6] = ["llama2-7b", "llama2-13b", "llama2-70b", "llama3-8b", "llama3-70b", "mistral-7b"];

/// The configuration of a well-known model.
#[must_use]
pub fn preset(name: &str) -> Option<Config> {
    // hidden, intermediate, layers, heads, key and value heads, vocabulary.
    let llama2 = |hidden, intermediate, layers, heads, kv_heads| Config {
        model_type: "llama".into(),
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim: 128,
        vocabulary: 32_000,
        max_positions: 4096,
        norm_epsilon: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        tied_embeddings: false,
        bos: Some(1),
        eos: vec![2],
    };
    let llama3 = |hidden, intermediate, layers, heads| Config {
        vocabulary: 128_256,
        max_positions: 8192,
        rope_theta: 500_000.0,
        bos: Some(128_000),
        eos: vec![128_001],
        ..llama2(hidden, intermediate, layers, heads, 8)
    };
    Some(match name {
        "llama2-7b" => llama2(4096, 11_008, 32, 32, 32),
        "llama2-13b" => llama2(5120, 13_824, 40, 40, 40),
        "llama2-70b" => llama2(8192, 28_672, 80, 64, 8),
        "llama3-8b" => llama3(4096, 14_336, 32, 32),
        "llama3-70b" => llama3(8192, 28_672, 80, 64),
        // Version 0.1, with its sliding window.
        "mistral-7b" => Config {
            model_type: "mistral".into(),
            max_positions: 32_768,
            sliding_window: Some(4096),
            ..llama2(4096, 14_336, 32, 32, 8)
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_the_parameters_of_their_names() {
        let billions = |name| {
            let c = preset(name).unwrap();
            let attention = c.hidden * c.head_dim * (2 * c.heads + 2 * c.kv_heads);
            let layer = attention + 3 * c.hidden * c.intermediate;
            (c.layers * layer + 2 * c.vocabulary * c.hidden) as f64 / 1e9
        };
        let got = PRESETS.map(billions);
        for (got, expected) in got.into_iter().zip([6.74, 13.02, 68.98, 8.03, 70.55, 7.24]) {
            assert!((got - expected).abs() < 0.01, "{got} for {expected}");
        }
        assert!(preset("llama4").is_none());
    }
}
