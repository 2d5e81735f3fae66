//! What a LLaMA-family `config.json` (or GGUF metadata) says.

use super::Projection;

/// Hyperparameters of a LLaMA-family decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `llama` or `mistral`, as the checkpoint calls itself.
    pub model_type: String,
    /// Channels of the residual stream.
    pub hidden: usize,
    /// Channels between gate/up and down.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Longest context that the model was trained for.
    pub max_positions: usize,
    /// Epsilon of RMSNorm.
    pub norm_epsilon: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Attention window of Mistral 7B v0.1; `None` attends to everything before.
    pub sliding_window: Option<usize>,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// Token that begins a text, where the tokenizer adds one.
    pub bos: Option<u32>,
    /// Tokens that end generation.
    pub eos: Vec<u32>,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// LLaMA 3: low frequencies divided by `factor`, high ones kept, a smooth step between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_positions / low_frequency_factor` count as low frequencies.
        low_frequency_factor: f64,
        /// Wavelengths below `original_positions / high_frequency_factor` count as high frequencies.
        high_frequency_factor: f64,
        /// Context of the pre-training.
        original_positions: usize,
    },
    /// Each frequency divided by its own factor, as GGUF files spell out LLaMA 3's scaling (`rope_freqs.weight`).
    Factors {
        /// `head_dim / 2` divisors, that of the highest frequency first.
        factors: Vec<f64>,
    },
}

impl Config {
    /// Output and input channels `(N, K)` of a linear.
    #[must_use]
    pub fn linear_shape(&self, projection: Projection) -> (usize, usize) {
        let (attention, cache) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match projection {
            Projection::Q => (attention, self.hidden),
            Projection::K | Projection::V => (cache, self.hidden),
            Projection::O => (self.hidden, attention),
            Projection::Gate | Projection::Up => (self.intermediate, self.hidden),
            Projection::Down => (self.hidden, self.intermediate),
        }
    }
}
