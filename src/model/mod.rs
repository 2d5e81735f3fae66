//! The LLaMA runner: layers, KV cache, generation, on each backend.
//!
//! The same code runs floating-point checkpoints and W4A4 ones; what differs is in the [`crate::checkpoint::LayerWeights`]
//! that come in.

mod batch;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod generate;
mod operation;
mod rope;
mod stack;
mod state;
#[cfg(feature = "wgpu")]
mod wgpu;

pub use batch::StateDesc;
pub use cpu::CHUNK;
#[cfg(feature = "cuda")]
pub use cuda::CHUNK as CUDA_CHUNK;
pub use error::Error;
pub use generate::{GenerateOptions, Generated, generate};
pub use operation::{Memory, Operation};
pub use state::State;

use crate::checkpoint::{Checkpoint, Config};
use crate::kernels::Affine;
use error::At;
use std::ops::Range;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use std::sync::Arc;

/// How queries, keys and values are quantized; `None` keeps them in floating point.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct KvQuantizer {
    /// Queries and keys, after RoPE and a per-head Hadamard.
    pub key: Option<Affine>,
    /// Values.
    pub value: Option<Affine>,
}

impl KvQuantizer {
    /// What `checkpoint` records.
    #[must_use]
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let recorded =
            |quantization: &crate::checkpoint::Quantization| Self { key: quantization.key, value: quantization.value };
        checkpoint.quantization().map_or_else(Self::default, recorded)
    }
}

/// What a model runs on.
#[derive(Clone)]
pub enum Backend {
    /// This machine's processor.
    Cpu(cpu::Settings),
    /// A device that wgpu reaches.
    #[cfg(feature = "wgpu")]
    Wgpu {
        /// Models share it by reference.
        gpu: Arc<crate::kernels::wgpu::Gpu>,
        /// Type of weights, keys and values that are not quantized: the baseline that W4A4 is compared with. Sums are in
        /// single precision with either.
        float: crate::kernels::wgpu::Dtype,
    },
    /// A CUDA device, or what stands for one.
    #[cfg(feature = "cuda")]
    Cuda {
        /// Models share it by reference.
        device: Arc<dyn crate::kernels::cuda::Device>,
        /// Type of the residual stream, of what flows between kernels, and of weights, keys and values that are not quantized:
        /// the baseline that W4A4 is compared with. Sums are in single precision with any. `F32` is for comparisons: keys and
        /// values that are not quantized are in half precision then.
        float: crate::kernels::cuda::Dtype,
        /// Most tokens that go through all layers at a time, rounded up to a multiple of 8: more keep a large device busy, and
        /// take scratch memory. [`CUDA_CHUNK`] is a good choice.
        chunk: usize,
    },
}

impl Default for Backend {
    /// The processor at its best.
    fn default() -> Self {
        Self::Cpu(cpu::Settings::default())
    }
}

/// A model in the memory of its backend, packed for it.
pub struct Model {
    config: Config,
    vocabulary: usize,
    engine: Engine,
}

#[allow(clippy::large_enum_variant, reason = "a model is made once and stays where it is")]
enum Engine {
    Cpu(cpu::Model),
    #[cfg(feature = "wgpu")]
    Wgpu(wgpu::Model),
    #[cfg(feature = "cuda")]
    Cuda(cuda::Model),
}

impl Model {
    /// Loads every layer of `checkpoint` and packs it for the best instruction set of this machine.
    ///
    /// # Errors
    /// As [`Model::load_on`].
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, Error> {
        Self::load_on(checkpoint, &Backend::default())
    }

