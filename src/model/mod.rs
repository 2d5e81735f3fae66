//! The LLaMA runner: layers, KV cache, generation, on each backend.
//!
//! The same code runs floating-point checkpoints and W4A4 ones; what differs is in the [`crate::checkpoint::LayerWeights`]
//! that come in.

pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod generate;
mod rope;
mod stack;
mod state;
#[cfg(feature = "wgpu")]
mod wgpu;

pub use cpu::CHUNK;
#[cfg(feature = "cuda")]
pub use cuda::CHUNK as CUDA_CHUNK;
pub use error::Error;
pub use generate::{GenerateOptions, Generated, generate};
pub use state::State;

use crate::checkpoint::{Checkpoint, Config};
use crate::kernels::Affine;
use crate::kernels::cpu::Isa;
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
    /// This machine's processor, with an instruction set that it has.
    Cpu(Isa),
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
        Self::Cpu(Isa::best())
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
            Backend::Cpu(isa) => Engine::Cpu(cpu::Model::load(checkpoint, *isa)?),
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

    /// A fresh state with room for `capacity` tokens.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the cache cannot be made.
    pub fn new_state(&self, capacity: usize) -> Result<State, Error> {
        let inner = match &self.engine {
            Engine::Cpu(model) => state::Inner::Cpu(model.new_state(capacity)?),
            #[cfg(feature = "wgpu")]
            Engine::Wgpu(model) => state::Inner::Wgpu(model.new_state(capacity)?),
            #[cfg(feature = "cuda")]
            Engine::Cuda(model) => state::Inner::Cuda(model.new_state(capacity)?),
        };
        Ok(State { inner, last: 0 })
    }

    /// Runs `tokens` behind what `state` already holds and keeps their hidden states for [`Model::logits`]. Works in
    /// chunks of [`CHUNK`] tokens, on CUDA of those that the backend says.
    ///
    /// # Errors
    /// [`Error::Token`] or [`Error::Capacity`] before anything is run; [`Error::Kernel`] otherwise.
    pub fn forward(&self, state: &mut State, tokens: &[u32]) -> Result<(), Error> {
        let vocabulary = self.vocabulary;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Error::Token { token, vocabulary });
        }
        let (capacity, wanted) = (state.capacity(), state.len() + tokens.len());
        if wanted > capacity {
            return Err(Error::Capacity { capacity, wanted });
        }
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

    /// The likeliest token behind the last one of the last [`Model::forward`], the lowest on ties: greedy decoding. Only
    /// the token leaves the device.
    ///
    /// # Errors
    /// As [`Model::logits`].
    pub fn greedy(&self, state: &mut State) -> Result<u32, Error> {
        if state.last == 0 {
            return Err(Error::Shape {
                place: "greedy token".into(),
                expected: "a forward of at least one token before it".into(),
                got: "none".into(),
            });
        }
        #[cfg(feature = "wgpu")]
        if let (Engine::Wgpu(model), state::Inner::Wgpu(inner)) = (&self.engine, &mut state.inner) {
            return model.greedy(inner, state.last - 1);
        }
        #[cfg(feature = "cuda")]
        if let (Engine::Cuda(model), state::Inner::Cuda(inner)) = (&self.engine, &mut state.inner) {
            return model.greedy(inner, state.last - 1);
        }
        let mut logits = vec![0.0; self.vocabulary];
        self.logits(state, state.last - 1..state.last, &mut logits)?;
        Ok(likeliest(&logits))
    }
}

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
