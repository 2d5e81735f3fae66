//! Prefill a prompt, then decode token by token.

use super::{Error, Model, likeliest};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::{Duration, Instant};

/// How to choose the next token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerateOptions {
    /// Most new tokens.
    pub tokens: usize,
    /// 0 takes the most likely token; otherwise samples from `softmax(logits / temperature)`.
    pub temperature: f32,
    /// Seed of the sampling.
    pub seed: u64,
    /// Whether to go on behind a token that ends the text.
    pub ignore_end: bool,
}

/// What came out, with the time that each phase took.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Time for the prompt and the first new token.
    pub prefill: Duration,
    /// Time for the other new tokens.
    pub decode: Duration,
}

/// Continues `prompt`. `on_token` sees each new token when it is chosen; it returns whether to go on.
///
/// # Errors
/// As [`Model::forward`]; an empty prompt is [`Error::Shape`].
pub fn generate(
    model: &Model,
    prompt: &[u32],
    options: &GenerateOptions,
    mut on_token: impl FnMut(u32) -> bool,
) -> Result<Generated, Error> {
    if prompt.is_empty() {
        return Err(Error::Shape { place: "prompt".into(), expected: "at least one token".into(), got: "none".into() });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut state = model.new_state(prompt.len() + options.tokens)?;
    let mut logits = vec![0.0; model.vocabulary];
    let mut generated = Generated { tokens: Vec::new(), prefill: Duration::ZERO, decode: Duration::ZERO };
    let mut input = prompt.to_vec();
    let mut start = Instant::now();
    for step in 0..options.tokens {
        model.forward(&mut state, &input)?;
        let token = if options.temperature <= 0.0 {
            model.greedy(&mut state)?
        } else {
            model.logits(&mut state, input.len() - 1..input.len(), &mut logits)?;
            sample(&mut logits, options.temperature, &mut rng)
        };
        generated.tokens.push(token);
        let elapsed = start.elapsed();
        if step == 0 {
            generated.prefill = elapsed
        } else {
            generated.decode += elapsed
        }
        let ended = !options.ignore_end && model.config.eos.contains(&token);
        if !on_token(token) || ended {
            break;
        }
        start = Instant::now();
        input.clear();
        input.push(token);
    }
    Ok(generated)
}

/// A token drawn from `softmax(logits / temperature)`.
fn sample(logits: &mut [f32], temperature: f32, rng: &mut ChaCha8Rng) -> u32 {
    let best = likeliest(logits);
    let max = logits[best as usize];
    let mut sum = 0.0_f64;
    for logit in logits.iter_mut() {
        *logit = ((*logit - max) / temperature).exp();
        sum += f64::from(*logit);
    }
    let mut left = rng.random::<f64>() * sum;
    for (token, &weight) in logits.iter().enumerate() {
        left -= f64::from(weight);
        if left < 0.0 {
            return token as u32;
        }
    }
    best
}
