//! Tokens a second in prefill and decode.

use super::Error;
use crate::model::Model;
use serde::Serialize;
use std::time::Instant;

/// Runs of the prompt that are timed, after one that is not.
const RUNS: usize = 3;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// Tokens of the prompt.
    pub prefill_tokens: usize,
    /// Median time of the prompt with the likeliest token behind it, over three runs.
    pub prefill_seconds: f64,
    /// Prompt tokens a second.
    pub prefill_tokens_per_second: f64,
    /// Tokens one by one behind the prompt.
    pub decode_tokens: usize,
    /// Time for them, logits and the choice of the likeliest included.
    pub decode_seconds: f64,
    /// New tokens a second.
    pub decode_tokens_per_second: f64,
}

/// Times `prompt` and `decode` tokens behind it, greedy, one sequence.
///
/// # Errors
/// [`Error::Speed`] for an empty prompt, [`Error::Model`] when the model cannot run it.
pub fn speed(model: &Model, prompt: &[u32], decode: usize) -> Result<Speed, Error> {
    let prefill = prompt.len();
    if prefill == 0 {
        return Err(Error::Speed { prefill, decode });
    }
    let mut state = model.new_state(prefill + decode)?;
    let mut token = 0;
    let mut seconds = Vec::with_capacity(RUNS + 1);
    for _ in 0..=RUNS {
        state.clear();
        let clock = Instant::now();
        model.forward(&mut state, prompt)?;
        token = model.greedy(&mut state)?;
        seconds.push(clock.elapsed().as_secs_f64());
    }
    let timed = &mut seconds[1..];
    timed.sort_by(f64::total_cmp);
    let prefill_seconds = timed[RUNS / 2];

    let clock = Instant::now();
    for _ in 0..decode {
        model.forward(&mut state, &[token])?;
        token = model.greedy(&mut state)?;
    }
    let decode_seconds = clock.elapsed().as_secs_f64();
    Ok(Speed {
        prefill_tokens: prefill,
        prefill_seconds,
        prefill_tokens_per_second: rate(prefill, prefill_seconds),
        decode_tokens: decode,
        decode_seconds,
        decode_tokens_per_second: rate(decode, decode_seconds),
    })
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if tokens == 0 { 0.0 } else { tokens as f64 / seconds.max(1e-9) }
}
