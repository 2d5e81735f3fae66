//! From the output of the q, k and v projections to what attention and the KV cache take.

use crate::{Affine, AttentionShape, QuantizedRows, hadamard_heads, rope};

/// How queries, keys and values are quantized: each token and head on its own. `None` keeps floating point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadSettings {
    /// Quantizer of queries.
    pub query: Option<Affine>,
    /// Quantizer of keys.
    pub key: Option<Affine>,
    /// Quantizer of values; the official settings do not clip here.
    pub value: Option<Affine>,
    /// Whether queries and keys get the Hadamard rotation. It leaves their products as they are.
    pub hadamard: bool,
}

/// Queries, keys or values of some tokens, `[T, heads, D]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Heads {
    /// The values in front of the quantizer.
    pub values: Vec<f64>,
    /// One row a token and head, `[T * heads, D]`, where there is a quantizer.
    pub quantized: Option<QuantizedRows>,
}

impl Heads {
    /// What attention computes with: dequantized codes, or the values where nothing is quantized.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f64> {
        self.quantized.as_ref().map_or_else(|| self.values.clone(), QuantizedRows::dequantize)
    }

    fn new(values: Vec<f64>, head_dim: usize, affine: Option<&Affine>) -> Self {
        let rows = values.len() / head_dim;
        let quantized = affine.map(|affine| QuantizedRows::quantize(&values, rows, head_dim, affine));
        Self { values, quantized }
    }
}

/// What [`rope_hadamard_quantize`] gives. A KV cache is keys and values of all tokens, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct QkvHeads {
    /// Queries, `[T, H, D]`.
    pub query: Heads,
    /// Keys, `[T, Hkv, D]`.
    pub key: Heads,
    /// Values, `[T, Hkv, D]`.
    pub value: Heads,
}

/// Queries and keys: rotary embedding, Hadamard rotation of each head, quantization per token and head. Values: only the
/// quantization. `q` is `[T, H D]`, `k` and `v` are `[T, Hkv D]`; token `t` stands at `position + t`.
///
/// # Panics
/// When shapes do not fit.
#[must_use]
pub fn rope_hadamard_quantize(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    shape: AttentionShape,
    position: usize,
    inverse_frequencies: &[f64],
    settings: &HeadSettings,
) -> QkvHeads {
    let AttentionShape { heads, kv_heads, head_dim } = shape;
    assert_eq!(2 * inverse_frequencies.len(), head_dim, "one frequency a pair of channels");
    assert!(heads > 0 && kv_heads > 0 && head_dim > 0, "there are heads, and channels in them");
    let tokens = q.len() / (heads * head_dim);
    assert_eq!(q.len(), tokens * heads * head_dim, "q is [T, H D]");
    assert_eq!(k.len(), tokens * kv_heads * head_dim, "k is [T, Hkv D]");
    assert_eq!(v.len(), k.len(), "v is [T, Hkv D]");
    let turned = |x: &[f64], heads: usize| {
        let mut out = Vec::with_capacity(x.len());
        for (t, token) in x.chunks(heads * head_dim).enumerate() {
            out.extend(rope(token, position + t, inverse_frequencies));
        }
        if settings.hadamard { hadamard_heads(&out, head_dim) } else { out }
    };
    QkvHeads {
        query: Heads::new(turned(q, heads), head_dim, settings.query.as_ref()),
        key: Heads::new(turned(k, kv_heads), head_dim, settings.key.as_ref()),
        value: Heads::new(v.to_vec(), head_dim, settings.value.as_ref()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, close};
    use crate::{RopeScaling, attention, inverse_frequencies};

    const SHAPE: AttentionShape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 16 };

    fn sample(tokens: usize) -> [Vec<f64>; 3] {
        let mut random = Random::new(60);
        [64, 32, 32].map(|width| random.normals(tokens * width))
    }

    fn settings(bits: u32) -> HeadSettings {
        let clipped = Some(Affine::new(bits, 0.9));
        HeadSettings { query: clipped, key: clipped, value: Some(Affine::new(bits, 1.0)), hadamard: true }
    }

    const FLOAT: HeadSettings = HeadSettings { query: None, key: None, value: None, hadamard: false };

    #[test]
    fn hadamard_leaves_attention_as_it_is() {
        let frequencies = inverse_frequencies(16, 10_000.0, RopeScaling::None);
        let [q, k, v] = sample(5);
        let run = |settings: HeadSettings| {
            let heads = rope_hadamard_quantize(&q, &k, &v, SHAPE, 3, &frequencies, &settings);
            attention(&heads.query.dequantize(), &heads.key.dequantize(), &heads.value.dequantize(), SHAPE, None)
        };
        close(&run(HeadSettings { hadamard: true, ..FLOAT }), &run(FLOAT), 1e-13);
    }

    #[test]
    fn steps_are_in_order_and_values_untouched() {
        let frequencies = inverse_frequencies(16, 10_000.0, RopeScaling::None);
        let [q, k, v] = sample(3);
        let heads = rope_hadamard_quantize(&q, &k, &v, SHAPE, 7, &frequencies, &settings(4));
        close(&heads.query.values[128..], &hadamard_heads(&rope(&q[128..], 9, &frequencies), 16), 0.0);
        close(&heads.key.values[..32], &hadamard_heads(&rope(&k[..32], 7, &frequencies), 16), 0.0);
        assert_eq!(heads.value.values, v);
        let expected = QuantizedRows::quantize(&v, 6, 16, &Affine::new(4, 1.0));
        assert_eq!(heads.value.quantized, Some(expected));
        assert_eq!(heads.query.quantized.as_ref().map(|q| (q.rows, q.width)), Some((12, 16)));
    }

    #[test]
    fn tokens_one_by_one_are_the_tokens_at_once() {
        let frequencies = inverse_frequencies(16, 10_000.0, RopeScaling::None);
        let [q, k, v] = sample(4);
        let all = rope_hadamard_quantize(&q, &k, &v, SHAPE, 0, &frequencies, &settings(4));
        let mut keys = Vec::new();
        for t in 0..4 {
            let at = |x: &[f64], width: usize| x[t * width..(t + 1) * width].to_vec();
            let one =
                rope_hadamard_quantize(&at(&q, 64), &at(&k, 32), &at(&v, 32), SHAPE, t, &frequencies, &settings(4));
            keys.extend(one.key.dequantize());
        }
        assert_eq!(keys, all.key.dequantize());
    }

    #[test]
    fn eight_bits_are_close_to_floating_point() {
        let frequencies = inverse_frequencies(16, 10_000.0, RopeScaling::None);
        let [q, k, v] = sample(5);
        let unclipped = Some(Affine::new(8, 1.0));
        let settings = HeadSettings { query: unclipped, key: unclipped, value: unclipped, hadamard: true };
        let heads = rope_hadamard_quantize(&q, &k, &v, SHAPE, 0, &frequencies, &settings);
        for heads in [heads.query, heads.key, heads.value] {
            close(&heads.dequantize(), &heads.values, 0.02);
        }
    }
}
