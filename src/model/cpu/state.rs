//! What running sequences own: their KV caches and the buffers of a forward pass.

use super::super::KvQuantizer;
use super::super::batch::{Segment, StateDesc, passes, rows};
use super::super::error::{At, Error};
use super::super::operation::{Memory, Stopwatch};
use super::super::rope::rope_table;
use super::attend::Lane;
use super::layer::{Layer, Observer};
use super::scratch::{Buffers, Workspace};
use crate::checkpoint::Config;
use crate::kernels::Arithmetic;
use crate::kernels::cpu::{Isa, KvCache, KvCacheDesc, QueryHeadsDesc, RopeTable, rms_norm, rope_hadamard_quantize};

/// Tokens that a forward pass takes through all layers at a time.
pub const CHUNK: usize = 512;

/// The KV caches and buffers of sequences in lockstep.
pub struct State {
    sequences: usize,
    capacity: usize,
    /// Most rows of a pass.
    chunk: usize,
    rope: RopeTable,
    /// Of each layer, one a sequence.
    caches: Vec<Vec<KvCache>>,
    lanes: Vec<Lane>,
    buffers: Buffers,
    workspace: Workspace,
    /// Behind the final norm, of the tokens of the last run, `[sequences, T, hidden]`.
    pub(super) hidden: Vec<f32>,
}

/// What one run needs of the model.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) config: &'a Config,
    pub(crate) layers: &'a [Layer],
    pub(crate) final_norm: &'a [f32],
}

impl State {
    pub(crate) fn new(
        config: &Config,
        kv: KvQuantizer,
        layers: &[Layer],
        desc: &StateDesc,
        isa: Isa,
        arithmetic: Arithmetic,
    ) -> Result<Self, Error> {
        let &StateDesc { sequences, capacity, rows } = desc;
        let chunk = rows.unwrap_or(CHUNK).min(CHUNK).min(sequences.saturating_mul(capacity)).max(1);
        let cache = KvCacheDesc {
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
            tokens_max: chunk.min(capacity.max(1)),
            key: kv.key,
        };
        let lanes = sequences.min(rayon::current_num_threads());
        let lanes = (0..lanes)
            .map(|_| Lane::new(&queries, isa, arithmetic))
            .collect::<Result<_, _>>()
            .at(|| "queries".into())?;
        let caches = layers
            .iter()
            .map(|_| (0..sequences).map(|_| KvCache::new(&cache)).collect())
            .collect::<Result<_, _>>()
            .at(|| "KV cache".into())?;
        Ok(Self {
            sequences,
            capacity,
            chunk,
            rope: rope_table(config, capacity).at(|| "RoPE".into())?,
            caches,
            lanes,
            buffers: Buffers::new(config, chunk),
            workspace: Workspace::new(layers, chunk),
            hidden: Vec::new(),
        })
    }

    /// Sequences that run in lockstep.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Tokens in the cache of each sequence.
    #[must_use]
    pub fn len(&self) -> usize {
        self.caches.first().and_then(|caches| caches.first()).map_or(0, KvCache::len)
    }

    /// Whether the caches are empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that the cache of each sequence has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets every token.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Forgets every token but the first `tokens` of each sequence, so that other text can follow them.
    pub fn truncate(&mut self, tokens: usize) {
        self.caches.iter_mut().flatten().for_each(|cache| cache.truncate(tokens));
    }

