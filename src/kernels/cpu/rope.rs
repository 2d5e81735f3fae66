use crate::kernels::Error;
use crate::kernels::error::check_length;

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeStretch<'a> {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// LLaMA 3: frequencies of long wavelengths divided by `factor`, those of short ones kept, a linear step between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_positions / low_frequency_factor` count as low frequencies.
        low_frequency_factor: f64,
        /// Wavelengths below `original_positions / high_frequency_factor` count as high frequencies.
        high_frequency_factor: f64,
        /// Context of the pre-training.
        original_positions: usize,
    },
    /// Each frequency divided by its own factor, `[D / 2]`, as GGUF's `rope_freqs` has them.
    Factors(&'a [f64]),
}

/// The rotary frequencies `theta^(-2 i / D)` for `i < D / 2`, stretched.
///
/// # Errors
/// [`Error::Unsupported`] for an odd or zero `head_dim`, and for a `theta` or factors that are not finite and positive;
/// [`Error::Length`] when explicit factors are not `D / 2`.
pub fn rope_inverse_frequencies(head_dim: usize, theta: f64, stretch: &RopeStretch<'_>) -> Result<Vec<f64>, Error> {
    check_head_dim(head_dim)?;
    check_positive("theta", theta)?;
    let mut frequencies: Vec<f64> =
        (0..head_dim / 2).map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64)).collect();
    match *stretch {
        RopeStretch::None => {}
        RopeStretch::Linear { factor } => {
            check_positive("factor", factor)?;
            frequencies.iter_mut().for_each(|f| *f /= factor);
        }
        RopeStretch::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_positions } => {
            check_positive("factor", factor)?;
            check_positive("low_frequency_factor", low_frequency_factor)?;
            check_positive(
                "high_frequency_factor - low_frequency_factor",
                high_frequency_factor - low_frequency_factor,
            )?;
            let context = original_positions as f64;
            check_positive("original_positions", context)?;
            for f in &mut frequencies {
                let wavelength = 2.0 * std::f64::consts::PI / *f;
                if wavelength > context / low_frequency_factor {
                    *f /= factor;
                } else if wavelength >= context / high_frequency_factor {
                    let smooth =
                        (context / wavelength - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
                    *f = (1.0 - smooth) * *f / factor + smooth * *f;
                }
            }
        }
        RopeStretch::Factors(factors) => {
            check_length("factors", head_dim / 2, factors.len())?;
            for (f, &factor) in frequencies.iter_mut().zip(factors) {
                check_positive("factors", factor)?;
                *f /= factor;
            }
        }
    }
    Ok(frequencies)
}

fn check_head_dim(head_dim: usize) -> Result<(), Error> {
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        let expected = "an even number".into();
        return Err(Error::Unsupported { what: "head_dim", expected, got: head_dim.to_string() });
    }
    Ok(())
}

fn check_positive(what: &'static str, value: f64) -> Result<(), Error> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::Unsupported { what, expected: "a finite number above 0".into(), got: value.to_string() })
}

