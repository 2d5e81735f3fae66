//! Device memory between the operations of a layer: one allocation a state, cut into regions.

use super::super::error::{At, Error};
use super::group::Group;
use super::layer::Layer;
use super::{Core, STREAM};
use crate::kernels::cuda::{
    Address, AttentionPlan, Buffer, KvLayout, QueryLayout, QueryOperand, TokensLayout, TokensOperand,
};

/// Regions start where every vector load and the vendor's library are at their best.
const ALIGNMENT: u64 = 256;

/// What flows between the operations of a layer, for one chunk of tokens, and what they need for themselves.
pub(super) struct Scratch {
    /// What the addresses lie in.
    memory: Buffer,
    /// Bytes of what flows between kernels; the rest they need for themselves.
    flow: u64,
    /// Residual stream, `[chunk, hidden]`.
    pub(super) residual: Address,
    /// Stacked q, k, v, `[chunk, (H + 2 Hkv) D]`.
    pub(super) qkv: Address,
    /// Output of the attention, `[chunk, H D]`.
    pub(super) attended: Address,
    /// Stacked gate and up, `[chunk, 2 F]`.
    pub(super) gate_up: Address,
    /// Input of a group in floating point, `[chunk, K]`.
    pub(super) input: Address,
    /// Codes of a group's input: groups run one behind the other.
    pub(super) codes: TokensOperand,
    pub(super) queries: QueryOperand,
    /// Workspace of the integer GEMMs, zero between them.
    pub(super) gemm: Address,
    /// Workspace of the attention, zero between two of them.
    pub(super) attention: Address,
    /// Logits `[rows, vocabulary]` in `f32`.
    pub(super) logits: Address,
    /// Workspace of the choice of a token, zero between two of them.
    pub(super) choice: Address,
}

impl Scratch {
    /// Room for every group of the model on `chunk` tokens, and for `rows` rows of logits.
    pub(super) fn new(
        core: &Core,
        chunk: usize,
        rows: usize,
        cache: &KvLayout,
        attention: &AttentionPlan,
    ) -> Result<Self, Error> {
        let Core { device, config, types, layers, tables, .. } = core;
        let groups = || layers.iter().flat_map(|layer: &Layer| &layer.groups);
        let most = |bytes: &dyn Fn(&Group) -> u64| groups().map(bytes).max().unwrap_or(0);
        let floats = |width: usize| (chunk * width) as u64 * types.float.bytes();
        let layout = |group: &Group| group.tokens().map(|layout| TokensLayout { m_max: chunk, ..layout });
        let queries = QueryLayout::new(config.heads, chunk, cache);
        let mut end = 0_u64;
        let mut region = |bytes: u64| {
            let start = end;
            end += bytes.next_multiple_of(ALIGNMENT);
            start
        };
        let residual = region(floats(config.hidden));
        let qkv = region(floats((config.heads + 2 * config.kv_heads) * config.head_dim));
        let attended = region(floats(config.heads * config.head_dim));
        let gate_up = region(floats(2 * config.intermediate));
        let input = region(most(&|group| if group.needs_input() { floats(group.k()) } else { 0 }));
        let codes = region(most(&|group| layout(group).map_or(0, |layout| layout.code_bytes())));
        let params = region(most(&|group| layout(group).map_or(0, |layout| layout.param_bytes())));
        let query_codes = region(queries.code_bytes());
        let query_params = region(queries.param_bytes());
        let logits = region(4 * (rows * tables.vocabulary()) as u64);
        let gemm = region(most(&|group| group.gemm_bytes()));
        let attention = region(attention.workspace_bytes());
        let choice = region(tables.workspace_bytes());
        let at = || "scratch memory".to_owned();
        let memory = Buffer::new(device, "scratch memory", end.max(ALIGNMENT) + ALIGNMENT).at(at)?;
        let start = memory.address().next_multiple_of(ALIGNMENT);
        device.fill(STREAM, start + gemm, 0, end - gemm).at(at)?;
        Ok(Self {
            residual: start + residual,
            qkv: start + qkv,
            attended: start + attended,
            gate_up: start + gate_up,
            input: start + input,
            codes: TokensOperand { codes: start + codes, params: start + params },
            queries: QueryOperand { codes: start + query_codes, params: start + query_params },
            gemm: start + gemm,
            attention: start + attention,
            logits: start + logits,
            choice: start + choice,
            flow: gemm,
            memory,
        })
    }

    /// Bytes of what flows between kernels, and of the rest: what they need for themselves.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.flow, self.memory.bytes() - self.flow)
    }
}
