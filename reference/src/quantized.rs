//! Quantized matrices, unpacked: activations row by row, and weights.

use crate::{Affine, RowParams};

/// Rows quantized each on its own: tokens in front of a linear, or the heads of tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedRows {
    /// Rows.
    pub rows: usize,
    /// Values of a row.
    pub width: usize,
    /// Codes, row-major `[rows, width]`, one a byte.
    pub codes: Vec<u8>,
    /// Scale of each row.
    pub scale: Vec<f32>,
    /// Zero point of each row.
    pub zero_point: Vec<u8>,
    /// Sum of the codes of each row.
    pub row_sum: Vec<i64>,
}

impl QuantizedRows {
    /// Rounds `x` `[rows, width]` to `f32` and quantizes each row.
    ///
    /// # Panics
    /// When `x` is not `rows * width` long or holds a number that is not finite in `f32`.
    #[must_use]
    pub fn quantize(x: &[f64], rows: usize, width: usize, affine: &Affine) -> Self {
        assert_eq!(x.len(), rows * width, "x is [rows, width]");
        let mut out = Self {
            rows,
            width,
            codes: Vec::with_capacity(x.len()),
            scale: Vec::with_capacity(rows),
            zero_point: Vec::with_capacity(rows),
            row_sum: Vec::with_capacity(rows),
        };
        for row in 0..rows {
            let values: Vec<f32> = x[row * width..(row + 1) * width].iter().map(|&x| x as f32).collect();
            let (codes, params) = affine.quantize_row(&values);
            out.row_sum.push(codes.iter().map(|&code| i64::from(code)).sum());
            out.codes.extend(codes);
            out.scale.push(params.scale);
            out.zero_point.push(params.zero_point);
        }
        out
    }

    /// `s (q - z)` for every code, `[rows, width]`.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f64> {
        dequantize(&self.codes, &self.scale, &self.zero_point, self.width)
    }
}

/// A quantized weight `[N, K]`: row `n` stands for `scale[n] (code[n, k] - zero_point[n])`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedMatrix {
    /// Output channels `N`.
    pub n: usize,
    /// Input channels `K`.
    pub k: usize,
    /// Bits of a code, 2 to 8.
    pub bits: u32,
    /// Codes, row-major `[N, K]`, one a byte.
    pub codes: Vec<u8>,
    /// Scale of each output channel, `[N]`.
    pub scale: Vec<f32>,
    /// Zero point of each output channel, `[N]`.
    pub zero_point: Vec<u8>,
}

impl QuantizedMatrix {
    /// Rounds `weight` `[N, K]` to `f32` and quantizes each output channel.
    ///
    /// # Panics
    /// When `weight` is not `n * k` long or holds a number that is not finite in `f32`.
    #[must_use]
    pub fn quantize(weight: &[f64], n: usize, k: usize, affine: &Affine) -> Self {
        let QuantizedRows { codes, scale, zero_point, .. } = QuantizedRows::quantize(weight, n, k, affine);
        Self { n, k, bits: affine.bits, codes, scale, zero_point }
    }

    /// The real numbers that the codes stand for, `[N, K]`.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f64> {
        dequantize(&self.codes, &self.scale, &self.zero_point, self.k)
    }

    /// `c[n] = sum_k code[n, k] - K zero_point[n]`: the part of the epilogue that depends on the weight alone.
    #[must_use]
    pub fn correction(&self) -> Vec<i64> {
        let mut out = Vec::with_capacity(self.n);
        for n in 0..self.n {
            let sum: i64 = self.codes[n * self.k..(n + 1) * self.k].iter().map(|&code| i64::from(code)).sum();
            out.push(sum - self.k as i64 * i64::from(self.zero_point[n]));
        }
        out
    }
}

fn dequantize(codes: &[u8], scale: &[f32], zero_point: &[u8], width: usize) -> Vec<f64> {
    let params =
        |row: usize| RowParams { scale: scale[row], inverse_scale: 1.0 / scale[row], zero_point: zero_point[row] };
    codes.iter().enumerate().map(|(at, &code)| params(at / width).dequantize(code)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_quantized_on_their_own() {
        let x = [-3.0, 12.0, 0.0, 30.0];
        let rows = QuantizedRows::quantize(&x, 2, 2, &Affine::new(4, 1.0));
        assert_eq!(rows.codes, [0, 15, 0, 15]);
        assert_eq!((rows.scale.as_slice(), rows.zero_point.as_slice()), (&[1.0, 2.0][..], &[3, 0][..]));
        assert_eq!(rows.row_sum, [15, 15]);
        assert_eq!(rows.dequantize(), x);
    }

    #[test]
    fn correction_by_hand() {
        let matrix = QuantizedMatrix {
            n: 2,
            k: 3,
            bits: 4,
            codes: vec![1, 2, 3, 0, 0, 15],
            scale: vec![0.5, 2.0],
            zero_point: vec![8, 5],
        };
        assert_eq!(matrix.correction(), [6 - 24, 15 - 15]);
        assert_eq!(matrix.dequantize(), [-3.5, -3.0, -2.5, -10.0, -10.0, 20.0]);
    }

    #[test]
    fn empty_shapes() {
        let affine = Affine::new(4, 1.0);
        assert_eq!(QuantizedRows::quantize(&[], 0, 5, &affine).dequantize(), [0.0; 0]);
        assert_eq!(QuantizedMatrix::quantize(&[], 2, 0, &affine).correction(), [0, 0]);
    }
}
