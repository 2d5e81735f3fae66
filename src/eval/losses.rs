//! Cross entropy of known tokens, the measure that everything else here is made of.

use super::Error;
use crate::model::{Model, State};
use rayon::prelude::*;

/// Positions whose logits are held at a time: 128 x 49,152 floats are 25 MB, a whole window of 2048 would be 400 MB.
const POSITIONS: usize = 128;

/// Losses of predicting `tokens[1..]`, each from all tokens before it: `-log softmax(logits_i)[tokens[i + 1]]` in nats,
/// `tokens.len() - 1` of them. Forgets what `state` holds and leaves it with `tokens`.
///
/// # Errors
/// [`Error::Model`] when the model cannot run `tokens` or `state` has no room for them.
pub fn token_losses(model: &Model, state: &mut State, tokens: &[u32]) -> Result<Vec<f64>, Error> {
    state.clear();
    losses_behind(model, state, tokens, &tokens[tokens.len().min(1)..])
}

/// Runs `tokens` behind what `state` holds and gives the losses of `targets`, where `targets[i]` stands behind
/// `tokens[i]`. There are as many targets as tokens, or fewer: then the last tokens predict nothing that is asked for.
pub(super) fn losses_behind(
    model: &Model,
    state: &mut State,
    tokens: &[u32],
    targets: &[u32],
) -> Result<Vec<f64>, Error> {
    let vocabulary = model.vocabulary();
    if let Some(&token) = targets.iter().find(|&&token| token as usize >= vocabulary) {
        return Err(crate::model::Error::Token { token, vocabulary }.into());
    }
    model.forward(state, tokens)?;
    let mut logits = vec![0.0_f32; POSITIONS.min(targets.len()) * vocabulary];
    let mut losses = Vec::with_capacity(targets.len());
    for (index, targets) in targets.chunks(POSITIONS).enumerate() {
        let first = index * POSITIONS;
        let logits = &mut logits[..targets.len() * vocabulary];
        model.logits(state, first..first + targets.len(), logits)?;
        // One row belongs to one thread, so the order of its sum never depends on how many there are.
        let chunk = logits.par_chunks_exact(vocabulary).zip(targets).map(|(row, &target)| loss(row, target));
        losses.extend(chunk.collect::<Vec<_>>());
    }
    Ok(losses)
}

/// `log sum_v exp(logits[v]) - logits[target]`, in f64, shifted by the largest logit.
pub(super) fn loss(logits: &[f32], target: u32) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    sum.ln() + max - f64::from(logits[target as usize])
}

#[cfg(test)]
mod tests {
    use super::loss;

    #[test]
    fn even_logits_cost_the_log_of_their_number() {
        for level in [-1e4_f32, 0.0, 1e4] {
            assert!((loss(&[level; 7], 3) - 7_f64.ln()).abs() < 1e-12, "{level}");
        }
    }

    #[test]
    fn huge_logits_neither_overflow_nor_lose_the_tail() {
        assert_eq!(loss(&[1e30, 0.0, -1e30], 0), 0.0);
        assert_eq!(loss(&[1e30, 0.0, -1e30], 1), f64::from(1e30_f32));
        let tail = loss(&[0.0, -20.0], 0);
        assert!((tail / (-20_f64).exp() - 1.0).abs() < 1e-3, "{tail}");
    }

    #[test]
    fn a_logit_that_is_not_a_number_shows() {
        assert!(loss(&[0.0, f32::NAN], 0).is_nan());
    }
}
