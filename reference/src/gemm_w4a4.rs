//! The quantized linear, exact in integers.

use crate::{QuantizedMatrix, QuantizedRows};

/// What [`gemm_w4a4`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct GemmOutput {
    /// `I[t, n]`, row-major `[T, N]`. Every backend must give these integers.
    pub integers: Vec<i64>,
    /// `y[t, n]`, row-major `[T, N]`.
    pub y: Vec<f64>,
}

/// `y = x W^T (+ bias)` on codes, with the asymmetric epilogue:
///
/// ```text
/// acc = sum_k qx[t,k] qw[n,k]        rs[t] = sum_k qx[t,k]      c[n] = sum_k qw[n,k] - K zw[n]
/// I   = acc - zw[n] rs[t] - zx[t] c[n]                          y = sx[t] sw[n] I (+ bias)
/// ```
///
/// Bits may be 2 to 8 on either side; the name is that of the kernel.
///
/// # Panics
/// When `x` and `weight` differ in `K` or `bias` is not `[N]`.
#[must_use]
pub fn gemm_w4a4(x: &QuantizedRows, weight: &QuantizedMatrix, bias: Option<&[f64]>) -> GemmOutput {
    let (n, k) = (weight.n, weight.k);
    assert_eq!(x.width, k, "x and weight share K");
    assert!(bias.is_none_or(|bias| bias.len() == n), "bias is [N]");
    let correction = weight.correction();
    let mut out = GemmOutput { integers: Vec::new(), y: Vec::new() };
    for t in 0..x.rows {
        for row in 0..n {
            let mut acc = 0_i64;
            for i in 0..k {
                acc += i64::from(x.codes[t * k + i]) * i64::from(weight.codes[row * k + i]);
            }
            let integer =
                acc - i64::from(weight.zero_point[row]) * x.row_sum[t] - i64::from(x.zero_point[t]) * correction[row];
            let scale = f64::from(x.scale[t]) * f64::from(weight.scale[row]);
            out.integers.push(integer);
            out.y.push(scale * integer as f64 + bias.map_or(0.0, |bias| bias[row]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Affine;
    use crate::testing::close;

    #[test]
    fn a_product_by_hand() {
        let x = QuantizedRows {
            rows: 1,
            width: 2,
            codes: vec![15, 1],
            scale: vec![0.5],
            zero_point: vec![4],
            row_sum: vec![16],
        };
        let weight = QuantizedMatrix {
            n: 2,
            k: 2,
            bits: 4,
            codes: vec![0, 9, 7, 7],
            scale: vec![2.0, 0.25],
            zero_point: vec![8, 7],
        };
        // (11, -3) . (-8, 1) = -91 and (11, -3) . (0, 0) = 0.
        let out = gemm_w4a4(&x, &weight, Some(&[0.0, 3.0]));
        assert_eq!((out.integers, out.y), (vec![-91, 0], vec![-91.0, 3.0]));
    }

    #[test]
    fn the_largest_codes_do_not_overflow() {
        // The case where a half-precision accumulator fails from K = 1170.
        let k = 20_000;
        let x = QuantizedRows::quantize(&vec![1.0; k], 1, k, &Affine::new(8, 1.0));
        let weight = QuantizedMatrix::quantize(&vec![-1.0; k], 1, k, &Affine::new(8, 1.0));
        let out = gemm_w4a4(&x, &weight, None);
        assert_eq!(out.integers, [-255 * 255 * k as i64]);
        close(&out.y, &[-(k as f64)], 1e-6);
    }

    #[test]
    fn no_channels_give_the_bias() {
        let x = QuantizedRows::quantize(&[], 2, 0, &Affine::new(4, 1.0));
        let weight = QuantizedMatrix::quantize(&[], 1, 0, &Affine::new(4, 1.0));
        assert_eq!(gemm_w4a4(&x, &weight, Some(&[2.0])).y, [2.0, 2.0]);
    }
}
