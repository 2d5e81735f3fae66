//! What a running sequence owns: its KV cache and the buffers of a forward pass.

use super::super::KvQuantizer;
use super::super::error::{At, Error};
use super::super::rope::rope_table;
use super::layer::{Layer, Observer};
use super::scratch::{Buffers, Workspace};
use crate::checkpoint::Config;
use crate::kernels::cpu::{Isa, KvCache, KvCacheDesc, QueryHeads, QueryHeadsDesc, RopeTable, rms_norm};

/// Tokens that a forward pass takes through all layers at a time.
pub const CHUNK: usize = 512;

/// The KV cache and buffers of one sequence.
pub struct State {
    capacity: usize,
    rope: RopeTable,
    caches: Vec<KvCache>,
    queries: QueryHeads,
    buffers: Buffers,
    workspace: Workspace,
    /// Behind the final norm, of the tokens of the last run, `[T, hidden]`.
    pub(super) hidden: Vec<f32>,
}

impl State {
    pub(crate) fn new(
        config: &Config,
        kv: KvQuantizer,
        layers: &[Layer],
        capacity: usize,
        isa: Isa,
    ) -> Result<Self, Error> {
        let chunk = CHUNK.min(capacity.max(1));
        let desc = KvCacheDesc {
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            capacity,
            key: kv.key,
            value: kv.value,
        };
        let queries = QueryHeadsDesc {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            tokens_max: chunk,
            key: kv.key,
        };
        let queries = QueryHeads::new(&queries, isa).at(|| "queries".into())?;
        let caches = layers.iter().map(|_| KvCache::new(&desc)).collect::<Result<_, _>>().at(|| "KV cache".into())?;
        Ok(Self {
            capacity,
            rope: rope_table(config, capacity).at(|| "RoPE".into())?,
            caches,
            buffers: Buffers::new(config, chunk),
            workspace: Workspace::new(layers, chunk, queries.workspace_len()),
            queries,
            hidden: Vec::new(),
        })
    }

    /// Tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.caches.first().map_or(0, KvCache::len)
    }

    /// Whether the cache is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that the cache has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets every token.
    pub fn clear(&mut self) {
        self.caches.iter_mut().for_each(KvCache::clear);
    }

    /// Forgets every token but the first `tokens`, so that other text can follow them.
    pub fn truncate(&mut self, tokens: usize) {
        self.caches.iter_mut().for_each(|cache| cache.truncate(tokens));
    }

    /// Bytes of the KV cache.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.caches.iter().map(KvCache::bytes).sum()
    }

    /// Runs `tokens` through all `layers`, chunk by chunk; `embed` writes a token's row.
    pub(crate) fn run(
        &mut self,
        config: &Config,
        layers: &[Layer],
        final_norm: &[f32],
        tokens: &[u32],
        embed: impl Fn(u32, &mut [f32]),
    ) -> Result<(), Error> {
        let wanted = self.len() + tokens.len();
        if wanted > self.capacity {
            return Err(Error::Capacity { capacity: self.capacity, wanted });
        }
        let width = config.hidden;
        self.hidden.resize(tokens.len() * width, 0.0);
        for (index, chunk) in tokens.chunks(CHUNK).enumerate() {
            for (&token, row) in chunk.iter().zip(self.buffers.residual.chunks_exact_mut(width)) {
                embed(token, row);
            }
            for (layer, cache) in layers.iter().zip(&mut self.caches) {
                let Self { rope, queries, buffers, workspace, .. } = self;
                layer.forward(chunk.len(), rope, queries, cache, buffers, workspace, None)?;
            }
            let start = index * CHUNK * width;
            let hidden = &mut self.hidden[start..start + chunk.len() * width];
            rms_norm(&self.buffers.residual[..hidden.len()], final_norm, config.norm_epsilon, hidden)
                .at(|| "final norm".into())?;
        }
        Ok(())
    }

    /// Runs the residual stream `x` `[T, hidden]` of a whole sequence through a single layer in place, from an empty
    /// cache, chunk by chunk: what calibration does.
    pub(crate) fn run_layer(
        &mut self,
        layer: &Layer,
        x: &mut [f32],
        width: usize,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<(), Error> {
        let tokens = x.len() / width;
        let Some(cache) = self.caches.first_mut().filter(|_| tokens <= self.capacity) else {
            return Err(Error::Capacity { capacity: self.capacity, wanted: tokens });
        };
        cache.clear();
        for chunk in x.chunks_mut(CHUNK * width) {
            self.buffers.residual[..chunk.len()].copy_from_slice(chunk);
            let (queries, buffers, workspace) = (&mut self.queries, &mut self.buffers, &mut self.workspace);
            let observer = observer.as_mut().map(|observer| &mut **observer as &mut dyn Observer);
            layer.forward(chunk.len() / width, &self.rope, queries, cache, buffers, workspace, observer)?;
            chunk.copy_from_slice(&self.buffers.residual[..chunk.len()]);
        }
        Ok(())
    }
}
