//! The LLaMA runner: configuration, layers, KV cache, generation.
