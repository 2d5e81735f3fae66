//! A whole LLaMA-family decoder from plain data, on the dequantized path: quantized activations and weights are rounded
//! to their codes and then multiplied as real numbers in `f64`.

use crate::{
    Affine, AttentionShape, HeadSettings, QuantizedMatrix, Transform, attention, gemm_float, inverse_frequencies,
    rms_norm, rope_hadamard_quantize, swiglu, transform_quantize,
};

/// A weight `[N, K]`, already transformed where its group has a transform.
#[derive(Debug, Clone, PartialEq)]
pub enum Weight {
    /// Floating point.
    Float {
        /// Output channels.
        n: usize,
        /// Input channels.
        k: usize,
        /// Row-major values, `n * k` long.
        values: Vec<f64>,
    },
    /// Quantized per output channel.
    Quantized(QuantizedMatrix),
}

impl Weight {
    /// `N` and `K`.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Weight::Float { n, k, .. } => (*n, *k),
            Weight::Quantized(matrix) => (matrix.n, matrix.k),
        }
    }

    /// The values, dequantized where they are codes, `[N, K]`.
    #[must_use]
    pub fn values(&self) -> Vec<f64> {
        match self {
            Weight::Float { values, .. } => values.clone(),
            Weight::Quantized(matrix) => matrix.dequantize(),
        }
    }
}

/// One linear: `y = x W^T (+ bias)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// Its weight.
    pub weight: Weight,
    /// Its bias `[N]`.
    pub bias: Option<Vec<f64>>,
}

/// Linears that read the same input, with what happens to it.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearGroup {
    /// Applied to the input before it is quantized.
    pub transform: Transform,
    /// How the input is quantized per token; `None` keeps it in floating point.
    pub activation: Option<Affine>,
    /// The linears.
    pub linears: Vec<Linear>,
}

impl LinearGroup {
    /// The output `[T, N]` of each linear for `x` `[T, K]`.
    ///
    /// # Panics
    /// When shapes do not fit.
    #[must_use]
    pub fn forward(&self, x: &[f64], tokens: usize) -> Vec<Vec<f64>> {
        let x = match &self.activation {
            Some(affine) => transform_quantize(x, tokens, &self.transform, affine).dequantize(),
            None => self.transform.apply(x),
        };
        let run = |linear: &Linear| {
            let (n, k) = linear.weight.shape();
            gemm_float(&x, &linear.weight.values(), linear.bias.as_deref(), tokens, n, k)
        };
        self.linears.iter().map(run).collect()
    }
}

/// One decoder layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Weight of `input_layernorm`, `[hidden]`.
    pub attention_norm: Vec<f64>,
    /// Weight of `post_attention_layernorm`, `[hidden]`.
    pub mlp_norm: Vec<f64>,
    /// q, k and v.
    pub qkv: LinearGroup,
    /// o.
    pub o: LinearGroup,
    /// gate and up.
    pub gate_up: LinearGroup,
    /// down.
    pub down: LinearGroup,
}

/// A decoder-only model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Heads of every layer.
    pub shape: AttentionShape,
    /// Epsilon of the norms.
    pub norm_epsilon: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: crate::RopeScaling,
    /// Sliding window of the attention.
    pub window: Option<usize>,
    /// How queries, keys and values are quantized.
    pub heads: HeadSettings,
    /// Token embedding `[vocabulary, hidden]`.
    pub embedding: Vec<f64>,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
    /// Weight of the last norm, `[hidden]`.
    pub norm: Vec<f64>,
    /// Output head `[vocabulary, hidden]`; the embedding again where they are tied.
    pub head: Vec<f64>,
}

impl Model {
    /// Logits `[T, vocabulary]` of a text that starts at position 0. With a KV cache, prefill and decode give the same
    /// rows: every token is quantized on its own and sees only what stands before it.
    ///
    /// # Panics
    /// When shapes do not fit or a token is outside the vocabulary.
    #[must_use]
    pub fn forward(&self, tokens: &[usize]) -> Vec<f64> {
        let hidden = self.norm.len();
        let mut x = Vec::with_capacity(tokens.len() * hidden);
        for &token in tokens {
            x.extend_from_slice(&self.embedding[token * hidden..(token + 1) * hidden]);
        }
        for layer in &self.layers {
            x = self.layer(layer, &x);
        }
        let x = rms_norm(&x, &self.norm, self.norm_epsilon);
        gemm_float(&x, &self.head, None, tokens.len(), self.head.len() / hidden, hidden)
    }

    /// The residual stream `[T, hidden]` behind `layer`, for tokens at the positions from 0.
    ///
    /// # Panics
    /// When shapes do not fit.
    #[must_use]
    pub fn layer(&self, layer: &Layer, x: &[f64]) -> Vec<f64> {
        let tokens = x.len() / self.norm.len();
        let frequencies = inverse_frequencies(self.shape.head_dim, self.rope_theta, self.rope_scaling);

        let normed = rms_norm(x, &layer.attention_norm, self.norm_epsilon);
        let qkv = layer.qkv.forward(&normed, tokens);
        assert_eq!(qkv.len(), 3, "q, k and v");
        let heads = rope_hadamard_quantize(&qkv[0], &qkv[1], &qkv[2], self.shape, 0, &frequencies, &self.heads);
        let (q, k, v) = (heads.query.dequantize(), heads.key.dequantize(), heads.value.dequantize());
        let attended = attention(&q, &k, &v, self.shape, self.window);
        let x = add(x, &only(layer.o.forward(&attended, tokens)));

        let normed = rms_norm(&x, &layer.mlp_norm, self.norm_epsilon);
        let gate_up = layer.gate_up.forward(&normed, tokens);
        assert_eq!(gate_up.len(), 2, "gate and up");
        add(&x, &only(layer.down.forward(&swiglu(&gate_up[0], &gate_up[1]), tokens)))
    }
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    assert_eq!(a.len(), b.len(), "the residual keeps its shape");
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn only(mut outputs: Vec<Vec<f64>>) -> Vec<f64> {
    assert_eq!(outputs.len(), 1, "one linear in the group");
    outputs.remove(0)
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
