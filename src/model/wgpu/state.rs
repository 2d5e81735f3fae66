//! What running sequences own on a device: their KV caches, their buffers, and every kernel joined with them.

use super::super::batch::{Segment, StateDesc, rows};
use super::super::error::{At, Error};
use super::super::operation::{Memory, Operation};
use super::super::rope::rope_table;
use super::layer::{AttentionParts, BoundLayer};
use super::scratch::Scratch;
use super::tables::Head;
use super::{CHUNK, Model};
use crate::kernels::wgpu::{
    BoundEmbedding, BoundRmsNorm, Dtype, Error as DeviceError, Gpu, KvCache, Recorder, RmsNormPlan, RowsDesc,
    rope_buffer,
};
use ::wgpu::Buffer;

/// The KV caches and buffers of sequences in lockstep.
pub(in crate::model) struct State {
    pub(super) sequences: usize,
    /// Tokens in the cache of each sequence.
    pub(super) length: usize,
    capacity: usize,
    /// Tokens of the pass at work, `[rows]`.
    pub(super) ids: Buffer,
    /// Behind the final norm, of the tokens of the last run, `[sequences, T, hidden]`.
    pub(super) hidden: Buffer,
    /// The same for the pass at work.
    normed: Buffer,
    pub(super) head: Head,
    /// Of each layer, one a sequence.
    caches: Vec<Vec<KvCache>>,
    pub(super) scratch: Scratch,
    /// Of the attention, and cosines and sines: all layers and sequences share them.
    queries: Buffer,
    workspace: Buffer,
    rope: Buffer,
    embedding: BoundEmbedding,
    pub(super) layers: Vec<BoundLayer>,
    final_norm: BoundRmsNorm,
}

impl State {
    pub(super) fn new(model: &Model, desc: &StateDesc) -> Result<Self, Error> {
        let Model { gpu, config, layers, final_norm, tables, .. } = model;
        let &StateDesc { sequences, capacity, rows } = desc;
        let (gpu, room) = (gpu.as_ref(), capacity.max(1));
        let chunk = rows.unwrap_or(CHUNK).min(CHUNK).min(sequences.saturating_mul(room)).max(1);
        let at = || "sequence".to_owned();
        let (rope_plan, plan) = model.head_plans(room, chunk).at(at)?;
        let rope = rope_buffer(gpu, &rope_table(config, room).at(|| "RoPE".into())?).at(at)?;
        let queries = gpu.buffer("queries", plan.queries().bytes()).at(at)?;
        let workspace = gpu.buffer("attention", plan.workspace_bytes()).at(at)?;
        let scratch = Scratch::new(gpu, config, layers, chunk)?;
        let parts = AttentionParts {
            rope_plan: &rope_plan,
            plan: &plan,
            rope: &rope,
            queries: &queries,
            workspace: &workspace,
        };
        let mut caches = Vec::with_capacity(layers.len());
        let mut bound = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            let own = (0..sequences)
                .map(|_| KvCache::new(gpu, plan.desc().cache))
                .collect::<Result<Vec<_>, _>>()
                .at(|| "KV cache".into())?;
            bound.push(layer.bind(gpu, &scratch, &parts, &own, index)?);
            caches.push(own);
        }
        let ids = gpu.buffer("token ids", 4 * chunk as u64).at(at)?;
        let floats = |label: &str| gpu.buffer(label, 4 * chunk as u64 * config.hidden as u64).at(at);
        let (hidden, normed) = (floats("hidden")?, floats("normed")?);
        let rows = RowsDesc { m_max: chunk, channels: config.hidden, input: Dtype::F32, output: Dtype::F32 };
        let [x, weight, out] = [&scratch.residual, final_norm, &normed].map(Buffer::as_entire_buffer_binding);
        let final_norm = RmsNormPlan::plan(gpu, &rows, config.norm_epsilon)
            .and_then(|plan| plan.bind(gpu, x, weight, out))
            .at(|| "final norm".into())?;
        let embedding = tables.bind(gpu, chunk, &ids, &scratch.residual)?;
        let head = Head::new(gpu, tables, chunk)?;
        Ok(Self {
            sequences,
            length: 0,
            capacity,
            ids,
            hidden,
            normed,
            head,
            caches,
            scratch,
            queries,
            workspace,
            rope,
            embedding,
            layers: bound,
            final_norm,
        })
    }

    pub(in crate::model) fn len(&self) -> usize {
        self.length
    }

    pub(in crate::model) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(in crate::model) fn truncate(&mut self, tokens: usize) {
        self.length = self.length.min(tokens);
    }

    pub(in crate::model) fn cache_bytes(&self) -> usize {
        let bytes = |cache: &KvCache| cache.keys().size() + cache.values().size() + cache.params().size();
        self.caches.iter().flatten().map(bytes).sum::<u64>() as usize
    }

    pub(in crate::model) fn memory(&self) -> Memory {
        let (flow, scratch) = self.scratch.bytes();
        let (head, choice) = self.head.bytes();
        Memory {
            weights: 0,
            activations: flow + head + self.queries.size() + self.ids.size() + self.hidden.size() + self.normed.size(),
            kv_cache: self.cache_bytes() as u64,
            workspace: scratch + choice + self.workspace.size() + self.rope.size(),
        }
    }

    /// Makes room for the hidden states of `tokens` tokens.
    pub(super) fn keep(&mut self, gpu: &Gpu, tokens: usize, width: usize) -> Result<(), Error> {
        let bytes = 4 * tokens as u64 * width as u64;
        if self.hidden.size() < bytes {
            self.hidden = gpu.buffer("hidden", bytes).at(|| "sequence".into())?;
        }
        Ok(())
    }

    /// Records one pass over `segments`, whose ids are in `ids`; their hidden states go to rows `first ..`.
    pub(super) fn record(
        &self,
        recorder: &mut Recorder<'_>,
        segments: &[Segment],
        first: usize,
        width: usize,
    ) -> Result<(), DeviceError> {
        let tokens = rows(segments);
        self.embedding.enqueue(recorder, tokens)?;
        self.record_layers(recorder, segments)?;
        self.final_norm.enqueue(recorder, tokens)?;
        let row = 4 * width as u64;
        recorder.copy(&self.normed, 0, &self.hidden, first as u64 * row, tokens as u64 * row);
        Ok(())
    }

    /// Records the layers of a pass alone: the residual stream is in the scratch memory.
    pub(super) fn record_layers(&self, recorder: &mut Recorder<'_>, segments: &[Segment]) -> Result<(), DeviceError> {
        self.layers.iter().try_for_each(|layer| layer.enqueue(recorder, segments, self.length))
    }

    /// Records one operation of one layer of a pass.
    pub(super) fn record_operation(
        &self,
        recorder: &mut Recorder<'_>,
        layer: &BoundLayer,
        operation: Operation,
        segments: &[Segment],
    ) -> Result<(), DeviceError> {
        layer.operate(recorder, operation, segments, self.length)
    }

    /// Records copies of the first layer's and sequence's keys and values to all others.
    pub(super) fn record_spread(&self, recorder: &mut Recorder<'_>) {
        let mut caches = self.caches.iter().flatten();
        let Some(from) = caches.next() else { return };
        for to in caches {
            recorder.copy(from.keys(), 0, to.keys(), 0, from.keys().size());
            recorder.copy(from.values(), 0, to.values(), 0, from.values().size());
            recorder.copy(from.params(), 0, to.params(), 0, from.params().size());
        }
    }
}
