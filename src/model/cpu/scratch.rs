use super::layer::Layer;
use crate::checkpoint::Config;
use crate::kernels::cpu::QuantizedTokens;

/// What flows between the operations of a layer, for one chunk of tokens. Allocated once.
pub(crate) struct Buffers {
    /// Residual stream, `[chunk, hidden]`.
    pub(crate) residual: Vec<f32>,
    /// Stacked q, k, v, `[chunk, (H + 2 Hkv) D]`.
    pub(crate) qkv: Vec<f32>,
    /// Output of the attention, `[chunk, H D]`.
    pub(crate) attention: Vec<f32>,
    /// Stacked gate and up, `[chunk, 2 F]`.
    pub(crate) gate_up: Vec<f32>,
}

/// What the operations need for themselves. Allocated once, for the most demanding one.
pub(crate) struct Workspace {
    /// Input of a group in floating point, `[chunk, K]`.
    pub(crate) input: Vec<f32>,
    /// Codes of a group's input, one buffer for each input width.
    pub(crate) codes: Vec<QuantizedTokens>,
    /// Workspace of the prologue.
    pub(crate) prologue: Vec<f32>,
    /// Workspace of the GEMM.
    pub(crate) gemm: Vec<u8>,
}

impl Buffers {
    pub(crate) fn new(config: &Config, chunk: usize) -> Self {
        Self {
            residual: vec![0.0; chunk * config.hidden],
            qkv: vec![0.0; chunk * (config.heads + 2 * config.kv_heads) * config.head_dim],
            attention: vec![0.0; chunk * config.heads * config.head_dim],
            gate_up: vec![0.0; chunk * 2 * config.intermediate],
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
            input: vec![0.0; input.unwrap_or(0)],
            codes: widths.into_iter().map(|k| QuantizedTokens::new(chunk, k)).collect(),
            prologue: vec![0.0; groups().map(|group| group.prologue_len()).max().unwrap_or(0)],
            gemm: vec![0; groups().map(|group| group.workspace_bytes()).max().unwrap_or(0)],
        }
    }
}

impl Buffers {
    /// Bytes that it occupies.
    pub(crate) fn bytes(&self) -> usize {
        [&self.residual, &self.qkv, &self.attention, &self.gate_up].iter().map(|x| size_of_val(x.as_slice())).sum()
    }
}

impl Workspace {
    /// Bytes of inputs between kernels, and of what kernels need for themselves.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let codes: usize = self.codes.iter().map(QuantizedTokens::bytes).sum();
        (size_of_val(self.input.as_slice()) + codes, size_of_val(self.prologue.as_slice()) + self.gemm.len())
    }
}
