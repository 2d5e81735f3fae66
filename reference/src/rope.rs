//! Rotary position embedding, in the rotate-half convention of Hugging Face checkpoints.

use std::f64::consts::TAU;

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// LLaMA 3: low frequencies divided by `factor`, high ones kept, a linear step between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_positions / low_frequency_factor` are low frequencies.
        low_frequency_factor: f64,
        /// Wavelengths below `original_positions / high_frequency_factor` are high frequencies.
        high_frequency_factor: f64,
        /// Context of the pre-training.
        original_positions: usize,
    },
}

/// The angle per position of each pair of channels, `[head_dim / 2]`: `theta^(-2 i / head_dim)`, scaled.
///
/// # Panics
/// When `head_dim` is odd.
#[must_use]
pub fn inverse_frequencies(head_dim: usize, theta: f64, scaling: RopeScaling) -> Vec<f64> {
    assert!(head_dim.is_multiple_of(2), "rotary embedding turns pairs of channels, got {head_dim}");
    let mut out = Vec::with_capacity(head_dim / 2);
    for i in 0..head_dim / 2 {
        let frequency = theta.powf(-((2 * i) as f64) / head_dim as f64);
        out.push(match scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_positions } => {
                let turns = original_positions as f64 * frequency / TAU;
                if turns < low_frequency_factor {
                    frequency / factor
                } else if turns > high_frequency_factor {
                    frequency
                } else {
                    let kept = (turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
                    (1.0 - kept) * frequency / factor + kept * frequency
                }
            }
        });
    }
    out
}

/// Rotates the heads of one token at `position`: `x` is whole heads of `2 * inverse_frequencies.len()` channels. Channel
/// `i` and channel `i + D/2` of a head are one pair, turned by `position * inverse_frequencies[i]`:
///
/// ```text
/// y[i]       = x[i] cos - x[i + D/2] sin
/// y[i + D/2] = x[i + D/2] cos + x[i] sin
/// ```
///
/// # Panics
/// When `x` is no whole number of heads.
#[must_use]
pub fn rope(x: &[f64], position: usize, inverse_frequencies: &[f64]) -> Vec<f64> {
    let half = inverse_frequencies.len();
    let head_dim = 2 * half;
    assert_eq!(x.len() % head_dim.max(1), 0, "x must be whole heads of {head_dim} channels");
    let mut y = x.to_vec();
    for head in (0..x.len()).step_by(head_dim.max(1)) {
        for i in 0..half {
            let (sin, cos) = (position as f64 * inverse_frequencies[i]).sin_cos();
            let (low, high) = (x[head + i], x[head + i + half]);
            y[head + i] = low * cos - high * sin;
            y[head + i + half] = high * cos + low * sin;
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::close;

    #[test]
    fn frequencies_by_hand() {
        close(&inverse_frequencies(4, 10_000.0, RopeScaling::None), &[1.0, 0.01], 1e-15);
        close(&inverse_frequencies(4, 10_000.0, RopeScaling::Linear { factor: 4.0 }), &[0.25, 0.0025], 1e-15);
    }

    #[test]
    fn llama_3_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_positions: 8192,
        };
        let (plain, scaled) =
            (inverse_frequencies(128, 500_000.0, RopeScaling::None), inverse_frequencies(128, 500_000.0, scaling));
        // By wavelengths, as the definition is published: above 8192 low, below 2048 high, a linear step between.
        let mut seen = [0; 3];
        for (plain, scaled) in plain.iter().zip(&scaled) {
            let wavelength = TAU / plain;
            let (class, expected) = if wavelength > 8192.0 {
                (0, plain / 8.0)
            } else if wavelength < 2048.0 {
                (1, *plain)
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                (2, (1.0 - smooth) * plain / 8.0 + smooth * plain)
            };
            seen[class] += 1;
            assert!((scaled - expected).abs() < 1e-15);
        }
        assert!(seen.iter().all(|&count| count > 0), "all three cases occur: {seen:?}");
    }

    #[test]
    fn pairs_lie_half_a_head_apart() {
        // A quarter turn at position 1 of the first pair; the second pair stands still.
        let y = rope(&[1.0, 2.0, 3.0, 4.0], 1, &[TAU / 4.0, 0.0]);
        close(&y, &[-3.0, 2.0, 1.0, 4.0], 1e-15);
        assert_eq!(rope(&[1.0, 2.0, 3.0, 4.0], 0, &[1.0, 0.1]), [1.0, 2.0, 3.0, 4.0]);
    }
}
