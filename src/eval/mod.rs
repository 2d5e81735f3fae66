//! Perplexity and multiple choice.
