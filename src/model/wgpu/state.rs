//! What a running sequence owns on a device: its KV cache, its buffers, and every kernel joined with them.

use super::super::error::{At, Error};
use super::super::rope::rope_table;
use super::layer::{AttentionParts, BoundLayer};
use super::scratch::Scratch;
use super::tables::Head;
use super::{CHUNK, Model};
use crate::kernels::wgpu::{
    AttentionDesc, AttentionPlan, BoundEmbedding, BoundRmsNorm, Dtype, Error as DeviceError, Gpu, KvCache, KvLayout,
    Recorder, RmsNormPlan, RopeHadamardQuantizeDesc, RopeHadamardQuantizePlan, RowsDesc, rope_buffer,
};
use ::wgpu::Buffer;

/// The KV cache and buffers of one sequence.
pub(in crate::model) struct State {
    length: usize,
    capacity: usize,
    /// Tokens of the chunk at work, `[chunk]`.
    pub(super) ids: Buffer,
    /// Behind the final norm, of the tokens of the last run, `[T, hidden]`.
    pub(super) hidden: Buffer,
    /// The same for the chunk at work.
    normed: Buffer,
    pub(super) head: Head,
    caches: Vec<KvCache>,
    embedding: BoundEmbedding,
    layers: Vec<BoundLayer>,
    final_norm: BoundRmsNorm,
}

impl State {
    pub(super) fn new(model: &Model, capacity: usize) -> Result<Self, Error> {
        let Model { gpu, config, kv, float, layers, final_norm, tables } = model;
        let (gpu, room) = (gpu.as_ref(), capacity.max(1));
        let at = || "sequence".to_owned();
        let cache = KvLayout {
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            capacity: room,
            key: kv.key,
            value: kv.value,
            float: *float,
        };
        let (heads, tokens_max, window) = (config.heads, CHUNK.min(room), config.sliding_window);
        let desc = RopeHadamardQuantizeDesc { heads, tokens_max, input: Dtype::F32, cache };
        let rope_plan = RopeHadamardQuantizePlan::plan(gpu, &desc).at(at)?;
        let desc = AttentionDesc { heads, tokens_max, window, out: Dtype::F32, cache };
        let plan = AttentionPlan::plan(gpu, &desc).at(at)?;
        let rope = rope_buffer(gpu, &rope_table(config, room).at(|| "RoPE".into())?).at(at)?;
        let queries = gpu.buffer("queries", plan.queries().bytes()).at(at)?;
        let workspace = gpu.buffer("attention", plan.workspace_bytes()).at(at)?;
        let scratch = Scratch::new(gpu, config, layers, CHUNK)?;
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
            let cache = KvCache::new(gpu, cache).at(|| "KV cache".into())?;
            bound.push(layer.bind(gpu, &scratch, &parts, &cache, index)?);
            caches.push(cache);
        }
        let ids = gpu.buffer("token ids", 4 * CHUNK as u64).at(at)?;
        let floats = |label: &str, rows: usize| gpu.buffer(label, 4 * rows as u64 * config.hidden as u64).at(at);
        let (hidden, normed) = (floats("hidden", tokens_max)?, floats("normed", CHUNK)?);
        let rows = RowsDesc { m_max: CHUNK, channels: config.hidden, input: Dtype::F32, output: Dtype::F32 };
        let [x, weight, out] = [&scratch.residual, final_norm, &normed].map(Buffer::as_entire_buffer_binding);
        let final_norm = RmsNormPlan::plan(gpu, &rows, config.norm_epsilon)
            .and_then(|plan| plan.bind(gpu, x, weight, out))
            .at(|| "final norm".into())?;
        let embedding = tables.bind(gpu, &ids, &scratch.residual)?;
        let head = Head::new(gpu, tables)?;
        Ok(Self { length: 0, capacity, ids, hidden, normed, head, caches, embedding, layers: bound, final_norm })
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
        let bytes = |cache: &KvCache| {
            let layout = cache.layout();
            layout.key_bytes() + layout.value_bytes() + layout.param_bytes()
        };
        self.caches.iter().map(bytes).sum::<u64>() as usize
    }

    /// Makes room for the hidden states of `tokens` tokens.
    pub(super) fn keep(&mut self, gpu: &Gpu, tokens: usize, width: usize) -> Result<(), Error> {
        let bytes = 4 * tokens as u64 * width as u64;
        if self.hidden.size() < bytes {
            self.hidden = gpu.buffer("hidden", bytes).at(|| "sequence".into())?;
        }
        Ok(())
    }

    /// Records one chunk of `tokens` tokens, whose ids are in `ids`; their hidden states go to rows `first ..`.
    pub(super) fn record(
        &mut self,
        recorder: &mut Recorder<'_>,
        tokens: usize,
        first: usize,
        width: usize,
    ) -> Result<(), DeviceError> {
        self.embedding.enqueue(recorder, tokens)?;
        for layer in &self.layers {
            layer.enqueue(recorder, tokens, self.length)?;
        }
        self.final_norm.enqueue(recorder, tokens)?;
        let row = 4 * width as u64;
        recorder.copy(&self.normed, 0, &self.hidden, first as u64 * row, tokens as u64 * row);
        self.length += tokens;
        Ok(())
    }
}
