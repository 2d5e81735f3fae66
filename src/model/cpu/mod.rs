//! The runner on the CPU.

mod group;
mod layer;
mod scratch;
mod state;

pub use layer::{Layer, Observer};
pub use state::{CHUNK, State};

use super::KvQuantizer;
use super::error::{At, Error};
use crate::checkpoint::{Checkpoint, Config, Table, TableValues};
use crate::kernels::cpu::{Epilogue, FloatValues, FloatWeights, Isa, gemm_float};
use std::ops::Range;

/// A model in memory, packed for one instruction set.
pub(super) struct Model {
    config: Config,
    kv: KvQuantizer,
    embedding: Table,
    head: Option<Table>,
    final_norm: Vec<f32>,
    layers: Vec<Layer>,
    isa: Isa,
}

impl Model {
    pub(super) fn load(checkpoint: &Checkpoint, isa: Isa) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        let layers = (0..config.layers)
            .map(|index| Layer::load(checkpoint.layer(index)?, &config, index, CHUNK, isa))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            kv: KvQuantizer::of(checkpoint),
            embedding: checkpoint.embedding()?,
            head: checkpoint.head()?,
            final_norm: checkpoint.final_norm()?,
            layers,
            config,
            isa,
        })
    }

    pub(super) fn layer_bytes(&self) -> usize {
        self.layers.iter().map(Layer::bytes).sum()
    }

    pub(super) fn table_bytes(&self) -> usize {
        let head = self.head.as_ref().map_or(0, table_bytes);
        table_bytes(&self.embedding) + head + size_of_val(self.final_norm.as_slice())
    }

    pub(super) fn kernels(&self, tokens: usize) -> Vec<&'static str> {
        let groups = self.layers.first().map_or(&[][..], Layer::groups);
        groups.iter().map(|group| group.kernel(tokens)).collect()
    }

    pub(super) fn new_state(&self, capacity: usize) -> Result<State, Error> {
        State::new(&self.config, self.kv, &self.layers, capacity, self.isa)
    }

    pub(super) fn forward(&self, state: &mut State, tokens: &[u32]) -> Result<(), Error> {
        state.run(&self.config, &self.layers, &self.final_norm, tokens, |token, row| {
            gather_row(&self.embedding, token as usize, row);
        })
    }

    /// `rows` are within the tokens of the last `forward`.
    pub(super) fn logits(&self, state: &State, rows: Range<usize>, logits: &mut [f32]) -> Result<(), Error> {
        let width = self.config.hidden;
        let tokens = rows.len();
        let hidden = &state.hidden[rows.start * width..rows.end * width];
        let table = self.head.as_ref().unwrap_or(&self.embedding);
        let values = match &table.values {
            TableValues::F32(values) => FloatValues::F32(values),
            TableValues::F16(values) => FloatValues::F16(values),
            TableValues::Bf16(values) => FloatValues::Bf16(values),
        };
        let weights = FloatWeights { values, n: table.rows, k: table.columns };
        gemm_float(hidden, tokens, weights, Epilogue::default(), logits).at(|| "output head".into())
    }
}

/// Copies row `index` of a table as `f32`.
pub(crate) fn gather_row(table: &Table, index: usize, row: &mut [f32]) {
    let range = index * table.columns..(index + 1) * table.columns;
    match &table.values {
        TableValues::F32(values) => row.copy_from_slice(&values[range]),
        TableValues::F16(values) => row.iter_mut().zip(&values[range]).for_each(|(x, v)| *x = v.to_f32()),
        TableValues::Bf16(values) => row.iter_mut().zip(&values[range]).for_each(|(x, v)| *x = v.to_f32()),
    }
}

fn table_bytes(table: &Table) -> usize {
    match &table.values {
        TableValues::F32(values) => size_of_val(values.as_slice()),
        TableValues::F16(values) => size_of_val(values.as_slice()),
        TableValues::Bf16(values) => size_of_val(values.as_slice()),
    }
}
