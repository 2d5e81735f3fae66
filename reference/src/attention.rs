//! Attention with grouped queries, causal, with an optional sliding window.

/// Heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads `H`.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads`: query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Channels of a head `D`.
    pub head_dim: usize,
}

/// `softmax(q k^T / sqrt(D)) v`, head by head.
///
/// `q` is `[T, H D]`, `k` and `v` are `[S, Hkv D]`, the result is `[T, H D]`. The `T` queries are the last of the `S`
/// positions, and a query at position `p` sees the positions `j <= p`, with a window only those with `p - j < window`.
///
/// # Panics
/// When shapes do not fit, there are fewer keys than queries or the window is 0.
#[must_use]
pub fn attention(q: &[f64], k: &[f64], v: &[f64], shape: AttentionShape, window: Option<usize>) -> Vec<f64> {
    let AttentionShape { heads, kv_heads, head_dim } = shape;
    assert!(kv_heads > 0 && head_dim > 0 && heads.is_multiple_of(kv_heads), "kv_heads must divide heads");
    assert!(window != Some(0), "a window of no position leaves nothing to attend to");
    let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    assert_eq!(k.len(), v.len(), "k and v have the same shape");
    assert_eq!(k.len() % kv_width, 0, "k is [S, Hkv D]");
    assert!(q.len().is_multiple_of(q_width.max(1)), "q is [T, H D]");
    let (tokens, positions) = (q.len() / q_width.max(1), k.len() / kv_width);
    assert!(tokens <= positions, "every query has its own key in the cache");

    let mut out = vec![0.0; q.len()];
    for t in 0..tokens {
        let position = positions - tokens + t;
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        for head in 0..heads {
            let query = &q[t * q_width + head * head_dim..][..head_dim];
            let kv_head = head / (heads / kv_heads) * head_dim;
            let mut scores = Vec::new();
            for j in first..=position {
                let key = &k[j * kv_width + kv_head..][..head_dim];
                let dot: f64 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                scores.push(dot / (head_dim as f64).sqrt());
            }
            for (j, weight) in (first..=position).zip(softmax(&scores)) {
                let value = &v[j * kv_width + kv_head..][..head_dim];
                for i in 0..head_dim {
                    out[t * q_width + head * head_dim + i] += weight * value[i];
                }
            }
        }
    }
    out
}

/// `e^x / sum e^x`, with the maximum taken off first so that nothing overflows.
#[must_use]
pub fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = scores.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|e| e / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, close};

    const SMALL: AttentionShape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 1 };

    #[test]
    fn weights_by_hand() {
        let ln3 = 3.0_f64.ln();
        // Scores of the second query: 0 and ln 3, so weights 1/4 and 3/4. The first sees only itself.
        let out = attention(&[1.0, 1.0], &[0.0, ln3], &[4.0, 8.0], SMALL, None);
        close(&out, &[4.0, 7.0], 1e-14);
    }

    #[test]
    fn scores_are_divided_by_the_root_of_the_head() {
        let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 4 };
        let ln3 = 3.0_f64.ln();
        let q = [2.0, 0.0, 0.0, 0.0];
        let k = [0.0, 0.0, 0.0, 0.0, ln3, 0.0, 0.0, 0.0];
        let v = [4.0, 0.0, 0.0, 1.0, 8.0, 0.0, 0.0, 1.0];
        close(&attention(&q, &k, &v, shape, None), &[7.0, 0.0, 0.0, 1.0], 1e-14);
    }

    #[test]
    fn a_window_counts_the_query_itself() {
        let (q, k) = ([0.0; 4], [0.0; 4]);
        let v = [1.0, 2.0, 4.0, 8.0];
        close(&attention(&q, &k, &v, SMALL, Some(1)), &v, 0.0);
        close(&attention(&q, &k, &v, SMALL, Some(2)), &[1.0, 1.5, 3.0, 6.0], 1e-15);
        close(&attention(&q, &k, &v, SMALL, Some(4)), &attention(&q, &k, &v, SMALL, None), 0.0);
    }

    #[test]
    fn query_heads_share_key_heads_in_order() {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 2 };
        let mut random = Random::new(50);
        let (q, k, v) = (random.normals(3 * 8), random.normals(3 * 4), random.normals(3 * 4));
        let grouped = attention(&q, &k, &v, shape, None);
        let repeat = |x: &[f64]| -> Vec<f64> {
            x.chunks(4).flat_map(|t| [&t[..2], &t[..2], &t[2..], &t[2..]].concat()).collect()
        };
        let plain = AttentionShape { heads: 4, kv_heads: 4, head_dim: 2 };
        close(&grouped, &attention(&q, &repeat(&k), &repeat(&v), plain, None), 1e-15);
    }

    #[test]
    fn decoding_one_token_is_the_last_row_of_prefill() {
        let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 4 };
        let mut random = Random::new(51);
        let (q, k, v) = (random.normals(6 * 8), random.normals(6 * 4), random.normals(6 * 4));
        for window in [None, Some(1), Some(3)] {
            let all = attention(&q, &k, &v, shape, window);
            close(&attention(&q[40..], &k, &v, shape, window), &all[40..], 0.0);
            // And what comes later changes nothing before.
            close(&attention(&q[..24], &k[..12], &v[..12], shape, window), &all[..24], 0.0);
        }
    }

    #[test]
    fn huge_scores_stay_finite() {
        assert_eq!(softmax(&[1e6, 0.0, 1e6]), [0.5, 0.0, 0.5]);
        assert_eq!(softmax(&[-1e6]), [1.0]);
        assert_eq!(softmax(&[]), [0.0; 0]);
    }
}
