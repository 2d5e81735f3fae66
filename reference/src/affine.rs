//! The affine quantizer of one row, in `f32` on purpose: see [`Affine`].

/// Settings of the affine quantizer (eq. 1): bits of a code, clip ratio, symmetric range or not.
///
/// With `L = 2^bits - 1`, every operation in `f32`, in this order, rounding to nearest with ties to even:
///
/// ```text
/// lo = min(0, clip * min(x))            hi = max(0, clip * max(x))
/// symmetric:                            hi = max(-lo, hi), then lo = -hi
/// s  = max((hi - lo) * (1/L), 1e-8)     inv = 1 / s          z = clamp(round(-lo * inv), 0, L)
/// q  = clamp(round(x * inv) + z, 0, L)                       x ~ s (q - z)
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// Bits of a code, 2 to 8.
    pub bits: u32,
    /// Factor on the row's minimum and maximum, in `(0, 1]`.
    pub clip: f32,
    /// Whether the range is symmetric around zero.
    pub symmetric: bool,
}

/// What [`Affine`] derives from a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowParams {
    /// `s`: the step between two codes.
    pub scale: f32,
    /// `inv = 1 / s`, rounded to `f32`.
    pub inverse_scale: f32,
    /// `z`: the code that stands for zero, `0..=L`.
    pub zero_point: u8,
}

impl Affine {
    /// Asymmetric settings.
    ///
    /// # Panics
    /// When `bits` is outside 2..=8 or `clip` outside `(0, 1]`.
    #[must_use]
    pub fn new(bits: u32, clip: f32) -> Self {
        assert!((2..=8).contains(&bits), "bits must be 2 to 8, got {bits}");
        assert!(clip > 0.0 && clip <= 1.0, "clip must be in (0, 1], got {clip}");
        Self { bits, clip, symmetric: false }
    }

    /// Settings with a range symmetric around zero.
    ///
    /// # Panics
    /// As [`Affine::new`].
    #[must_use]
    pub fn new_symmetric(bits: u32, clip: f32) -> Self {
        Self { symmetric: true, ..Self::new(bits, clip) }
    }

    /// `L`, the largest code.
    #[must_use]
    pub fn max_code(&self) -> u8 {
        match self.bits {
            8 => 255,
            bits => (1 << bits) - 1,
        }
    }

    /// Scale and zero point of a row whose smallest and largest values are `min` and `max`.
    #[must_use]
    pub fn params(&self, min: f32, max: f32) -> RowParams {
        let levels = f32::from(self.max_code());
        let clipped_min = self.clip * min;
        let clipped_max = self.clip * max;
        let mut lo = if clipped_min < 0.0 { clipped_min } else { 0.0 };
        let mut hi = if clipped_max > 0.0 { clipped_max } else { 0.0 };
        if self.symmetric {
            hi = if -lo > hi { -lo } else { hi };
            lo = -hi;
        }
        let step = (hi - lo) * (1.0 / levels);
        let scale = if step > 1e-8 { step } else { 1e-8 };
        let inverse_scale = 1.0 / scale;
        let zero_point = clamp_code((-lo * inverse_scale).round_ties_even(), levels);
        RowParams { scale, inverse_scale, zero_point }
    }

    /// The code of `x` in a row with `params`.
    #[must_use]
    pub fn code(&self, x: f32, params: &RowParams) -> u8 {
        let shifted = (x * params.inverse_scale).round_ties_even() + f32::from(params.zero_point);
        clamp_code(shifted, f32::from(self.max_code()))
    }

    /// Codes and parameters of one row. An empty row has the parameters of a row of zeros.
    ///
    /// # Panics
    /// When `row` holds NaN or infinity.
    #[must_use]
    pub fn quantize_row(&self, row: &[f32]) -> (Vec<u8>, RowParams) {
        assert!(row.iter().all(|x| x.is_finite()), "the quantizer takes finite numbers only");
        // The range always holds zero, so that starting both extremes there changes nothing.
        let (mut min, mut max) = (0.0_f32, 0.0_f32);
        for &x in row {
            if x < min {
                min = x;
            }
            if x > max {
                max = x;
            }
        }
        let params = self.params(min, max);
        let codes = row.iter().map(|&x| self.code(x, &params)).collect();
        (codes, params)
    }
}