/// Cosines and sines of `position * frequency`, computed in `f64` and kept in `f32`, for the rotation of Hugging Face's
/// LLaMA: channel `i` turns with channel `i + D / 2`.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    frequencies: Vec<f64>,
    positions: usize,
    /// `[positions, D / 2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Tables for positions `0..positions` of heads of `head_dim` channels; `frequencies` `[D / 2]` are what
    /// [`rope_inverse_frequencies`] gives.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an odd or zero `head_dim`, [`Error::Length`] for another number of frequencies.
    pub fn new(head_dim: usize, frequencies: &[f64], positions: usize) -> Result<Self, Error> {
        check_head_dim(head_dim)?;
        check_length("frequencies", head_dim / 2, frequencies.len())?;
        let mut table = Self { frequencies: frequencies.to_vec(), positions: 0, cos: Vec::new(), sin: Vec::new() };
        table.grow(positions);
        Ok(table)
    }

    /// Bytes of sines and cosines.
    #[must_use]
    pub fn bytes(&self) -> usize {
        4 * (self.cos.len() + self.sin.len())
    }

    /// Extends the tables to `0..positions`; shorter ones stay as they are. The only function here that allocates beside
    /// [`Self::new`].
    pub fn grow(&mut self, positions: usize) {
        if positions <= self.positions {
            return;
        }
        let more = (positions - self.positions) * self.frequencies.len();
        self.cos.reserve(more);
        self.sin.reserve(more);
        for position in self.positions..positions {
            for &frequency in &self.frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
        self.positions = positions;
    }

    /// Channels of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Positions that the tables hold.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Cosines and sines of one position, `[D / 2]` each.
    ///
    /// # Panics
    /// When `position` is not below [`Self::positions`].
    #[must_use]
    pub fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.frequencies.len();
        (&self.cos[position * half..(position + 1) * half], &self.sin[position * half..(position + 1) * half])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_follow_the_formulas() {
        let plain = rope_inverse_frequencies(8, 10000.0, &RopeStretch::None).unwrap();
        for (got, want) in plain.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((got - want).abs() < 1e-12);
        }
        let linear = rope_inverse_frequencies(8, 10000.0, &RopeStretch::Linear { factor: 4.0 }).unwrap();
        assert!(linear.iter().zip(&plain).all(|(l, p)| (l * 4.0 - p).abs() < 1e-15));
        let factors = rope_inverse_frequencies(8, 10000.0, &RopeStretch::Factors(&[1.0, 2.0, 4.0, 8.0])).unwrap();
        assert!((factors[3] * 8.0 - plain[3]).abs() < 1e-15);
    }

    #[test]
    fn llama3_keeps_short_waves_divides_long_ones_and_steps_between() {
        let stretch = RopeStretch::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_positions: 8192,
        };
        let plain = rope_inverse_frequencies(128, 500_000.0, &RopeStretch::None).unwrap();
        let got = rope_inverse_frequencies(128, 500_000.0, &stretch).unwrap();
        let (mut kept, mut divided, mut between) = (0, 0, 0);
        for (got, plain) in got.iter().zip(&plain) {
            let wavelength = 2.0 * std::f64::consts::PI / plain;
            if wavelength < 2048.0 {
                assert_eq!(got, plain);
                kept += 1;
            } else if wavelength > 8192.0 {
                assert!((got - plain / 8.0).abs() < 1e-18);
                divided += 1;
            } else {
                assert!(got < plain && *got > plain / 8.0);
                between += 1;
            }
        }
        assert!(kept > 20 && divided > 20 && between > 3);
        assert!(got.windows(2).all(|w| w[1] < w[0]), "frequencies fall");
    }

    #[test]
    fn tables_grow_without_changing() {
        let frequencies = rope_inverse_frequencies(64, 10000.0, &RopeStretch::None).unwrap();
        let mut grown = RopeTable::new(64, &frequencies, 3).unwrap();
        grown.grow(100);
        grown.grow(50);
        assert_eq!(grown, RopeTable::new(64, &frequencies, 100).unwrap());
        let (cos, sin) = grown.row(99);
        assert!((f64::from(cos[0]) - 99_f64.cos()).abs() < 1e-7 && (f64::from(sin[0]) - 99_f64.sin()).abs() < 1e-7);
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(rope_inverse_frequencies(7, 10000.0, &RopeStretch::None).is_err());
        assert!(rope_inverse_frequencies(0, 10000.0, &RopeStretch::None).is_err());
        assert!(rope_inverse_frequencies(8, f64::NAN, &RopeStretch::None).is_err());
        assert!(rope_inverse_frequencies(8, 1e4, &RopeStretch::Factors(&[1.0; 3])).is_err());
        assert!(rope_inverse_frequencies(8, 1e4, &RopeStretch::Factors(&[0.0; 4])).is_err());
        assert!(RopeTable::new(8, &[1.0; 3], 4).is_err());
    }
}
