//! The Hadamard rotation of queries and keys, head by head.

use crate::{hadamard_matrix, rotate_blocks};

/// The largest power of two that divides `head_dim`: the block of a head's Hadamard rotation.
///
/// # Panics
/// When `head_dim` is 0.
#[must_use]
pub fn head_hadamard_size(head_dim: usize) -> usize {
    assert!(head_dim > 0, "a head has at least one channel");
    let mut size = 1;
    while head_dim.is_multiple_of(2 * size) {
        size *= 2;
    }
    size
}

/// Rotates every head of `x` (whole heads of `head_dim` channels, one after the other) by the normalised Sylvester
/// Hadamard matrix of size [`head_hadamard_size`], block-diagonal where that is smaller than the head. The size is that
/// of the head and never that of the linears' rotation block, which would mix tokens.
///
/// # Panics
/// When `x` is no whole number of heads.
#[must_use]
pub fn hadamard_heads(x: &[f64], head_dim: usize) -> Vec<f64> {
    assert!(head_dim > 0 && x.len().is_multiple_of(head_dim), "x must be whole heads of {head_dim} channels");
    let size = head_hadamard_size(head_dim);
    rotate_blocks(x, &hadamard_matrix(size), size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, close};

    #[test]
    fn sizes() {
        for (head_dim, size) in [(1, 1), (3, 1), (6, 2), (64, 64), (80, 16), (96, 32), (128, 128)] {
            assert_eq!(head_hadamard_size(head_dim), size);
        }
    }

    #[test]
    fn heads_by_hand() {
        let half = 0.5_f64.sqrt();
        let x = [1.0, 3.0, 5.0, 5.0, 2.0, -2.0];
        let y = hadamard_heads(&x, 6);
        close(&y, &[4.0 * half, -2.0 * half, 10.0 * half, 0.0, 0.0, 4.0 * half], 1e-14);
    }

    #[test]
    fn twice_is_once_undone_and_heads_do_not_mix() {
        let x = Random::new(40).normals(3 * 24);
        close(&hadamard_heads(&hadamard_heads(&x, 24), 24), &x, 1e-13);
        let mut touched = x.clone();
        touched[0] += 1.0;
        close(&hadamard_heads(&touched, 24)[24..], &hadamard_heads(&x, 24)[24..], 0.0);
    }
}
