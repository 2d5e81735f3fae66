//! Device memory between the operations of a layer, allocated once a sequence.

use super::super::error::{At, Error};
use super::layer::Layer;
use crate::checkpoint::Config;
use crate::kernels::wgpu::{Gpu, QuantizedTokens, TokensBinding, TokensLayout};
use ::wgpu::Buffer;

/// What flows between the operations of a layer, for one chunk of tokens, and what they need for themselves.
pub(super) struct Scratch {
    /// Residual stream, `[chunk, hidden]`.
    pub(super) residual: Buffer,
    /// Stacked q, k, v, `[chunk, (H + 2 Hkv) D]`.
    pub(super) qkv: Buffer,
    /// Output of the attention, `[chunk, H D]`.
    pub(super) attended: Buffer,
    /// Stacked gate and up, `[chunk, 2 F]`.
    pub(super) gate_up: Buffer,
    /// Input of a group in floating point, `[chunk, K]`.
    pub(super) input: Buffer,
    /// Workspace of the prologue.
    pub(super) prologue: Buffer,
    /// Codes of a group's input, one buffer for each input width.
    codes: Vec<QuantizedTokens>,
}

impl Scratch {
    /// Room for every group of `layers` on `chunk` tokens.
    pub(super) fn new(gpu: &Gpu, config: &Config, layers: &[Layer], chunk: usize) -> Result<Self, Error> {
        let at = || "scratch memory".to_owned();
        let floats = |label: &str, width: usize| gpu.buffer(label, 4 * chunk as u64 * width as u64).at(at);
        let groups = || layers.iter().flat_map(|layer| &layer.groups);
        let mut widths: Vec<usize> = groups().filter(|group| group.is_integer()).map(|group| group.k()).collect();
        widths.sort_unstable();
        widths.dedup();
        let input = groups().filter(|group| !group.is_integer()).map(|group| group.k()).max();
        let prologue = groups().map(|group| group.workspace_bytes()).max();
        let codes = widths
            .into_iter()
            .map(|k| QuantizedTokens::new(gpu, TokensLayout { m_max: chunk, k }).at(at))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            residual: floats("residual", config.hidden)?,
            qkv: floats("qkv", (config.heads + 2 * config.kv_heads) * config.head_dim)?,
            attended: floats("attended", config.heads * config.head_dim)?,
            gate_up: floats("gate_up", 2 * config.intermediate)?,
            input: floats("input", input.unwrap_or(0))?,
            prologue: gpu.buffer("prologue", prologue.unwrap_or(0)).at(at)?,
            codes,
        })
    }

    /// The codes of inputs of `k` channels.
    pub(super) fn codes(&self, k: usize) -> Option<TokensBinding<'_>> {
        self.codes.iter().find(|codes| codes.layout().k == k).map(QuantizedTokens::binding)
    }

    pub(super) fn missing(&self, place: &str, k: usize) -> Error {
        let widths: Vec<String> = self.codes.iter().map(|codes| codes.layout().k.to_string()).collect();
        let expected = format!("input channels among {}", widths.join(", "));
        Error::Shape { place: place.into(), expected, got: k.to_string() }
    }
}
