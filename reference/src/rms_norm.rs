//! Root-mean-square normalisation.

/// `y = x / sqrt(mean(x^2) + epsilon) * weight` for each token of `x` `[T, K]`, with `weight` `[K]`.
///
/// # Panics
/// When `x` is no whole number of tokens.
#[must_use]
pub fn rms_norm(x: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
    let k = weight.len();
    assert!(k > 0 && x.len().is_multiple_of(k), "x must be whole tokens of {k} channels");
    let mut y = Vec::with_capacity(x.len());
    for token in x.chunks(k) {
        let mean_square = token.iter().map(|x| x * x).sum::<f64>() / k as f64;
        let factor = 1.0 / (mean_square + epsilon).sqrt();
        for (x, w) in token.iter().zip(weight) {
            y.push(x * factor * w);
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::close;

    #[test]
    fn tokens_by_hand() {
        // mean(x^2) = 25 / 2; epsilon 12.5 makes the divisor 5.
        close(&rms_norm(&[3.0, 4.0, 0.0, 0.0], &[1.0, 10.0], 12.5), &[0.6, 8.0, 0.0, 0.0], 1e-15);
    }
}
