//! The runner on a CUDA device: weights, caches and hidden states stay there; tokens go in, and logits or tokens come out.

mod group;
mod layer;
mod prologue;
mod scratch;
mod state;
mod step;
mod tables;
mod timing;

pub(super) use state::State;

use super::KvQuantizer;
use super::batch::StateDesc;
use super::error::{At, Error};
use super::operation::Operation;
use crate::checkpoint::{Checkpoint, Config};
use crate::kernels::cuda::{
    AttentionDesc, AttentionPlan, Buffer, Device, Dtype, Error as DeviceError, KvLayout, PAGE, RmsNormPlan,
    RopeHadamardQuantizeDesc, RopeHadamardQuantizePlan, RowsDesc, Stream,
};
use layer::Layer;
use std::ops::Range;
use std::sync::Arc;
use tables::Tables;

/// Tokens that a forward pass takes through all layers at a time, unless the backend says otherwise: enough that the GEMMs of a
/// 7B model fill the largest device, and some hundred megabytes of scratch memory.
pub const CHUNK: usize = 2048;

/// What the runner enqueues to: it has no stream of the host's to join.
const STREAM: Stream = Stream::DEFAULT;

/// A model in device memory; its states share it.
pub(super) struct Model(Arc<Core>);

struct Core {
    device: Arc<dyn Device>,
    config: Config,
    kv: KvQuantizer,
    types: Types,
    /// Most tokens that go through all layers at a time.
    chunk: usize,
    layers: Vec<Layer>,
    norm: RmsNormPlan,
    final_norm: Buffer,
    tables: Tables,
}

/// Which precision is where.
#[derive(Debug, Clone, Copy)]
struct Types {
    /// Residual stream, outputs of linears, and weights that are not quantized.
    float: Dtype,
    /// Keys and values that are not quantized: there are no kernels for single precision.
    cache: Dtype,
}

impl Model {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        device: Arc<dyn Device>,
        float: Dtype,
        chunk: usize,
    ) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        let types = Types { float, cache: if float == Dtype::F32 { Dtype::F16 } else { float } };
        // Rows of a later chunk start at a multiple of 16 bytes.
        let chunk = chunk.max(1).next_multiple_of(8);
        let layers = (0..config.layers)
            .map(|index| Layer::load(&device, checkpoint.layer(index)?, &config, index, chunk, float))
            .collect::<Result<_, Error>>()?;
        let tables = Tables::load(&device, checkpoint, chunk, float)?;
        let at = || "final norm".to_owned();
        let rows = RowsDesc { m_max: chunk, channels: config.hidden, input: float, output: tables.head_type() };
        let norm = RmsNormPlan::plan(device.as_ref(), &rows, config.norm_epsilon).at(at)?;
        let final_norm = Buffer::upload(&device, "final norm", &checkpoint.final_norm()?).at(at)?;
        let kv = KvQuantizer::of(checkpoint);
        Ok(Self(Arc::new(Core { device, config, kv, types, chunk, layers, norm, final_norm, tables })))
    }

    pub(super) fn layer_bytes(&self) -> usize {
        self.0.layers.iter().map(Layer::bytes).sum::<u64>() as usize
    }

    pub(super) fn table_bytes(&self) -> usize {
        (self.0.tables.bytes() + self.0.final_norm.bytes()) as usize
    }

    pub(super) fn kernels(&self, tokens: usize) -> Vec<String> {
        let groups = self.0.layers.first().map_or(&[][..], |layer| &layer.groups);
        groups.iter().map(|group| group.kernel(tokens)).collect()
    }

    /// What `operation` of the first layer runs for so many tokens; of RoPE and attention, tokens of one sequence.
    pub(super) fn kernel(&self, operation: Operation, tokens: usize) -> String {
        let core = self.0.as_ref();
        let groups = core.layers.first().map_or(&[][..], |layer| &layer.groups);
        let heads = || core.head_plans(1, tokens.max(1), tokens.max(1));
        let said = match operation {
            Operation::Prologue(name) => Ok(groups.get(name as usize).map(|group| group.prologue_kernel(tokens))),
            Operation::Gemm(name) => Ok(groups.get(name as usize).map(|group| group.kernel(tokens))),
            Operation::RopeHadamardQuantize => heads().map(|(rope, _)| Some(rope.kernel(tokens))),
            Operation::Attention => heads().and_then(|(_, attention)| attention.kernel(tokens)).map(Some),
        };
        said.map_or_else(|fault| fault.to_string(), Option::unwrap_or_default)
    }

    pub(super) fn new_state(&self, desc: &StateDesc) -> Result<State, Error> {
        State::new(&self.0, desc)
    }

    /// Pass by pass; the hidden states of all tokens stay on the device.
    pub(super) fn forward(&self, state: &mut State, tokens: &[u32]) -> Result<(), Error> {
        self.check(state)?;
        state.forward(tokens)
    }

    pub(super) fn run_layers(&self, state: &mut State, x: &[f32], tokens: usize) -> Result<f64, Error> {
        self.check(state)?;
        state.run_layers(x, tokens).at(|| "layers".into())
    }

    pub(super) fn time_operations(&self, state: &mut State, x: &[f32], tokens: usize) -> Result<Vec<f64>, Error> {
        self.check(state)?;
        state.time_operations(x, tokens).at(|| "layers".into())
    }

    pub(super) fn fill(&self, state: &mut State, qkv: &[f32], tokens: usize) -> Result<(), Error> {
        self.check(state)?;
        state.fill(qkv, tokens).at(|| "context".into())
    }

    /// `rows` are within the tokens of the last `forward`.
    pub(super) fn logits(&self, state: &State, rows: Range<usize>, logits: &mut [f32]) -> Result<(), Error> {
        self.check(state)?;
        state.logits(rows, logits)
    }

    /// The likeliest token behind each of `rows`, the last ones of each sequence; four bytes a row leave the device.
    pub(super) fn greedy(&self, state: &mut State, rows: &[usize]) -> Result<Vec<u32>, Error> {
        self.check(state)?;
        state.greedy(rows)
    }

    fn check(&self, state: &State) -> Result<(), Error> {
        if Arc::ptr_eq(&self.0, &state.core) { Ok(()) } else { Err(Error::State) }
    }
}

impl Core {
    /// The kernels between the projections, for so many sequences of up to `room` tokens in passes of up to `rows` rows.
    fn head_plans(
        &self,
        sequences: usize,
        room: usize,
        rows: usize,
    ) -> Result<(RopeHadamardQuantizePlan, AttentionPlan), DeviceError> {
        let Self { device, config, kv, types, .. } = self;
        let pages = room.div_ceil(PAGE);
        let cache = KvLayout {
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            pages: sequences.saturating_mul(pages),
            key: kv.key,
            value: kv.value,
            float: types.cache,
        };
        // A pass has no more sequences than rows.
        let (heads, tokens_max, sequences_max) = (config.heads, rows, sequences.min(rows));
        let desc =
            RopeHadamardQuantizeDesc { heads, tokens_max, sequences_max, positions: room, input: types.float, cache };
        let rope = RopeHadamardQuantizePlan::plan(device.as_ref(), &desc)?;
        let (context_max, window, out) = (pages * PAGE, config.sliding_window, types.float);
        let desc = AttentionDesc { heads, tokens_max, sequences_max, context_max, window, out, cache };
        Ok((rope, AttentionPlan::plan(device.as_ref(), &desc)?))
    }
}
