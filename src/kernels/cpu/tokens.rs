use super::aligned::Aligned;

/// Quantized activations of up to `capacity` tokens, as `transform_quantize` writes and `gemm_w4a4` reads them on the CPU.
///
/// Token `t` stands for `scale[t] * (code[t, k] - zero_point[t])`. Codes lie one to a byte whatever their bits are,
/// row-major with a stride of `K` rounded up to 64; the padding holds code 0.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedTokens {
    capacity: usize,
    tokens: usize,
    k: usize,
    stride: usize,
    /// Codes, `[T, stride]`.
    pub codes: Aligned<u8>,
    /// Scale of each token, `[T]`.
    pub scale: Vec<f32>,
    /// Zero point of each token, `[T]`.
    pub zero_point: Vec<i32>,
    /// Sum of the codes of each token, `[T]`.
    pub row_sum: Vec<i32>,
}

impl QuantizedTokens {
    /// Room for `capacity` tokens of `k` channels; holds none yet. The only allocation in this type.
    #[must_use]
    pub fn new(capacity: usize, k: usize) -> Self {
        let stride = k.next_multiple_of(64);
        Self {
            capacity,
            tokens: 0,
            k,
            stride,
            codes: Aligned::new(capacity * stride),
            scale: vec![0.0; capacity],
            zero_point: vec![0; capacity],
            row_sum: vec![0; capacity],
        }
    }

    /// Bytes that it occupies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * (self.scale.len() + self.zero_point.len() + self.row_sum.len())
    }

    /// Tokens that it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens that it holds.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Input channels `K`.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes between two rows of codes.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The codes of token `t`, `[K]`.
    #[must_use]
    pub fn row(&self, t: usize) -> &[u8] {
        &self.codes[t * self.stride..t * self.stride + self.k]
    }

    /// Declares that the first `tokens` rows are in use.
    ///
    /// # Errors
    /// [`crate::kernels::Error::Unsupported`] when `tokens` exceeds the capacity.
    pub fn set_tokens(&mut self, tokens: usize) -> Result<(), crate::kernels::Error> {
        if tokens > self.capacity {
            return Err(crate::kernels::Error::Unsupported {
                what: "tokens",
                expected: format!("at most {}", self.capacity),
                got: tokens.to_string(),
            });
        }
        self.tokens = tokens;
        Ok(())
    }
}
