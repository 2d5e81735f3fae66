//! The gate of the feed-forward network.

/// `SiLU(gate) * up`, element by element, with `SiLU(x) = x / (1 + e^-x)`.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn swiglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    assert_eq!(gate.len(), up.len(), "gate and up have the same shape");
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::close;

    #[test]
    fn gates_by_hand() {
        let ln3 = 3.0_f64.ln();
        close(&swiglu(&[0.0, ln3, -ln3], &[5.0, 4.0, 4.0]), &[0.0, 3.0 * ln3, -ln3], 1e-14);
    }

    #[test]
    fn extreme_gates_stay_finite() {
        assert_eq!(swiglu(&[1000.0, -1000.0], &[2.0, 2.0]), [2000.0, -0.0]);
    }
}
