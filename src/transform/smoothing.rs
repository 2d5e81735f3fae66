use rayon::prelude::*;

use super::check_finite;
use crate::kernels::{Error, check_length};

/// Both statistics are at least this before they are divided, as in the official code.
const SMALLEST_MAX: f32 = 1e-5;
/// A scale below this becomes this, as in the official code.
const SMALLEST_SCALE: f32 = 1e-2;

/// The largest magnitude of each channel over all tokens, `max_t |x[t, j]|`: `x` is `[tokens, k]`, the result `[k]`.
///
/// # Errors
/// [`Error::Length`] when `x` has another size, [`Error::NotFinite`] for the first token with a value that is no number.
pub fn channel_max(x: &[f32], tokens: usize, k: usize) -> Result<Vec<f32>, Error> {
    check_length("x", tokens.saturating_mul(k), x.len())?;
    check_finite("x", x, k)?;
    if k == 0 {
        return Ok(Vec::new());
    }
    // The maximum is exact in any order, so the split over threads cannot show.
    Ok(x.par_chunks(k * 256)
        .map(|tile| {
            let mut largest = vec![0.0f32; k];
            for token in tile.chunks_exact(k) {
                for (m, &v) in largest.iter_mut().zip(token) {
                    *m = m.max(v.abs());
                }
            }
            largest
        })
        .reduce(
            || vec![0.0; k],
            |mut a, b| {
                a.iter_mut().zip(&b).for_each(|(m, &v)| *m = m.max(v));
                a
            },
        ))
}

/// Smoothing scale of each channel (eq. 5's `Lambda`, after SmoothQuant):
/// `s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`, activations being divided by it and weights multiplied.
///
/// `activation_max` and `weight_max` are `[k]`; both are clamped to at least 1e-5 and `s` to at least 0.01, as in the
/// official code. The paper takes `alpha` 0.6, and 0.5 with learnable weight clipping.
///
/// # Errors
/// [`Error::Length`] when the two differ in length, [`Error::Unsupported`] when `alpha` is outside 0..=1,
/// [`Error::NotFinite`] naming the channel as the row.
pub fn smoothing_scale(activation_max: &[f32], weight_max: &[f32], alpha: f32) -> Result<Vec<f32>, Error> {
    check_length("weight_max", activation_max.len(), weight_max.len())?;
    check_finite("activation_max", activation_max, 1)?;
    check_finite("weight_max", weight_max, 1)?;
    if !(0.0..=1.0).contains(&alpha) {
        return Err(Error::Unsupported { what: "alpha", expected: "0 to 1".into(), got: alpha.to_string() });
    }
    let scale = |(&a, &w): (&f32, &f32)| {
        let (a, w) = (f64::from(a.max(SMALLEST_MAX)), f64::from(w.max(SMALLEST_MAX)));
        let alpha = f64::from(alpha);
        ((a.powf(alpha) / w.powf(1.0 - alpha)) as f32).max(SMALLEST_SCALE)
    };
    Ok(activation_max.iter().zip(weight_max).map(scale).collect())
}