    /// Loads the model onto a backend.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when a tensor is missing or bad, [`Error::Shape`] or [`Error::Kernel`] when a layer cannot
    /// run.
    pub fn load_on(checkpoint: &Checkpoint, backend: &Backend) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        let vocabulary = config.vocabulary;
        let engine = match backend {
            Backend::Cpu(settings) => Engine::Cpu(cpu::Model::load(checkpoint, *settings)?),
            #[cfg(feature = "wgpu")]
            Backend::Wgpu { gpu, float } => Engine::Wgpu(wgpu::Model::load(checkpoint, Arc::clone(gpu), *float)?),
            #[cfg(feature = "cuda")]
            Backend::Cuda { device, float, chunk } => {
                Engine::Cuda(cuda::Model::load(checkpoint, Arc::clone(device), *float, *chunk)?)
            }
        };
        Ok(Self { config, vocabulary, engine })
    }

    /// The hyperparameters.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Rows of the embedding and of the output head: logits of one token.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Bytes of the decoder layers' weights, as they lie in memory.
    #[must_use]
    pub fn layer_bytes(&self) -> usize {
        match &self.engine {
            Engine::Cpu(model) => model.layer_bytes(),
            #[cfg(feature = "wgpu")]
            Engine::Wgpu(model) => model.layer_bytes(),
            #[cfg(feature = "cuda")]
            Engine::Cuda(model) => model.layer_bytes(),
        }
    }

    /// Bytes of embedding, output head and final norm.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        match &self.engine {
            Engine::Cpu(model) => model.table_bytes(),
            #[cfg(feature = "wgpu")]
            Engine::Wgpu(model) => model.table_bytes(),
            #[cfg(feature = "cuda")]
            Engine::Cuda(model) => model.table_bytes(),
        }
    }

    /// The GEMM kernel which each group of the first layer runs for so many tokens.
    #[must_use]
    pub fn kernels(&self, tokens: usize) -> Vec<String> {
        match &self.engine {
            Engine::Cpu(model) => model.kernels(tokens).into_iter().map(str::to_owned).collect(),
            #[cfg(feature = "wgpu")]
            Engine::Wgpu(model) => model.kernels(tokens),
            #[cfg(feature = "cuda")]
            Engine::Cuda(model) => model.kernels(tokens),
        }
    }

    /// What an operation of the first layer runs for so many tokens, for reports; of RoPE and attention, for so many of one
    /// sequence.
    #[must_use]
    pub fn kernel(&self, operation: Operation, tokens: usize) -> String {
        match &self.engine {
            Engine::Cpu(model) => model.kernel(operation, tokens),
            #[cfg(feature = "wgpu")]
            Engine::Wgpu(model) => model.kernel(operation, tokens),
            #[cfg(feature = "cuda")]
            Engine::Cuda(model) => model.kernel(operation, tokens),
        }
    }

    /// Bytes of everything that the model holds.
    #[must_use]
    pub fn memory(&self) -> Memory {
        Memory { weights: (self.layer_bytes() + self.table_bytes()) as u64, ..Memory::default() }
    }

    /// A fresh state of one sequence with room for `capacity` tokens.
    ///
    /// # Errors
    /// As [`Model::new_state_with`].
    pub fn new_state(&self, capacity: usize) -> Result<State, Error> {
        self.new_state_with(&StateDesc { sequences: 1, capacity, rows: None })
    }

    /// A fresh state of several sequences.
    ///
    /// # Errors
    /// [`Error::Shape`] without sequences, [`Error::Kernel`] when the cache cannot be made.
    pub fn new_state_with(&self, desc: &StateDesc) -> Result<State, Error> {
        if desc.sequences == 0 {
            return Err(Error::Shape {
                place: "sequences of a state".into(),
                expected: "at least 1".into(),
                got: "0".into(),
            });
        }
        let inner = match &self.engine {
            Engine::Cpu(model) => state::Inner::Cpu(model.new_state(desc)?),
            #[cfg(feature = "wgpu")]
            Engine::Wgpu(model) => state::Inner::Wgpu(model.new_state(desc)?),
            #[cfg(feature = "cuda")]
            Engine::Cuda(model) => state::Inner::Cuda(model.new_state(desc)?),
        };
        Ok(State { inner, sequences: desc.sequences, last: 0 })
    }

    /// Runs `tokens` `[sequences, T]`, as many of each sequence of `state`, behind what it already holds, and keeps their hidden
    /// states for [`Model::logits`]. Works in passes of up to [`CHUNK`] rows, on CUDA of those that the backend says.
    ///
    /// # Errors
    /// [`Error::Token`], [`Error::Shape`] or [`Error::Capacity`] before anything is run; [`Error::Kernel`] otherwise.
    pub fn forward(&self, state: &mut State, tokens: &[u32]) -> Result<(), Error> {
        let vocabulary = self.vocabulary;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Error::Token { token, vocabulary });
        }
        if !tokens.len().is_multiple_of(state.sequences) {
            return Err(Error::Shape {
                place: "tokens of a forward".into(),
                expected: format!("as many for each of {} sequences", state.sequences),
                got: tokens.len().to_string(),
            });
        }
        state.check_room(tokens.len() / state.sequences)?;
        state.last = 0;
        match (&self.engine, &mut state.inner) {
            (Engine::Cpu(model), state::Inner::Cpu(state)) => model.forward(state, tokens)?,
            #[cfg(feature = "wgpu")]
            (Engine::Wgpu(model), state::Inner::Wgpu(state)) => model.forward(state, tokens)?,
            #[cfg(feature = "cuda")]
            (Engine::Cuda(model), state::Inner::Cuda(state)) => model.forward(state, tokens)?,
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            _ => return Err(Error::State),
        }
        state.last = tokens.len();
        Ok(())
    }

    /// Device time in seconds of `tokens` tokens of each sequence in the decoder layers alone, without embedding, last norm and
    /// output head: what benchmarks time. The residual stream of each pass is `x` `[rows, hidden]`, repeated as often as needed, and
    /// its loading is not counted.
    ///
    /// On CUDA between events, and a step of one token as a graph, as decoding runs it; on wgpu between time stamps where the device
    /// has them; otherwise by this machine's clock. There are no logits afterwards.
    ///
    /// # Errors
    /// [`Error::Shape`] when `x` is not whole rows, at least one; [`Error::Capacity`]; [`Error::Kernel`] otherwise.
    pub fn run_layers(&self, state: &mut State, x: &[f32], tokens: usize) -> Result<f64, Error> {
        check_whole_rows("residual stream", x, self.config.hidden)?;
        state.check_room(tokens)?;
        state.last = 0;
        match (&self.engine, &mut state.inner) {
            (Engine::Cpu(model), state::Inner::Cpu(state)) => model.run_layers(state, x, tokens),
            #[cfg(feature = "wgpu")]
            (Engine::Wgpu(model), state::Inner::Wgpu(state)) => model.run_layers(state, x, tokens),
            #[cfg(feature = "cuda")]
            (Engine::Cuda(model), state::Inner::Cuda(state)) => model.run_layers(state, x, tokens),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            _ => Err(Error::State),
        }
    }

    /// As [`Model::run_layers`], by operation in the order of [`Operation::ALL`]. What lies between the operations is not counted,
    /// and stopping after each takes time of its own: their sum is not the time of a run.
    ///
    /// # Errors
    /// As [`Model::run_layers`].
    pub fn time_operations(&self, state: &mut State, x: &[f32], tokens: usize) -> Result<Vec<f64>, Error> {
        check_whole_rows("residual stream", x, self.config.hidden)?;
        state.check_room(tokens)?;
        state.last = 0;
        match (&self.engine, &mut state.inner) {
            (Engine::Cpu(model), state::Inner::Cpu(state)) => model.time_operations(state, x, tokens),
            #[cfg(feature = "wgpu")]
            (Engine::Wgpu(model), state::Inner::Wgpu(state)) => model.time_operations(state, x, tokens),
            #[cfg(feature = "cuda")]
            (Engine::Cuda(model), state::Inner::Cuda(state)) => model.time_operations(state, x, tokens),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            _ => Err(Error::State),
        }
    }

    /// Gives each sequence a context of `tokens` tokens that no prompt was run for: keys and values are those of `qkv`
    /// `[rows, (H + 2 Hkv) D]`, repeated as often as needed, in every layer. What decoding is timed on. Tokens that were there before
    /// become those of the first sequence's first layer.
    ///
    /// # Errors
    /// [`Error::Shape`] when `qkv` is not whole rows, at least one; [`Error::Capacity`]; [`Error::Kernel`] otherwise.
    pub fn fill(&self, state: &mut State, qkv: &[f32], tokens: usize) -> Result<(), Error> {
        check_whole_rows(
            "keys and values",
            qkv,
            (self.config.heads + 2 * self.config.kv_heads) * self.config.head_dim,
        )?;
        state.check_room(tokens)?;
        state.last = 0;
        match (&self.engine, &mut state.inner) {
            (Engine::Cpu(model), state::Inner::Cpu(state)) => model.fill(state, qkv, tokens),
            #[cfg(feature = "wgpu")]
            (Engine::Wgpu(model), state::Inner::Wgpu(state)) => model.fill(state, qkv, tokens),
            #[cfg(feature = "cuda")]
            (Engine::Cuda(model), state::Inner::Cuda(state)) => model.fill(state, qkv, tokens),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            _ => Err(Error::State),
        }
    }

    /// Logits behind the tokens `rows` of the last [`Model::forward`] of `state`, `[rows, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `rows` are not among those tokens, [`Error::Kernel`] when `logits` has another size.
    pub fn logits(&self, state: &mut State, rows: Range<usize>, logits: &mut [f32]) -> Result<(), Error> {
        if rows.start > rows.end || rows.end > state.last {
            return Err(Error::Shape {
                place: "rows of the logits".into(),
                expected: format!("within 0..{}, the tokens of the last forward", state.last),
                got: format!("{rows:?}"),
            });
        }
        crate::kernels::check_length("logits", rows.len() * self.vocabulary, logits.len())
            .at(|| "output head".into())?;
        match (&self.engine, &mut state.inner) {
            (Engine::Cpu(model), state::Inner::Cpu(state)) => model.logits(state, rows, logits),
            #[cfg(feature = "wgpu")]
            (Engine::Wgpu(model), state::Inner::Wgpu(state)) => model.logits(state, rows, logits),
            #[cfg(feature = "cuda")]
            (Engine::Cuda(model), state::Inner::Cuda(state)) => model.logits(state, rows, logits),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            _ => Err(Error::State),
        }
    }

    /// The likeliest token behind the last one of each sequence of the last [`Model::forward`], the lowest on ties: greedy
    /// decoding. Only the tokens leave the device.
    ///
    /// # Errors
    /// As [`Model::logits`].
    pub fn greedy_each(&self, state: &mut State) -> Result<Vec<u32>, Error> {
        if state.last == 0 {
            return Err(Error::Shape {
                place: "greedy token".into(),
                expected: "a forward of at least one token before it".into(),
                got: "none".into(),
            });
        }
        let each = state.last / state.sequences;
        let rows: Vec<usize> = (1..=state.sequences).map(|sequence| sequence * each - 1).collect();
        #[cfg(feature = "wgpu")]
        if let (Engine::Wgpu(model), state::Inner::Wgpu(inner)) = (&self.engine, &mut state.inner) {
            return model.greedy(inner, &rows);
        }
        #[cfg(feature = "cuda")]
        if let (Engine::Cuda(model), state::Inner::Cuda(inner)) = (&self.engine, &mut state.inner) {
            return model.greedy(inner, &rows);
        }
        let mut tokens = Vec::with_capacity(rows.len());
        // Rows that stand together are one product, in which the output head is read once.
        let together = if each == 1 { rows.len().min(GREEDY_ROWS) } else { 1 };
        let mut logits = vec![0.0; together * self.vocabulary];
        for rows in rows.chunks(together) {
            let logits = &mut logits[..rows.len() * self.vocabulary];
            self.logits(state, rows[0]..rows[0] + rows.len(), logits)?;
            tokens.extend(logits.chunks_exact(self.vocabulary).map(likeliest));
        }
        Ok(tokens)
    }

    /// [`Model::greedy_each`] of a state of one sequence.
    ///
    /// # Errors
    /// As [`Model::logits`], and [`Error::Shape`] for a state of several sequences.
    pub fn greedy(&self, state: &mut State) -> Result<u32, Error> {
        match self.greedy_each(state)?[..] {
            [token] => Ok(token),
            ref tokens => Err(Error::Shape {
                place: "greedy token".into(),
                expected: "a state of one sequence (greedy_each takes several)".into(),
                got: format!("{} sequences", tokens.len()),
            }),
        }
    }
}

/// Ok when `x` is rows of `width` numbers, at least one.
fn check_whole_rows(place: &str, x: &[f32], width: usize) -> Result<(), Error> {
    if x.is_empty() || !x.len().is_multiple_of(width) {
        let (expected, got) = (format!("rows of {width} numbers, at least one"), x.len().to_string());
        return Err(Error::Shape { place: place.into(), expected, got });
    }
    Ok(())
}

/// Rows of logits that are held at a time while tokens are chosen.
const GREEDY_ROWS: usize = 64;

/// Index of the largest number, the first on ties.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    best as u32
}