    /// Bytes of the KV caches.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.caches.iter().flatten().map(KvCache::bytes).sum()
    }

    pub(in crate::model) fn memory(&self) -> Memory {
        let (inputs, scratch) = self.workspace.bytes();
        let (queries, attention) =
            self.lanes.iter().map(Lane::bytes).fold((0, 0), |(a, b), (queries, work)| (a + queries, b + work));
        Memory {
            weights: 0,
            activations: (self.buffers.bytes() + inputs + queries + size_of_val(self.hidden.as_slice())) as u64,
            kv_cache: self.cache_bytes() as u64,
            workspace: (scratch + attention + self.rope.bytes()) as u64,
        }
    }

    /// Runs `tokens` `[sequences, T]` through all layers, pass by pass; `embed` writes a token's row.
    pub(crate) fn run(&mut self, run: Run<'_>, tokens: &[u32], embed: impl Fn(u32, &mut [f32])) -> Result<(), Error> {
        let width = run.config.hidden;
        let each = tokens.len() / self.sequences.max(1);
        self.check_room(each)?;
        self.hidden.resize(tokens.len() * width, 0.0);
        let mut done = 0;
        for segments in passes(self.sequences, each, self.chunk) {
            let count = rows(&segments);
            for (&token, row) in tokens[done..done + count].iter().zip(self.buffers.residual.chunks_exact_mut(width)) {
                embed(token, row);
            }
            self.pass(run.layers, &segments, None)?;
            let hidden = &mut self.hidden[done * width..(done + count) * width];
            rms_norm(&self.buffers.residual[..hidden.len()], run.final_norm, run.config.norm_epsilon, hidden)
                .at(|| "final norm".into())?;
            done += count;
        }
        Ok(())
    }

    /// Runs `x` `[rows, hidden]`, repeated as often as needed, through the layers alone: `tokens` tokens of each sequence. Gives
    /// the seconds, and adds those of each operation to `stopwatch`.
    pub(in crate::model) fn run_layers(
        &mut self,
        layers: &[Layer],
        x: &[f32],
        width: usize,
        tokens: usize,
        mut stopwatch: Option<&mut Stopwatch>,
    ) -> Result<f64, Error> {
        self.check_room(tokens)?;
        let mut seconds = 0.0;
        for segments in passes(self.sequences, tokens, self.chunk) {
            let residual = &mut self.buffers.residual[..rows(&segments) * width];
            residual.chunks_mut(x.len().max(1)).for_each(|part| part.copy_from_slice(&x[..part.len()]));
            let clock = std::time::Instant::now();
            if let Some(stopwatch) = stopwatch.as_deref_mut() {
                stopwatch.start();
            }
            self.pass(layers, &segments, stopwatch.as_deref_mut())?;
            seconds += clock.elapsed().as_secs_f64();
        }
        Ok(seconds)
    }

    /// Appends keys and values of `qkv` `[rows, (H + 2 Hkv) D]`, repeated as often as needed, `tokens` to each sequence in each
    /// layer: a context that no prompt was run for.
    pub(in crate::model) fn fill(&mut self, qkv: &[f32], width: usize, tokens: usize, isa: Isa) -> Result<(), Error> {
        self.check_room(tokens)?;
        let at = || "context".to_owned();
        let Some((first, others)) = self.caches.split_first_mut() else { return Ok(()) };
        let Some((cache, sequences)) = first.split_first_mut() else { return Ok(()) };
        let rows = (qkv.len() / width.max(1)).max(1);
        let KvCacheDesc { kv_heads, head_dim, key, .. } = *cache.desc();
        let desc = QueryHeadsDesc { heads: kv_heads, kv_heads, head_dim, tokens_max: rows, key };
        let mut queries = crate::kernels::cpu::QueryHeads::new(&desc, isa).at(at)?;
        // As many queries as keys are enough here: the last columns of a row.
        let columns = 3 * kv_heads * head_dim;
        let kept: Vec<f32> = qkv.chunks_exact(width).flat_map(|row| &row[width - columns..]).copied().collect();
        for start in (0..tokens).step_by(rows) {
            let count = rows.min(tokens - start);
            let position = cache.len();
            rope_hadamard_quantize(&kept[..count * columns], &self.rope, position, &mut queries, cache).at(at)?;
        }
        for other in sequences.iter_mut().chain(others.iter_mut().flatten()) {
            other.clone_from(cache);
        }
        Ok(())
    }

    /// Runs the residual stream `x` `[T, hidden]` of a whole sequence through a single layer in place, from an empty
    /// cache, pass by pass: what calibration does.
    pub(crate) fn run_layer(
        &mut self,
        layer: &Layer,
        x: &mut [f32],
        width: usize,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<(), Error> {
        self.clear();
        self.check_room(x.len() / width)?;
        let Some(caches) = self.caches.first_mut() else { return Ok(()) };
        for chunk in x.chunks_mut(self.chunk * width) {
            self.buffers.residual[..chunk.len()].copy_from_slice(chunk);
            let segments = [Segment { sequence: 0, first: 0, tokens: chunk.len() / width, offset: 0 }];
            let (lanes, buffers, workspace) = (&mut self.lanes, &mut self.buffers, &mut self.workspace);
            let observer = observer.as_mut().map(|observer| &mut **observer as &mut dyn Observer);
            layer.forward(&segments, &self.rope, caches, lanes, buffers, workspace, observer, None)?;
            chunk.copy_from_slice(&self.buffers.residual[..chunk.len()]);
        }
        Ok(())
    }

    /// One pass through all layers; the residual stream is in the buffers.
    fn pass(
        &mut self,
        layers: &[Layer],
        segments: &[Segment],
        mut stopwatch: Option<&mut Stopwatch>,
    ) -> Result<(), Error> {
        let Self { rope, lanes, buffers, workspace, caches, .. } = self;
        for (layer, caches) in layers.iter().zip(caches) {
            layer.forward(segments, rope, caches, lanes, buffers, workspace, None, stopwatch.as_deref_mut())?;
        }
        Ok(())
    }

    fn check_room(&self, tokens: usize) -> Result<(), Error> {
        let wanted = self.len() + tokens;
        if wanted > self.capacity {
            return Err(Error::Capacity { capacity: self.capacity, wanted });
        }
        Ok(())
    }
}
