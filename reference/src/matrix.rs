//! Dense row-major matrices in `f64`.

/// The identity of size `n`.
#[must_use]
pub fn identity(n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    for i in 0..n {
        out[i * n + i] = 1.0;
    }
    out
}

/// `a b` for `a` `[m, k]` and `b` `[k, n]`.
///
/// # Panics
/// When a length does not fit its shape.
#[must_use]
pub fn matmul(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    assert_eq!(a.len(), m * k, "a is [m, k]");
    assert_eq!(b.len(), k * n, "b is [k, n]");
    let mut out = vec![0.0; m * n];
    for row in 0..m {
        for inner in 0..k {
            for column in 0..n {
                out[row * n + column] += a[row * k + inner] * b[inner * n + column];
            }
        }
    }
    out
}

/// The transpose `[columns, rows]` of `a` `[rows, columns]`.
///
/// # Panics
/// When `a` is not `rows * columns` long.
#[must_use]
pub fn transpose(a: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    assert_eq!(a.len(), rows * columns, "a is [rows, columns]");
    let mut out = vec![0.0; a.len()];
    for row in 0..rows {
        for column in 0..columns {
            out[column * rows + row] = a[row * columns + column];
        }
    }
    out
}

/// `max |R R^T - I|` of a square matrix of size `n`.
///
/// # Panics
/// When `r` is not `n * n` long.
#[must_use]
pub fn orthogonality_error(r: &[f64], n: usize) -> f64 {
    let product = matmul(r, &transpose(r, n, n), n, n, n);
    product.iter().zip(identity(n)).map(|(x, i)| (x - i).abs()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_by_hand() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(transpose(&a, 2, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(matmul(&a, &transpose(&a, 2, 3), 2, 3, 2), [14.0, 32.0, 32.0, 77.0]);
        assert_eq!(matmul(&a, &identity(3), 2, 3, 3), a);
        assert_eq!(orthogonality_error(&[0.0, 1.0, -1.0, 0.0], 2), 0.0);
        assert_eq!(orthogonality_error(&[2.0, 0.0, 0.0, 1.0], 2), 3.0);
    }
}
