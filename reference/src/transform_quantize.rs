//! The prologue of a quantized linear.

use crate::{Affine, QuantizedRows, Transform};

/// Transforms `x` `[T, K]` in `f64`, rounds to `f32` and quantizes each token: codes, scale, zero point and row sum.
///
/// A kernel that works in `f32` may differ by one code where a transformed value lies next to a tie. To compare bit for
/// bit, hand the kernel's own transformed values to [`QuantizedRows::quantize`].
///
/// # Panics
/// When shapes do not fit or a transformed value is not finite.
#[must_use]
pub fn transform_quantize(x: &[f64], tokens: usize, transform: &Transform, affine: &Affine) -> QuantizedRows {
    assert_eq!(x.len(), tokens * transform.channels, "x is [T, K]");
    QuantizedRows::quantize(&transform.apply(x), tokens, transform.channels, affine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hadamard_matrix;

    #[test]
    fn a_massive_outlier_is_spread_before_it_is_quantized() {
        // 8 in one of four channels becomes 4 in each; alone it would take all codes for itself.
        let transform =
            Transform { channels: 4, block: 4, rotations: vec![hadamard_matrix(4)], ..Transform::identity(4) };
        let x = [8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let tokens = transform_quantize(&x, 2, &transform, &Affine::new(4, 1.0));
        assert_eq!(tokens.codes, [15, 15, 15, 15, 0, 0, 0, 0]);
        assert_eq!((tokens.zero_point, tokens.row_sum), (vec![0, 0], vec![60, 0]));
        assert_eq!(tokens.scale, [4.0_f32 * (1.0 / 15.0), 1e-8]);
    }
}
