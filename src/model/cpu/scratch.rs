use super::layer::Layer;
use crate::checkpoint::Config;
use crate::kernels::cpu::{Aligned, QuantizedTokens};

/// What flows between the operations of a layer, for one chunk of tokens. Allocated once.
pub(crate) struct Buffers {
    /// Residual stream, `[chunk, hidden]`.
    pub(crate) residual: Aligned<f32>,
    /// Stacked q, k, v, `[chunk, (H + 2 Hkv) D]`.
    pub(crate) qkv: Aligned<f32>,
    /// Output of the attention, `[chunk, H D]`.
    pub(crate) attention: Aligned<f32>,
    /// Stacked gate and up, `[chunk, 2 F]`.
    pub(crate) gate_up: Aligned<f32>,
}

/// What the operations need for themselves. Allocated once, for the most demanding one.
pub(crate) struct Workspace {
    /// Input of a group in floating point, `[chunk, K]`.
    pub(crate) input: Aligned<f32>,
    /// Codes of a group's input, one buffer for each input width.
    pub(crate) codes: Vec<QuantizedTokens>,
    /// Workspace of the prologue.
    pub(crate) prologue: Aligned<f32>,
    /// Workspace of the GEMM.
    pub(crate) gemm: Aligned<u8>,
}

impl Buffers {
    pub(crate) fn new(config: &Config, chunk: usize) -> Self {
        Self {
            residual: Aligned::new(chunk * config.hidden),
            qkv: Aligned::new(chunk * (config.heads + 2 * config.kv_heads) * config.head_dim),
            attention: Aligned::new(chunk * config.heads * config.head_dim),
            gate_up: Aligned::new(chunk * 2 * config.intermediate),
        }
    }
}

impl Workspace {
    /// Room for every group of `layers` on `chunk` tokens.
    pub(crate) fn new(layers: &[Layer], chunk: usize) -> Self {
        let groups = || layers.iter().flat_map(Layer::groups);
        let mut widths: Vec<usize> = groups().filter(|group| group.is_integer()).map(|group| group.k()).collect();
        widths.sort_unstable();
        widths.dedup();
        let input = groups().filter(|group| !group.is_integer()).map(|group| chunk * group.k()).max();
        Self {
            input: Aligned::new(input.unwrap_or(0)),
            codes: widths.into_iter().map(|k| QuantizedTokens::new(chunk, k)).collect(),
            prologue: Aligned::new(groups().map(|group| group.prologue_len()).max().unwrap_or(0)),
            gemm: Aligned::new(groups().map(|group| group.workspace_bytes()).max().unwrap_or(0)),
        }
    }
}

impl Buffers {
    /// Bytes that it occupies.
    pub(crate) fn bytes(&self) -> usize {
        [&self.residual, &self.qkv, &self.attention, &self.gate_up].iter().map(|x| x.bytes()).sum()
    }
}

impl Workspace {
    /// Bytes of inputs between kernels, and of what kernels need for themselves.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let codes: usize = self.codes.iter().map(QuantizedTokens::bytes).sum();
        (self.input.bytes() + codes, self.prologue.bytes() + self.gemm.bytes())
    }
}
