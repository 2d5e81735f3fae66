//! Device memory between the operations of a layer, allocated once a state.

use super::super::error::{At, Error};
use super::layer::Layer;
use crate::checkpoint::Config;
use crate::kernels::wgpu::{Gpu, QuantizedTokens, TokensBinding, TokensLayout};
use ::wgpu::Buffer;

/// What flows between the operations of a layer, for one pass, and what they need for themselves.
pub(super) struct Scratch {
    /// Most rows of a pass.
    pub(super) rows: usize,
    /// Residual stream, `[rows, hidden]`.
    pub(super) residual: Buffer,
    /// Stacked q, k, v, `[rows, (H + 2 Hkv) D]`.
    pub(super) qkv: Buffer,
    /// Output of the attention, `[rows, H D]`.
    pub(super) attended: Buffer,
    /// Stacked gate and up, `[rows, 2 F]`.
    pub(super) gate_up: Buffer,
    /// Input of a group in floating point, `[rows, K]`.
    pub(super) input: Buffer,
    /// Workspace of the prologue.
    pub(super) prologue: Buffer,
    /// Codes of a group's input, one buffer for each input width.
    codes: Vec<QuantizedTokens>,
}

impl Scratch {
    /// Room for every group of `layers` on `rows` tokens.
    pub(super) fn new(gpu: &Gpu, config: &Config, layers: &[Layer], rows: usize) -> Result<Self, Error> {
        let at = || "scratch memory".to_owned();
        let floats = |label: &str, width: usize| gpu.buffer(label, 4 * rows as u64 * width as u64).at(at);
        let groups = || layers.iter().flat_map(|layer| &layer.groups);
        let mut widths: Vec<usize> = groups().filter(|group| group.is_integer()).map(|group| group.k()).collect();
        widths.sort_unstable();
        widths.dedup();
        let input = groups().filter(|group| !group.is_integer()).map(|group| group.k()).max();
        let prologue = groups().map(|group| group.workspace_bytes(rows)).max();
        let codes = widths
            .into_iter()
            .map(|k| QuantizedTokens::new(gpu, TokensLayout { m_max: rows, k }).at(at))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            rows,
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

    /// Bytes of what flows between kernels, and of what they need for themselves.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let Self { residual, qkv, attended, gate_up, input, prologue, codes, .. } = self;
        let codes: u64 = codes.iter().map(|codes| codes.codes().size() + codes.params().size()).sum();
        let buffers: u64 = [residual, qkv, attended, gate_up, input].iter().map(|buffer| buffer.size()).sum();
        (buffers + codes, prologue.size())
    }

    pub(super) fn missing(&self, place: &str, k: usize) -> Error {
        let widths: Vec<String> = self.codes.iter().map(|codes| codes.layout().k.to_string()).collect();
        let expected = format!("input channels among {}", widths.join(", "));
        Error::Shape { place: place.into(), expected, got: k.to_string() }
    }
}
