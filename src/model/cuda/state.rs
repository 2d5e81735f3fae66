//! What running sequences own on a device: their KV caches and their buffers.

use super::super::batch::StateDesc;
use super::super::error::{At, Error};
use super::super::operation::Memory;
use super::super::rope::rope_table;
use super::layer::Attention;
use super::scratch::Scratch;
use super::step::Step;
use super::tables::ROWS;
use super::{Core, STREAM};
use crate::kernels::cuda::{Buffer, Error as DeviceError, KvCache, PAGE, Sequence, rope_buffer};
use std::sync::Arc;

/// The KV caches and buffers of sequences in lockstep.
pub(in crate::model) struct State {
    /// First, so that captured steps go before what they refer to, kernels and memory.
    pub(super) step: Step,
    /// The layers of a step alone, one a pass: what decoding is timed by.
    pub(super) layer_steps: Vec<Step>,
    /// The model that made it, whose memory a captured step refers to.
    pub(super) core: Arc<Core>,
    pub(super) sequences: usize,
    /// Tokens in the cache of each sequence.
    pub(super) length: usize,
    /// Tokens behind the last run.
    pub(super) end: usize,
    capacity: usize,
    /// Pages of each sequence.
    pub(super) pages: usize,
    /// Most rows that go through all layers at a time.
    pub(super) chunk: usize,
    /// Most rows of logits at a time.
    pub(super) rows: usize,
    /// Tokens of the last run, `[sequences, T]`; of a single sequence the first is the next one after [`State::greedy`].
    pub(super) ids: Buffer,
    /// One [`Sequence`] a segment, the last pass's first: there the next step of a single sequence finds its own.
    pub(super) places: Buffer,
    /// Behind the final norm, of the tokens of the last run, `[sequences, T, hidden]` of [`super::Tables::head_type`].
    pub(super) hidden: Buffer,
    /// The tokens that were chosen, `[rows]`.
    pub(super) tokens: Buffer,
    pub(super) scratch: Scratch,
    pub(super) attention: Attention,
    /// Of each layer; all sequences have their pages in it.
    pub(super) caches: Vec<KvCache>,
    /// The likeliest tokens behind the last run, once they were asked for.
    pub(super) chosen: Option<Vec<u32>>,
    /// The step of one token that device memory holds already, of a single sequence: its token, and the tokens before it.
    pub(super) ready: Option<(u32, usize)>,
}

impl State {
    pub(super) fn new(core: &Arc<Core>, desc: &StateDesc) -> Result<Self, Error> {
        let Core { device, config, layers, tables, .. } = core.as_ref();
        let &StateDesc { sequences, capacity, rows } = desc;
        let at = || "sequence".to_owned();
        let room = capacity.max(1);
        // Rows of a later pass start at a multiple of 16 bytes.
        let most = rows.unwrap_or(core.chunk).min(core.chunk).min(sequences.saturating_mul(room));
        let (chunk, pages) = (most.max(1).next_multiple_of(8), room.div_ceil(PAGE));
        let (rope, plan) = core.head_plans(sequences, room, chunk).at(at)?;
        let cache = plan.desc().cache;
        let table = rope_buffer(device, &rope_table(config, room).at(|| "RoPE".into())?).at(at)?;
        // Each sequence has its pages in order, one sequence behind the other.
        let numbers = Buffer::upload(device, "page table", &(0..cache.pages as u32).collect::<Vec<_>>()).at(at)?;
        let rows = ROWS.min(chunk);
        let scratch = Scratch::new(core, chunk, rows, &cache, &plan)?;
        let caches =
            layers.iter().map(|_| KvCache::new(device, cache)).collect::<Result<_, _>>().at(|| "KV cache".into())?;
        // Room for a step of one token, whatever the rows of a pass.
        let first = chunk.max(sequences);
        let segments = segments_of(sequences, first, chunk) * size_of::<Sequence>();
        Ok(Self {
            core: Arc::clone(core),
            sequences,
            length: 0,
            end: 0,
            capacity,
            pages,
            chunk,
            rows,
            ids: Buffer::new(device, "token ids", 4 * first as u64).at(at)?,
            places: Buffer::new(device, "sequences", segments as u64).at(at)?,
            hidden: Buffer::new(device, "hidden", first as u64 * tables.hidden_bytes()).at(at)?,
            tokens: Buffer::new(device, "chosen tokens", 4 * rows as u64).at(at)?,
            scratch,
            attention: Attention { rope, plan, table, pages: numbers },
            caches,
            chosen: None,
            ready: None,
            step: Step::New,
            layer_steps: Vec::new(),
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
        let bytes = |cache: &KvCache| cache.keys().bytes() + cache.values().bytes() + cache.params().bytes();
        self.caches.iter().map(bytes).sum::<u64>() as usize
    }

    pub(in crate::model) fn memory(&self) -> Memory {
        let (flow, scratch) = self.scratch.bytes();
        let Self { ids, places, hidden, tokens, attention, .. } = self;
        Memory {
            weights: 0,
            activations: flow + ids.bytes() + hidden.bytes() + tokens.bytes(),
            kv_cache: self.cache_bytes() as u64,
            workspace: scratch + places.bytes() + attention.table.bytes() + attention.pages.bytes(),
        }
    }

    /// Makes room for the ids and hidden states of a run of `tokens` tokens over all sequences, when everything that was enqueued
    /// before is done. A captured step refers to the memory that it was captured with.
    pub(super) fn keep(&mut self, tokens: usize) -> Result<(), DeviceError> {
        self.keep_places(tokens)?;
        let device = &self.core.device;
        let hidden = tokens as u64 * self.core.tables.hidden_bytes();
        if self.hidden.bytes() < hidden {
            // Both or none: the next run takes the size of one for that of the other.
            let hidden = Buffer::new(device, "hidden", hidden)?;
            let ids = Buffer::new(device, "token ids", 4 * tokens as u64)?;
            self.forget_steps();
            (self.hidden, self.ids) = (hidden, ids);
        }
        Ok(())
    }

    /// As [`State::keep`], for which rows are whose alone: what a run of the layers needs.
    pub(super) fn keep_places(&mut self, tokens: usize) -> Result<(), DeviceError> {
        let device = &self.core.device;
        device.synchronize(STREAM)?;
        let bytes = (segments_of(self.sequences, tokens, self.chunk) * size_of::<Sequence>()) as u64;
        if self.places.bytes() < bytes {
            let places = Buffer::new(device, "sequences", bytes)?;
            self.forget_steps();
            self.places = places;
        }
        Ok(())
    }

    fn forget_steps(&mut self) {
        self.step = Step::New;
        self.layer_steps.clear();
    }
}

/// Most segments of a run of `tokens` tokens over all sequences: each pass may cut one in two.
fn segments_of(sequences: usize, tokens: usize, chunk: usize) -> usize {
    sequences + tokens.div_ceil(chunk)
}
