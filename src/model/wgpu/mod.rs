//! The runner on a wgpu device: weights, caches and hidden states stay there; tokens go in, and logits or tokens come out.

mod group;
mod layer;
mod scratch;
mod state;
mod tables;

pub(super) use state::State;

use super::error::{At, Error};
use super::{CHUNK, KvQuantizer};
use crate::checkpoint::{Checkpoint, Config};
use crate::kernels::wgpu::{Dtype, Gpu, Recorder};
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

    pub(super) fn new_state(&self, capacity: usize) -> Result<State, Error> {
        State::new(self, capacity)
    }

    /// Chunk by chunk; the hidden states of all tokens stay on the device.
    pub(super) fn forward(&self, state: &mut State, tokens: &[u32]) -> Result<(), Error> {
        let at = || "forward".to_owned();
        state.keep(&self.gpu, tokens.len(), self.config.hidden)?;
        for (index, chunk) in tokens.chunks(CHUNK).enumerate() {
            self.gpu.queue().write_buffer(&state.ids, 0, bytemuck::cast_slice(chunk));
            let mut encoder = self.gpu.encoder();
            let mut recorder = Recorder::new(&mut encoder);
            state.record(&mut recorder, chunk.len(), index * CHUNK, self.config.hidden).at(at)?;
            drop(recorder);
            self.gpu.submit(encoder).at(at)?;
        }
        Ok(())
    }

    /// `rows` are within the tokens of the last `forward`.
    pub(super) fn logits(&self, state: &mut State, rows: Range<usize>, logits: &mut [f32]) -> Result<(), Error> {
        let at = || "output head".to_owned();
        let vocabulary = self.tables.vocabulary();
        for (first, out) in rows.step_by(state.head.rows()).zip(logits.chunks_mut(state.head.rows() * vocabulary)) {
            let count = out.len() / vocabulary;
            let mut encoder = self.gpu.encoder();
            let mut recorder = Recorder::new(&mut encoder);
            state.head.record(&mut recorder, &state.hidden, first, count, self.config.hidden).at(at)?;
            drop(recorder);
            self.gpu.submit(encoder).at(at)?;
            let bytes = self.gpu.read(state.head.logits(), 0, 4 * out.len() as u64).at(at)?;
            out.copy_from_slice(&bytemuck::pod_collect_to_vec::<u8, f32>(&bytes));
        }
        Ok(())
    }

    /// The likeliest token behind row `row` of the last `forward`; four bytes leave the device.
    pub(super) fn greedy(&self, state: &mut State, row: usize) -> Result<u32, Error> {
        let at = || "output head".to_owned();
        let mut encoder = self.gpu.encoder();
        let mut recorder = Recorder::new(&mut encoder);
        state.head.record(&mut recorder, &state.hidden, row, 1, self.config.hidden).at(at)?;
        state.head.record_argmax(&mut recorder).at(at)?;
        drop(recorder);
        self.gpu.submit(encoder).at(at)?;
        let bytes = self.gpu.read(state.head.token(), 0, 4).at(at)?;
        Ok(bytemuck::pod_collect_to_vec::<u8, u32>(&bytes).first().copied().unwrap_or_default())
    }
}
