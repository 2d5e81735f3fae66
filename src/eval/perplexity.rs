//! Perplexity over disjoint windows, as the literature on quantization reports it.

use super::{Error, token_losses};
use crate::model::Model;
use serde::Serialize;

/// Which windows of a text to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a window; at least 2.
    pub window: usize,
    /// Only so many windows from the front; `None` for all.
    pub windows: Option<usize>,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        Self { window: 2048, windows: None }
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// `exp` of the mean of `window_losses`.
    pub perplexity: f64,
    /// Mean cross entropy of each window over its `window - 1` targets, in nats.
    pub window_losses: Vec<f64>,
    /// Tokens of the whole text.
    pub tokens: usize,
    /// Windows that were read.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
}

/// Perplexity of a text that was tokenized whole: its first `floor(n / window)` disjoint windows, each read from an empty
/// cache, without a begin token and without the remainder. `on_window` sees each finished window's number and its
/// per-token losses.
///
/// # Errors
/// [`Error::Window`] and [`Error::TooShort`] before anything runs, [`Error::Model`] otherwise.
pub fn perplexity(
    model: &Model,
    tokens: &[u32],
    options: &PerplexityOptions,
    mut on_window: impl FnMut(usize, &[f64]),
) -> Result<Perplexity, Error> {
    let windows = options.count(tokens.len())?;
    let window = options.window;
    let mut state = model.new_state(window)?;
    let mut window_losses = Vec::with_capacity(windows);
    for (index, window) in tokens.chunks_exact(window).take(windows).enumerate() {
        let losses = token_losses(model, &mut state, window)?;
        window_losses.push(losses.iter().sum::<f64>() / losses.len() as f64);
        on_window(index, &losses);
    }
    let mean = window_losses.iter().sum::<f64>() / windows as f64;
    Ok(Perplexity { perplexity: mean.exp(), window_losses, tokens: tokens.len(), windows, window })
}

impl PerplexityOptions {
    /// How many windows a text of `tokens` tokens gives.
    ///
    /// # Errors
    /// [`Error::Window`] when a window has no target, [`Error::TooShort`] when the text fills none.
    pub fn count(&self, tokens: usize) -> Result<usize, Error> {
        let window = self.window;
        if window < 2 {
            return Err(Error::Window { window });
        }
        let windows = (tokens / window).min(self.windows.unwrap_or(usize::MAX));
        if windows == 0 { Err(Error::TooShort { tokens, window }) } else { Ok(windows) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remainder_is_dropped_and_the_limit_kept() {
        let count = |window, windows, tokens| PerplexityOptions { window, windows }.count(tokens);
        assert_eq!(count(2048, None, 301_948).unwrap(), 147);
        assert_eq!(count(2048, Some(4), 301_948).unwrap(), 4);
        assert_eq!(count(10, Some(4), 29).unwrap(), 2);
        assert_eq!(count(10, None, 10).unwrap(), 1);
        assert!(matches!(count(10, None, 9), Err(Error::TooShort { tokens: 9, window: 10 })));
        assert!(matches!(count(10, None, 0), Err(Error::TooShort { tokens: 0, window: 10 })));
        assert!(matches!(count(1, None, 9), Err(Error::Window { window: 1 })));
        assert!(matches!(count(0, None, 9), Err(Error::Window { window: 0 })));
    }
}
