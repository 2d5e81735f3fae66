//! The LLaMA runner: configuration, layers, KV cache, generation.
//!
//! The same code runs floating-point checkpoints and W4A4 ones; what differs is in the [`crate::checkpoint::LayerWeights`]
//! that come in.

mod error;
mod generate;
mod group;
mod layer;
mod scratch;
mod state;

pub use error::Error;
pub use generate::{GenerateOptions, Generated, generate};
pub use layer::{Layer, Observer};
pub use state::{CHUNK, State};

use crate::checkpoint::{Checkpoint, Config, Table, TableValues};
use crate::kernels::Affine;
use crate::kernels::cpu::{Epilogue, FloatValues, FloatWeights, Isa, gemm_float};
use error::At;

/// How queries, keys and values are quantized; `None` keeps them in floating point.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct KvQuantizer {
    /// Queries and keys, after RoPE and a per-head Hadamard.
    pub key: Option<Affine>,
    /// Values.
    pub value: Option<Affine>,
}

/// A model in memory, packed for this CPU.
pub struct Model {
    config: Config,
    kv: KvQuantizer,
    embedding: Table,
    head: Option<Table>,
    final_norm: Vec<f32>,
    layers: Vec<Layer>,
    isa: Isa,
}

impl Model {
    /// Loads every layer of `checkpoint` and packs it for the best instruction set of this machine.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when a tensor is missing or bad, [`Error::Shape`] or [`Error::Kernel`] when a layer cannot
    /// run.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, Error> {
        Self::load_with(checkpoint, Isa::best())
    }

    /// Loads the model for a given instruction set.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with(checkpoint: &Checkpoint, isa: Isa) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        let layers = (0..config.layers)
            .map(|index| Layer::load(checkpoint.layer(index)?, &config, index, CHUNK, isa))
            .collect::<Result<_, _>>()?;
        let kv = checkpoint.quantization().map_or_else(KvQuantizer::default, |quantization| KvQuantizer {
            key: quantization.key,
            value: quantization.value,
        });
        Ok(Self {
            kv,
            embedding: checkpoint.embedding()?,
            head: checkpoint.head()?,
            final_norm: checkpoint.final_norm()?,
            layers,
            config,
            isa,
        })
    }

    /// The hyperparameters.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Rows of the output head: logits of one token.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.head.as_ref().unwrap_or(&self.embedding).rows
    }

    /// Bytes of the decoder layers' weights, as they lie in memory.
    #[must_use]
    pub fn layer_bytes(&self) -> usize {
        self.layers.iter().map(Layer::bytes).sum()
    }

    /// Bytes of embedding, output head and final norm.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        table_bytes(&self.embedding)
            + self.head.as_ref().map_or(0, table_bytes)
            + size_of_val(self.final_norm.as_slice())
    }

    /// The GEMM kernel which each group of the first layer runs for so many tokens.
    #[must_use]
    pub fn kernels(&self, tokens: usize) -> Vec<&'static str> {
        let groups = self.layers.first().map_or(&[][..], Layer::groups);
        groups.iter().map(|group| group.kernel(tokens)).collect()
    }

    /// A fresh state with room for `capacity` tokens.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the cache cannot be made.
    pub fn new_state(&self, capacity: usize) -> Result<State, Error> {
        State::new(&self.config, self.kv, &self.layers, capacity, self.isa)
    }

    /// Runs `tokens` behind what `state` already holds and returns their hidden states after the final norm,
    /// `[tokens, hidden]`. Works in chunks of [`CHUNK`] tokens.
    ///
    /// # Errors
    /// [`Error::Token`] or [`Error::Capacity`] before anything is run; [`Error::Kernel`] otherwise.
    pub fn forward<'s>(&self, state: &'s mut State, tokens: &[u32]) -> Result<&'s [f32], Error> {
        let vocabulary = self.embedding.rows;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Error::Token { token, vocabulary });
        }
        state.run(&self.config, &self.layers, &self.final_norm, tokens, |token, row| {
            gather_row(&self.embedding, token as usize, row);
        })
    }

    /// Logits of `tokens` hidden states, `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::Kernel`] when `hidden` or `logits` do not fit.
    pub fn logits(&self, hidden: &[f32], tokens: usize, logits: &mut [f32]) -> Result<(), Error> {
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