impl RowParams {
    /// `s (q - z)`, the real number that `code` stands for.
    #[must_use]
    pub fn dequantize(&self, code: u8) -> f64 {
        f64::from(self.scale) * (f64::from(code) - f64::from(self.zero_point))
    }
}

fn clamp_code(value: f32, levels: f32) -> u8 {
    if value < 0.0 {
        0
    } else if value > levels {
        levels as u8
    } else {
        value as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_by_hand() {
        // Range -3 .. 12, L = 15: s = 1, z = 3, so every integer has its own code.
        let row = [-3.0, 0.0, 1.0, 12.0, 5.4, 5.6];
        let (codes, params) = Affine::new(4, 1.0).quantize_row(&row);
        assert_eq!((params.scale, params.inverse_scale, params.zero_point), (1.0, 1.0, 3));
        assert_eq!(codes, [0, 3, 4, 15, 8, 9]);
        assert_eq!(params.dequantize(15), 12.0);
    }

    #[test]
    fn ties_go_to_even() {
        let params = RowParams { scale: 1.0, inverse_scale: 1.0, zero_point: 0 };
        let affine = Affine::new(4, 1.0);
        let codes = [0.5, 1.5, 2.5, 3.5, 14.5, 15.5].map(|x| affine.code(x, &params));
        assert_eq!(codes, [0, 2, 2, 4, 14, 15]);
        // -lo * inv = 2.5 exactly: lo = -2.5, hi = 12.5, s = 1.
        assert_eq!(affine.params(-2.5, 12.5).zero_point, 2);
    }

    #[test]
    fn rows_of_zeros_and_of_one_sign() {
        for bits in 2..=8 {
            let affine = Affine::new(bits, 0.9);
            let (codes, params) = affine.quantize_row(&[0.0, -0.0, 0.0]);
            assert_eq!((codes, params.scale, params.zero_point), (vec![0, 0, 0], 1e-8, 0));
            let (codes, params) = affine.quantize_row(&[1.0, 7.0, 3.0]);
            assert_eq!((params.zero_point, codes[1]), (0, affine.max_code()));
            let (codes, params) = affine.quantize_row(&[-1.0, -7.0, -3.0]);
            assert_eq!((params.zero_point, codes[1]), (affine.max_code(), 0));
        }
        let (codes, params) = Affine::new(4, 1.0).quantize_row(&[]);
        assert_eq!((codes.len(), params.scale, params.zero_point), (0, 1e-8, 0));
    }

    #[test]
    fn clip_saturates_the_extremes() {
        let (codes, params) = Affine::new(4, 0.5).quantize_row(&[0.0, 30.0, 15.0, 14.0]);
        assert_eq!(params.scale, 1.0);
        assert_eq!(codes, [0, 15, 15, 14]);
    }

    #[test]
    fn symmetric_takes_the_larger_side() {
        // hi = 15, lo = -15, s = 2, z = round(7.5) = 8 by ties to even; the top code saturates.
        let (codes, params) = Affine::new_symmetric(4, 1.0).quantize_row(&[-15.0, 2.0, 4.0]);
        assert_eq!((params.scale, params.zero_point), (2.0, 8));
        assert_eq!(codes, [0, 9, 10]);
        let mirrored = Affine::new_symmetric(4, 1.0).params(-4.0, 15.0);
        assert_eq!((mirrored.scale, mirrored.zero_point), (2.0, 8));
    }

    #[test]
    fn a_massive_outlier_flattens_the_rest() {
        let mut row = vec![0.06_f32; 64];
        row[17] = 2774.0;
        let (codes, params) = Affine::new(4, 0.9).quantize_row(&row);
        assert_eq!(params.zero_point, 0);
        assert_eq!(codes[17], 15);
        assert!(codes.iter().enumerate().all(|(j, &code)| j == 17 || code == 0));
    }

    #[test]
    fn tiny_rows_stop_at_the_smallest_scale() {
        let (codes, params) = Affine::new(8, 1.0).quantize_row(&[1e-12, -1e-12]);
        assert_eq!((params.scale, params.zero_point), (1e-8, 0));
        assert_eq!(codes, [0, 0]);
    }

    #[test]
    #[should_panic(expected = "finite")]
    fn nan_is_refused() {
        let _ = Affine::new(4, 1.0).quantize_row(&[0.0, f32::NAN]);
    }
}
