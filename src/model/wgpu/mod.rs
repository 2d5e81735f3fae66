//! The runner on a wgpu device: weights, caches and hidden states stay there; tokens go in, and logits or tokens come out.

mod group;
mod layer;
mod scratch;
mod state;
mod tables;
mod timing;

pub(super) use state::State;

use super::batch::{StateDesc, passes, rows};
use super::error::{At, Error};
use super::operation::Operation;
use super::{CHUNK, KvQuantizer};
use crate::checkpoint::{Checkpoint, Config};
use crate::kernels::wgpu::{
    AttentionDesc, AttentionPlan, Dtype, Error as DeviceError, Gpu, KvLayout, Recorder, RopeHadamardQuantizeDesc,
    RopeHadamardQuantizePlan,
};
use ::wgpu::Buffer;
use layer::Layer;
use std::ops::Range;
use std::sync::Arc;
use tables::Tables;

/// A model in device memory.
pub(super) struct Model {
    gpu: Arc<Gpu>,
    config: Config,
    kv: KvQuantizer,
    /// Of weights, keys and values that are not quantized.
    float: Dtype,
    layers: Vec<Layer>,
    final_norm: Buffer,
    tables: Tables,
}

impl Model {
    pub(super) fn load(checkpoint: &Checkpoint, gpu: Arc<Gpu>, float: Dtype) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        let layers = (0..config.layers)
            .map(|index| Layer::load(&gpu, checkpoint.layer(index)?, &config, index, CHUNK, float))
            .collect::<Result<_, Error>>()?;
        let final_norm = checkpoint.final_norm()?;
        let final_norm = gpu.upload("final norm", bytemuck::cast_slice(&final_norm)).at(|| "final norm".into())?;
        let tables = Tables::load(&gpu, checkpoint, CHUNK)?;
        // Everything is on its way; a device that has no room says so here and not in the first forward.
        gpu.submit(gpu.encoder()).and_then(|()| gpu.wait()).at(|| "loading the model".into())?;
        Ok(Self { kv: KvQuantizer::of(checkpoint), float, layers, final_norm, tables, config, gpu })
    }

    pub(super) fn layer_bytes(&self) -> usize {
        self.layers.iter().map(Layer::bytes).sum::<u64>() as usize
    }

    pub(super) fn table_bytes(&self) -> usize {
        (self.tables.bytes() + self.final_norm.size()) as usize
    }

    pub(super) fn kernels(&self, tokens: usize) -> Vec<String> {
        let groups = self.layers.first().map_or(&[][..], |layer| &layer.groups);
        groups.iter().map(|group| group.kernel(tokens)).collect()
    }

    /// What `operation` of the first layer runs for so many tokens; of RoPE and attention, tokens of one sequence.
    pub(super) fn kernel(&self, operation: Operation, tokens: usize) -> String {
        let groups = self.layers.first().map_or(&[][..], |layer| &layer.groups);
        let heads = || self.head_plans(tokens.max(1), tokens.clamp(1, CHUNK));
        let said = match operation {
            Operation::Prologue(name) => Ok(groups.get(name as usize).map(|group| group.prologue_kernel(tokens))),
            Operation::Gemm(name) => Ok(groups.get(name as usize).map(|group| group.kernel(tokens))),
            Operation::RopeHadamardQuantize => heads().map(|(rope, _)| Some(rope.kernel(tokens).to_owned())),
            Operation::Attention => heads().map(|(_, attention)| Some(attention.kernel(tokens).to_owned())),
        };
        said.map_or_else(|fault| fault.to_string(), Option::unwrap_or_default)
    }

    /// The kernels between the projections, for sequences of up to `capacity` tokens in passes of up to `rows` rows.
    fn head_plans(
        &self,
        capacity: usize,
        rows: usize,
    ) -> Result<(RopeHadamardQuantizePlan, AttentionPlan), DeviceError> {
        let Self { gpu, config, kv, float, .. } = self;
        let cache = KvLayout {
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            capacity,
            key: kv.key,
            value: kv.value,
            float: *float,
        };
        let (heads, tokens_max, window) = (config.heads, rows.min(capacity), config.sliding_window);
        let desc = RopeHadamardQuantizeDesc { heads, tokens_max, input: Dtype::F32, cache };
        let rope = RopeHadamardQuantizePlan::plan(gpu, &desc)?.with_rows(gpu, rows)?;
        let desc = AttentionDesc { heads, tokens_max, window, out: Dtype::F32, cache };
        let attention = AttentionPlan::plan(gpu, &desc)?.with_rows(gpu, rows)?;
        Ok((rope, attention))
    }

    pub(super) fn new_state(&self, desc: &StateDesc) -> Result<State, Error> {
        State::new(self, desc)
    }

    /// Pass by pass; the hidden states of all tokens stay on the device.
    pub(super) fn forward(&self, state: &mut State, tokens: &[u32]) -> Result<(), Error> {
        let at = || "forward".to_owned();
        state.keep(&self.gpu, tokens.len(), self.config.hidden)?;
        let each = tokens.len() / state.sequences;
        let mut done = 0;
        for segments in passes(state.sequences, each, state.scratch.rows) {
            let count = rows(&segments);
            self.gpu.queue().write_buffer(&state.ids, 0, bytemuck::cast_slice(&tokens[done..done + count]));
            let mut encoder = self.gpu.encoder();
            let mut recorder = Recorder::new(&mut encoder);
            state.record(&mut recorder, &segments, done, self.config.hidden).at(at)?;
            drop(recorder);
            self.gpu.submit(encoder).at(at)?;
            done += count;
        }
        state.length += each;
        Ok(())
    }

    /// `rows` are within the tokens of the last `forward`.
    pub(super) fn logits(&self, state: &mut State, rows: Range<usize>, logits: &mut [f32]) -> Result<(), Error> {
        let at = || "output head".to_owned();
        let (most, vocabulary) = (state.head.rows(), self.tables.vocabulary());
        let rows: Vec<usize> = rows.collect();
        for (rows, out) in rows.chunks(most).zip(logits.chunks_mut(most * vocabulary)) {
            let mut encoder = self.gpu.encoder();
            let mut recorder = Recorder::new(&mut encoder);
            state.head.record(&mut recorder, &state.hidden, rows, self.config.hidden).at(at)?;
            drop(recorder);
            self.gpu.submit(encoder).at(at)?;
            let bytes = self.gpu.read(state.head.logits(), 0, 4 * out.len() as u64).at(at)?;
            out.copy_from_slice(&bytemuck::pod_collect_to_vec::<u8, f32>(&bytes));
        }
        Ok(())
    }

    /// The likeliest token behind each of `rows`, which are within those of the last `forward`; four bytes a row leave the device.
    pub(super) fn greedy(&self, state: &mut State, rows: &[usize]) -> Result<Vec<u32>, Error> {
        let at = || "output head".to_owned();
        let mut tokens = Vec::with_capacity(rows.len());
        for rows in rows.chunks(state.head.rows()) {
            let mut encoder = self.gpu.encoder();
            let mut recorder = Recorder::new(&mut encoder);
            state.head.record(&mut recorder, &state.hidden, rows, self.config.hidden).at(at)?;
            state.head.record_argmax(&mut recorder, rows.len()).at(at)?;
            drop(recorder);
            self.gpu.submit(encoder).at(at)?;
            let bytes = self.gpu.read(state.head.tokens(), 0, 4 * rows.len() as u64).at(at)?;
            tokens.extend(bytemuck::pod_collect_to_vec::<u8, u32>(&bytes));
        }
        Ok(tokens)
    }
}