/// Makes o_proj's scale one that v_proj can take under grouped-query attention, and returns that scale for v_proj's rows.
///
/// `scale` is `[heads * head_dim]`, over o_proj's input. Query heads `g * heads / kv_heads ..` read the value channels of
/// kv head `g`, so a scale can be folded into v_proj's rows only when these heads share it; they get the largest of
/// theirs. The result is `[kv_heads * head_dim]`.
///
/// # Errors
/// [`Error::Unsupported`] when `kv_heads` does not divide `heads`, [`Error::Length`] when `scale` has another size.
pub fn share_across_groups(
    scale: &mut [f32],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> Result<Vec<f32>, Error> {
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::Unsupported {
            what: "kv_heads",
            expected: format!("a divisor of {heads} heads"),
            got: kv_heads.to_string(),
        });
    }
    check_length("scale", heads.saturating_mul(head_dim), scale.len())?;
    if scale.is_empty() {
        return Ok(Vec::new());
    }
    let mut value_scale = Vec::with_capacity(kv_heads * head_dim);
    for group in scale.chunks_exact_mut(heads / kv_heads * head_dim) {
        for channel in 0..head_dim {
            let shared = group.iter().skip(channel).step_by(head_dim).fold(0.0f32, |m, &s| m.max(s));
            group.iter_mut().skip(channel).step_by(head_dim).for_each(|s| *s = shared);
            value_scale.push(shared);
        }
    }
    Ok(value_scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_follows_the_formula_and_both_clamps() {
        let s = smoothing_scale(&[4.0, 1e-9, 0.0, 9.0], &[0.25, 4.0, 0.0, 1e-9], 0.5).unwrap();
        assert!((s[0] - 4.0).abs() < 1e-6);
        assert_eq!(s[1], 0.01, "sqrt(1e-5) / 2 is below the clamp");
        assert!((s[2] - 1.0).abs() < 1e-6, "both statistics clamp to 1e-5");
        assert!((s[3] - 3.0 / 1e-5f32.sqrt()).abs() / s[3] < 1e-5);
        let s = smoothing_scale(&[32.0], &[0.5], 0.6).unwrap();
        assert!((s[0] - 8.0 / 0.5f32.powf(0.4)).abs() < 1e-5);
    }

    #[test]
    fn bad_statistics_are_refused() {
        assert!(matches!(smoothing_scale(&[1.0], &[], 0.5), Err(Error::Length { .. })));
        assert!(matches!(smoothing_scale(&[1.0], &[1.0], 1.5), Err(Error::Unsupported { .. })));
        assert!(matches!(smoothing_scale(&[1.0], &[1.0], f32::NAN), Err(Error::Unsupported { .. })));
        assert!(matches!(
            smoothing_scale(&[1.0, f32::NAN], &[1.0, 1.0], 0.5),
            Err(Error::NotFinite { operand: "activation_max", row: 1 })
        ));
        assert!(matches!(channel_max(&[1.0; 5], 2, 3), Err(Error::Length { .. })));
        assert!(matches!(channel_max(&[1.0, 2.0, f32::INFINITY], 3, 1), Err(Error::NotFinite { row: 2, .. })));
        assert!(channel_max(&[], 3, 0).unwrap().is_empty());
    }

    #[test]
    fn the_channel_maximum_ignores_signs_and_spans_tiles() {
        let (tokens, k) = (1000, 3);
        let mut x: Vec<f32> = (0..tokens * k).map(|i| ((i * 7919) % 101) as f32 / 101.0 - 0.5).collect();
        x[999 * k + 1] = -7.0;
        x[0] = 3.0;
        let max = channel_max(&x, tokens, k).unwrap();
        assert_eq!(&max[..2], &[3.0, 7.0]);
        assert_eq!(max[2], x.iter().skip(2).step_by(k).fold(0.0, |m: f32, v| m.max(v.abs())));
    }

    #[test]
    fn query_heads_of_one_kv_head_share_the_largest_scale() {
        // 4 heads over 2 kv heads, head_dim 2.
        let mut s = vec![1.0, 2.0, 3.0, 1.0, /* group 1 */ 5.0, 6.0, 4.0, 7.0];
        let value = share_across_groups(&mut s, 4, 2, 2).unwrap();
        assert_eq!(value, [3.0, 2.0, 5.0, 7.0]);
        assert_eq!(s, [3.0, 2.0, 3.0, 2.0, 5.0, 7.0, 5.0, 7.0]);
        assert!(share_across_groups(&mut s, 4, 3, 2).is_err());
        assert!(share_across_groups(&mut s, 4, 0, 2).is_err());
        assert!(share_across_groups(&mut s, 4, 2, 3).is_err());
    }
}
