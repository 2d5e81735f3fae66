//! What a running sequence owns on a device: its KV cache and its buffers.

use super::super::error::{At, Error};
use super::super::rope::rope_table;
use super::layer::Attention;
use super::scratch::Scratch;
use super::{Core, STREAM};
use crate::kernels::cuda::{
    AttentionDesc, AttentionPlan, Buffer, Error as DeviceError, KvCache, KvLayout, PAGE, Replay,
    RopeHadamardQuantizeDesc, RopeHadamardQuantizePlan, Sequence, rope_buffer,
};
use std::sync::Arc;

/// Most rows of logits that are computed at a time: what evaluation asks for.
const ROWS: usize = 128;

/// The KV cache and buffers of one sequence.
pub(in crate::model) struct State {
    /// First, so that a captured step goes before what it refers to, kernels and memory.
    pub(super) step: Step,
    /// The model that made it, whose memory a captured step refers to.
    pub(super) core: Arc<Core>,
    pub(super) length: usize,
    /// Tokens behind the last run.
    pub(super) end: usize,
    capacity: usize,
    /// Most tokens that go through all layers at a time.
    pub(super) chunk: usize,
    /// Most rows of logits at a time.
    pub(super) rows: usize,
    /// Tokens of the last run, `[T]`; the first is the next one after [`State::greedy`].
    pub(super) ids: Buffer,
    /// One [`Sequence`] a chunk, the last chunk's first: there the next step finds its own.
    pub(super) sequences: Buffer,
    /// Behind the final norm, of the tokens of the last run, `[T, hidden]` of [`super::Tables::head_type`].
    pub(super) hidden: Buffer,
    /// The token that was chosen.
    pub(super) token: Buffer,
    pub(super) scratch: Scratch,
    pub(super) attention: Attention,
    pub(super) caches: Vec<KvCache>,
    /// The likeliest token behind the last run, once it was asked for.
    pub(super) chosen: Option<u32>,
    /// The step of one token that device memory holds already: its token, and the tokens before it.
    pub(super) ready: Option<(u32, usize)>,
}

/// How the step of one token is enqueued.
pub(super) enum Step {
    /// It has not run yet: its first run loads what is loaded lazily, which a capture could not.
    New,
    /// Launch by launch, and to be captured the next time.
    Warm,
    /// Launch by launch: the device captures nothing.
    Plain,
    /// As one graph.
    Captured(Box<dyn Replay>),
}

impl State {
    pub(super) fn new(core: &Arc<Core>, capacity: usize) -> Result<Self, Error> {
        let Core { device, config, kv, types, layers, .. } = core.as_ref();
        let at = || "sequence".to_owned();
        let room = capacity.max(1);
        let (chunk, pages) = (core.chunk.min(room.next_multiple_of(8)), room.div_ceil(PAGE));
        let cache = KvLayout {
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            pages,
            key: kv.key,
            value: kv.value,
            float: types.cache,
        };
        let (heads, tokens_max, sequences_max) = (config.heads, chunk, 1);
        let desc =
            RopeHadamardQuantizeDesc { heads, tokens_max, sequences_max, positions: room, input: types.float, cache };
        let rope = RopeHadamardQuantizePlan::plan(device.as_ref(), &desc).at(at)?;
        let (context_max, window, out) = (pages * PAGE, config.sliding_window, types.float);
        let desc = AttentionDesc { heads, tokens_max, sequences_max, context_max, window, out, cache };
        let plan = AttentionPlan::plan(device.as_ref(), &desc).at(at)?;
        let table = rope_buffer(device, &rope_table(config, room).at(|| "RoPE".into())?).at(at)?;
        // One sequence has all the pages, in order.
        let pages = Buffer::upload(device, "page table", &(0..pages as u32).collect::<Vec<_>>()).at(at)?;
        let rows = ROWS.min(chunk);
        let scratch = Scratch::new(core, chunk, rows, &cache, &plan)?;
        let caches =
            layers.iter().map(|_| KvCache::new(device, cache)).collect::<Result<_, _>>().at(|| "KV cache".into())?;
        Ok(Self {
            core: Arc::clone(core),
            length: 0,
            end: 0,
            capacity,
            chunk,
            rows,
            ids: Buffer::new(device, "token ids", 4 * chunk as u64).at(at)?,
            sequences: Buffer::new(device, "sequences", size_of::<Sequence>() as u64).at(at)?,
            hidden: Buffer::new(device, "hidden", chunk as u64 * core.tables.hidden_bytes()).at(at)?,
            token: Buffer::new(device, "token", 4).at(at)?,
            scratch,
            attention: Attention { rope, plan, table, pages },
            caches,
            chosen: None,
            ready: None,
            step: Step::New,
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
        let bytes = |cache: &KvCache| {
            let layout = cache.layout();
            layout.key_bytes() + layout.value_bytes() + layout.param_bytes()
        };
        self.caches.iter().map(bytes).sum::<u64>() as usize
    }

    /// Makes room for a run of `tokens` tokens, when everything that was enqueued before is done. A captured step refers to the
    /// memory that it was captured with.
    pub(super) fn keep(&mut self, tokens: usize) -> Result<(), DeviceError> {
        let device = &self.core.device;
        device.synchronize(STREAM)?;
        let hidden = tokens as u64 * self.core.tables.hidden_bytes();
        if self.hidden.bytes() < hidden {
            // All or nothing: the next run takes the size of one for that of the others.
            let sequences = tokens.div_ceil(self.chunk) * size_of::<Sequence>();
            let hidden = Buffer::new(device, "hidden", hidden)?;
            let ids = Buffer::new(device, "token ids", 4 * tokens as u64)?;
            let sequences = Buffer::new(device, "sequences", sequences as u64)?;
            self.step = Step::New;
            (self.hidden, self.ids, self.sequences) = (hidden, ids, sequences);
        }
        Ok(())
    }
}
