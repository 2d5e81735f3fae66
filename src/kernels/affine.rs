use super::Error;

/// Settings of the affine quantizer (eq. 1 of the paper), for one row: a token of activations, an output channel of a
/// weight, or a head of a key or value.
///
/// With `L = 2^bits - 1`, all in `f32` and in this order, rounding to nearest with ties to even:
///
/// ```text
/// lo = min(0, clip * min(x))            hi = max(0, clip * max(x))
/// s  = max((hi - lo) * (1/L), 1e-8)     inv = 1 / s          z = clamp(round(-lo * inv), 0, L)
/// q  = clamp(round(x * inv) + z, 0, L)                       x ~ s (q - z)
/// ```
///
/// Symmetric mode takes `hi = max(-lo, hi)` and `lo = -hi`. A row of zeros gives `q = z = 0` in asymmetric mode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// Bits of a code, 2 to 8.
    pub bits: u32,
    /// Factor on the row's minimum and maximum, in `(0, 1]`.
    pub clip: f32,
    /// Whether the range is symmetric around zero.
    pub symmetric: bool,
}

/// Scale and zero point of one quantized row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowParams {
    /// `s`: the step between two codes.
    pub scale: f32,
    /// `1 / s`, as the quantizer used it.
    pub inverse_scale: f32,
    /// `z`: the code that stands for zero, `0..=L`.
    pub zero_point: u8,
}

impl Affine {
    /// Asymmetric settings of `bits` bits with a clip ratio.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when `bits` is outside 2..=8 or `clip` outside `(0, 1]`.
    pub fn new(bits: u32, clip: f32) -> Result<Self, Error> {
        if !(2..=8).contains(&bits) {
            return Err(Error::Unsupported { what: "bits", expected: "2 to 8".into(), got: bits.to_string() });
        }
        if !(clip > 0.0 && clip <= 1.0) {
            return Err(Error::Unsupported { what: "clip", expected: "in (0, 1]".into(), got: clip.to_string() });
        }
        Ok(Self { bits, clip, symmetric: false })
    }

    /// The same settings with a range symmetric around zero.
    #[must_use]
    pub fn symmetric(self) -> Self {
        Self { symmetric: true, ..self }
    }

    /// `L`, the largest code.
    #[must_use]
    pub fn max_code(&self) -> u8 {
        ((1_u32 << self.bits) - 1) as u8
    }

    /// Scale and zero point of a row with extremes `min` and `max`.
    #[must_use]
    pub fn params(&self, min: f32, max: f32) -> RowParams {
        let levels = f32::from(self.max_code());
        let mut lo = (self.clip * min).min(0.0);
        let mut hi = (self.clip * max).max(0.0);
        if self.symmetric {
            hi = hi.max(-lo);
            lo = -hi;
        }
        let scale = ((hi - lo) * (1.0 / levels)).max(1e-8);
        let inverse_scale = 1.0 / scale;
        let zero_point = (-lo * inverse_scale).round_ties_even().clamp(0.0, levels) as u8;
        RowParams { scale, inverse_scale, zero_point }
    }

    /// The code of `x`.
    #[must_use]
    pub fn code(&self, x: f32, params: &RowParams) -> u8 {
        let levels = f32::from(self.max_code());
        let code = (x * params.inverse_scale).round_ties_even() + f32::from(params.zero_point);
        code.clamp(0.0, levels) as u8
    }

    /// Quantizes one row into one code a byte and returns its scale and zero point.
    ///
    /// # Errors
    /// [`Error::Length`] when `codes` and `row` differ in length, [`Error::NotFinite`] (with row 0) when `row` holds
    /// NaN or infinity.
    pub fn quantize_row(&self, row: &[f32], codes: &mut [u8]) -> Result<RowParams, Error> {
        super::error::check_length("codes", row.len(), codes.len())?;
        let (mut min, mut max, mut finite) = (f32::INFINITY, f32::NEG_INFINITY, true);
        for &x in row {
            finite &= x.is_finite();
            min = min.min(x);
            max = max.max(x);
        }
        if !finite {
            return Err(Error::NotFinite { operand: "row", row: 0 });
        }
        if row.is_empty() {
            (min, max) = (0.0, 0.0);
        }
        let params = self.params(min, max);
        for (code, &x) in codes.iter_mut().zip(row) {
            *code = self.code(x, &params);
        }
        Ok(params)
    }
}
