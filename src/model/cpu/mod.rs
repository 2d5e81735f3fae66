//! The runner on the CPU.

mod attend;
mod group;
mod layer;
mod scratch;
mod state;

pub use layer::{Layer, Observer};
pub use state::{CHUNK, State};

use super::KvQuantizer;
use super::batch::StateDesc;
use super::error::{At, Error};
use super::operation::{Operation, Stopwatch};
use crate::checkpoint::{Checkpoint, Config, Group, Table, TableValues};
use crate::kernels::Arithmetic;
use crate::kernels::cpu::{Epilogue, FloatValues, FloatWeights, Isa, QueryHeads, QueryHeadsDesc, gemm_float};
use state::Run;
use std::ops::Range;

/// How weights that are not quantized are kept. Sums are in single precision with any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Float {
    /// Single precision.
    #[default]
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// How a model runs on this machine's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// An instruction set that it has.
    pub isa: Isa,
    /// Type of weights that are not quantized: the baseline that W4A4 is compared with.
    pub float: Float,
    /// How transforms are computed. [`Arithmetic::Reproducible`] gives the same bits on every instruction set.
    pub arithmetic: Arithmetic,
}

impl Default for Settings {
    /// The processor at its best, the baseline in single precision, reproducible.
    fn default() -> Self {
        Isa::best().into()
    }
}

impl From<Isa> for Settings {
    fn from(isa: Isa) -> Self {
        Self { isa, float: Float::default(), arithmetic: Arithmetic::Reproducible }
    }
}

/// A model in memory, packed for one instruction set.
pub(super) struct Model {
    config: Config,
    kv: KvQuantizer,
    embedding: Table,
    head: Option<Table>,
    final_norm: Vec<f32>,
    layers: Vec<Layer>,
    isa: Isa,
    arithmetic: Arithmetic,
}

impl Model {
    pub(super) fn load(checkpoint: &Checkpoint, settings: Settings) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        let layers = (0..config.layers)
            .map(|index| Layer::load(checkpoint.layer(index)?, &config, index, CHUNK, settings))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            kv: KvQuantizer::of(checkpoint),
            embedding: checkpoint.embedding()?,
            head: checkpoint.head()?,
            final_norm: checkpoint.final_norm()?,
            layers,
            config,
            isa: settings.isa,
            arithmetic: settings.arithmetic,
        })
    }

    pub(super) fn layer_bytes(&self) -> usize {
        self.layers.iter().map(Layer::bytes).sum()
    }

    pub(super) fn table_bytes(&self) -> usize {
        let head = self.head.as_ref().map_or(0, |table| table.values.bytes());
        self.embedding.values.bytes() + head + size_of_val(self.final_norm.as_slice())
    }

    pub(super) fn kernels(&self, tokens: usize) -> Vec<&'static str> {
        let groups = self.layers.first().map_or(&[][..], Layer::groups);
        groups.iter().map(|group| group.kernel(tokens)).collect()
    }

    /// What `operation` of the first layer runs for so many tokens.
    pub(super) fn kernel(&self, operation: Operation, tokens: usize) -> String {
        let group = |group: Group| self.layers.first().and_then(|layer| layer.groups().get(group as usize));
        match operation {
            Operation::Prologue(name) => group(name).map_or_else(String::new, |group| group.prologue_kernel()),
            Operation::Gemm(name) => group(name).map_or_else(String::new, |group| group.kernel(tokens).to_owned()),
            Operation::RopeHadamardQuantize => self.isa.name().to_owned(),
            Operation::Attention => self.attention_kernel(),
        }
    }

    fn attention_kernel(&self) -> String {
        let Config { heads, kv_heads, head_dim, .. } = self.config;
        let desc = QueryHeadsDesc { heads, kv_heads, head_dim, tokens_max: 1, key: self.kv.key };
        let queries = QueryHeads::new_with(&desc, self.isa, self.arithmetic);
        queries.map_or_else(|_| String::new(), |queries| queries.attention_kernel(self.kv.value))
    }

    pub(super) fn new_state(&self, desc: &StateDesc) -> Result<State, Error> {
        State::new(&self.config, self.kv, &self.layers, desc, self.isa, self.arithmetic)
    }

    pub(super) fn forward(&self, state: &mut State, tokens: &[u32]) -> Result<(), Error> {
        let run = Run { config: &self.config, layers: &self.layers, final_norm: &self.final_norm };
        state.run(run, tokens, |token, row| gather_row(&self.embedding, token as usize, row))
    }

    /// Seconds of `tokens` tokens of each sequence in the layers alone.
    pub(super) fn run_layers(&self, state: &mut State, x: &[f32], tokens: usize) -> Result<f64, Error> {
        state.run_layers(&self.layers, x, self.config.hidden, tokens, None)
    }

    /// The same by operation.
    pub(super) fn time_operations(&self, state: &mut State, x: &[f32], tokens: usize) -> Result<Vec<f64>, Error> {
        let mut stopwatch = Stopwatch::new();
        state.run_layers(&self.layers, x, self.config.hidden, tokens, Some(&mut stopwatch))?;
        Ok(stopwatch.seconds.to_vec())
    }

    pub(super) fn fill(&self, state: &mut State, qkv: &[f32], tokens: usize) -> Result<(), Error> {
        let width = (self.config.heads + 2 * self.config.kv_heads) * self.config.head_dim;
        state.fill(qkv, width, tokens, self.isa)
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
