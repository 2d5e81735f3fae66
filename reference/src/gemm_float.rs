//! The floating-point linear.

/// `y = x W^T (+ bias)` for `x` `[T, K]`, `weight` `[N, K]`, `bias` `[N]`; `y` is `[T, N]`.
///
/// # Panics
/// When a length does not fit its shape.
#[must_use]
pub fn gemm_float(x: &[f64], weight: &[f64], bias: Option<&[f64]>, tokens: usize, n: usize, k: usize) -> Vec<f64> {
    assert_eq!(x.len(), tokens * k, "x is [T, K]");
    assert_eq!(weight.len(), n * k, "weight is [N, K]");
    assert!(bias.is_none_or(|bias| bias.len() == n), "bias is [N]");
    let mut y = Vec::with_capacity(tokens * n);
    for t in 0..tokens {
        for row in 0..n {
            let mut sum = bias.map_or(0.0, |bias| bias[row]);
            for i in 0..k {
                sum += x[t * k + i] * weight[row * k + i];
            }
            y.push(sum);
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_by_hand() {
        let (x, w) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 1.0, 1.0, -1.0]);
        assert_eq!(gemm_float(&x, &w, None, 2, 3, 2), [1.0, 2.0, -1.0, 3.0, 4.0, -1.0]);
        assert_eq!(gemm_float(&x, &w, Some(&[10.0, 0.0, 1.0]), 2, 3, 2), [11.0, 2.0, 0.0, 13.0, 4.0, 0.0]);
        assert_eq!(gemm_float(&[], &[], Some(&[5.0]), 2, 1, 0), [5.0, 5.0]);
    }
}
