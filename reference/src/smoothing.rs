//! Smoothing in the manner of SmoothQuant: a scale per input channel that moves range from activations to weights.

/// Smallest activation or weight maximum that enters a scale.
const SMALLEST_MAXIMUM: f64 = 1e-5;
/// Smallest scale.
const SMALLEST_SCALE: f64 = 0.01;

/// `s_j = act_j^alpha / w_j^(1 - alpha)` with the official clamps: both maxima are at least 1e-5, and a scale below 0.01
/// becomes 0.01. `act_max[j]` is `max |X_j|` over tokens, `weight_max[j]` is `max |W_j|` over output channels.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn smoothing_scale(act_max: &[f64], weight_max: &[f64], alpha: f64) -> Vec<f64> {
    assert_eq!(act_max.len(), weight_max.len(), "one maximum a channel on both sides");
    let mut scale = Vec::with_capacity(act_max.len());
    for (&act, &weight) in act_max.iter().zip(weight_max) {
        let act = if act < SMALLEST_MAXIMUM { SMALLEST_MAXIMUM } else { act };
        let weight = if weight < SMALLEST_MAXIMUM { SMALLEST_MAXIMUM } else { weight };
        let s = act.powf(alpha) / weight.powf(1.0 - alpha);
        scale.push(if s < SMALLEST_SCALE { SMALLEST_SCALE } else { s });
    }
    scale
}

/// Divides a norm's weight by the scales of the linears behind it: the norm's output becomes `x / s`.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn fold_into_norm(norm: &[f64], scale: &[f64]) -> Vec<f64> {
    assert_eq!(norm.len(), scale.len(), "one scale a channel");
    norm.iter().zip(scale).map(|(w, s)| w / s).collect()
}

/// Divides the rows of the predecessor's weight `[N, K]` by the scales `[N]` of the linear behind it (`v_proj` for
/// `o_proj`, `up_proj` for `down_proj`). A bias folds like a weight with `k = 1`.
///
/// # Panics
/// When `weight` is not `scale.len() * k` long.
#[must_use]
pub fn fold_into_rows(weight: &[f64], scale: &[f64], k: usize) -> Vec<f64> {
    assert_eq!(weight.len(), scale.len() * k, "one scale an output channel");
    weight.iter().enumerate().map(|(i, w)| w / scale[i / k]).collect()
}

/// Multiplies the columns of a weight `[N, K]` by its own scales `[K]`: `W -> W S`.
///
/// # Panics
/// When `weight` is not a multiple of `scale.len()` long.
#[must_use]
pub fn fold_into_columns(weight: &[f64], scale: &[f64]) -> Vec<f64> {
    let k = scale.len();
    assert_eq!(weight.len() % k.max(1), 0, "one scale an input channel");
    weight.iter().enumerate().map(|(i, w)| w * scale[i % k]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, close};
    use crate::{gemm_float, rms_norm, swiglu};

    #[test]
    fn scales_by_hand() {
        let s = smoothing_scale(&[16.0, 4.0, 0.0, 1e-9, 8.0], &[1.0, 4.0, 0.0, 100.0, 1e-7], 0.5);
        close(&s[..3], &[4.0, 1.0, 1.0], 1e-12);
        assert_eq!(s[3], 0.01, "sqrt(1e-5 / 100) is below the smallest scale");
        close(&s[4..], &[(8.0_f64 / 1e-5).sqrt()], 1e-9);
        close(&smoothing_scale(&[32.0], &[32.0], 0.6), &[2.0], 1e-12);
    }

    #[test]
    fn folding_into_a_norm_keeps_the_output() {
        let mut random = Random::new(3);
        let (tokens, k, n) = (5, 12, 7);
        let (x, norm, w) = (random.normals(tokens * k), random.normals(k), random.normals(n * k));
        let s: Vec<f64> = (0..k).map(|j| 0.1 + j as f64).collect();
        let plain = gemm_float(&rms_norm(&x, &norm, 1e-5), &w, None, tokens, n, k);
        let folded = rms_norm(&x, &fold_into_norm(&norm, &s), 1e-5);
        close(&gemm_float(&folded, &fold_into_columns(&w, &s), None, tokens, n, k), &plain, 1e-12);
    }

    #[test]
    fn folding_into_rows_keeps_the_output() {
        let mut random = Random::new(4);
        let (tokens, hidden, inner) = (3, 6, 8);
        let (x, gate) = (random.normals(tokens * hidden), random.normals(tokens * inner));
        let (up, down) = (random.normals(inner * hidden), random.normals(hidden * inner));
        let s: Vec<f64> = (0..inner).map(|j| 0.3 + j as f64).collect();
        let run = |up: &[f64], down: &[f64]| {
            let h = swiglu(&gate, &gemm_float(&x, up, None, tokens, inner, hidden));
            gemm_float(&h, down, None, tokens, hidden, inner)
        };
        let folded = run(&fold_into_rows(&up, &s, hidden), &fold_into_columns(&down, &s));
        close(&folded, &run(&up, &down), 1e-12);
    }
}
